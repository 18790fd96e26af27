# `make` alone prints what there is. Every target that needs a tool asks hack/setup.sh for it first.
SHELL       := /bin/bash
.DEFAULT_GOAL := help

GO          ?= go
# Packages tested at once. Two suit a small machine; more make the tests that time things unsteady.
TEST_P      ?= 2
TEST_TIMEOUT ?= 20m
# What to test, and extra flags for it: make test PKG=./pkg/engine/... TESTFLAGS=-race
PKG         ?= ./...
TESTFLAGS   ?=

# Folders that hold Go sources, without asking git (a release tarball has none).
GO_DIRS     := $(wildcard cmd pkg hack test)

.PHONY: help
help: ## Show this help
	@awk 'BEGIN { FS = ":.*## " } /^[a-z0-9-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build all commands into bin/
	@mkdir -p bin
	$(GO) build -trimpath -o bin/ ./cmd/...

.PHONY: test
test: ## Run all tests; without root, those that need none, and say at the end what was left out
	@hack/setup.sh test
	@$(GO) run ./hack/testreport -p $(TEST_P) -timeout $(TEST_TIMEOUT) $(TESTFLAGS) $(PKG)

.PHONY: lint
lint: ## Check formatting, go vet, staticcheck and the import rules
	@bad=$$(gofmt -l $(GO_DIRS)); if [ -n "$$bad" ]; then echo "not formatted; run gofmt -w on:" >&2; echo "$$bad" >&2; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(GO) test -count=1 ./hack/imports

.PHONY: generate
generate: ## Make generated code again (protocol buffers, custom resources, the chart's README and schema, deploy/)
	@hack/setup.sh generate
	$(GO) generate ./cmd/... ./pkg/...
	$(GO) generate ./hack/...

.PHONY: verify-generate
verify-generate: ## Fail if generated code is not what make generate makes
	@before=$$(git status --porcelain); $(MAKE) --no-print-directory generate; \
	if [ "$$before" != "$$(git status --porcelain)" ] || ! git diff --quiet; then \
		git diff --stat; git status --short; \
		echo "the tree is not clean after make generate: commit what it changed" >&2; exit 1; fi

.PHONY: sanity
sanity: ## Run the CSI project's own conformance tests against driver, engine and kernel (as root)
	@hack/setup.sh demo
	$(GO) test -count=1 -v -timeout $(TEST_TIMEOUT) ./test/e2e/sanity

.PHONY: demo
demo: ## Show snapshot, restore, rollback and delete through the CSI socket, on a pool in a file (as root)
	@hack/setup.sh demo
	@$(MAKE) --no-print-directory build
	@$(GO) build -trimpath -o bin/demo ./hack/demo
	@bin/demo

.PHONY: freeze-test
freeze-test: ROUNDS ?= 100
freeze-test: ## Time frozen file systems: 100 (ROUNDS=n) snapshots with 1 GiB dirty each, and kills of the driver meanwhile; fails above the bars (as root)
	@hack/setup.sh demo
	$(GO) test -count=1 -v -timeout 60m ./test/e2e/freeze -args -rounds $(ROUNDS)

.PHONY: kill-test
kill-test: KILLS ?= 20
kill-test: ## Kill the engine 20 (KILLS=n) times under verified I/O, as root; SEED=n repeats a run's choices
	@hack/setup.sh demo
	@mkdir -p .cache/kill-test
	$(GO) test -count=1 -v -timeout $(TEST_TIMEOUT) -run 'TestKill' -artifacts -outputdir $(CURDIR)/.cache/kill-test ./test/e2e/crash \
		-args -kills $(KILLS) $(if $(SEED),-seed $(SEED))

.PHONY: soak
soak: SOAK ?= 10m
soak: ## All operations at random on two pools, the engine killed in between, for 10m (SOAK=30m), as root; SEED=n repeats a run's choices
	@hack/setup.sh demo
	@mkdir -p .cache/soak
	$(GO) test -count=1 -v -timeout 12h -run 'TestSoak' -artifacts -outputdir $(CURDIR)/.cache/soak ./test/e2e/crash \
		-args -soak $(SOAK) $(if $(SEED),-seed $(SEED))

.PHONY: group-test
group-test: CUTS ?= 1000
group-test: ## Cut 1000 (CUTS=n) groups of 8 volumes under ordered writes through the CSI socket, as root: every restored set is a prefix of the order
	@hack/setup.sh demo
	@mkdir -p .cache/group-test
	$(GO) test -count=1 -v -timeout 12h -run 'TestGroupCuts' -artifacts -outputdir $(CURDIR)/.cache/group-test ./test/e2e/group \
		-args -cuts $(CUTS) $(if $(SEED),-seed $(SEED))

.PHONY: crash-test
crash-test: CUTS ?= 100000
crash-test: ## Cut 100000 (CUTS=n) times through recorded runs of the engine; SEED=n goes on from a run's seed
	@hack/setup.sh test
	@mkdir -p .cache/crash-test
	$(GO) test -count=1 -v -timeout 12h -run 'TestCrash' -artifacts -outputdir $(CURDIR)/.cache/crash-test ./pkg/engine \
		-args -crash.cuts $(CUTS) $(if $(SEED),-crash.seed $(SEED))

.PHONY: model-test
model-test: SEEDS ?= 2000
model-test: ## Compare the engine with the reference model over 2000 (SEEDS=n) random histories of each kind; SEED=n goes on from a run's seed
	@hack/setup.sh test
	$(GO) test -count=1 -v -timeout 12h -run 'TestModel' ./pkg/engine -args -rapid.checks $(SEEDS) $(if $(SEED),-rapid.seed $(SEED))

.PHONY: policy-test
policy-test: HISTORIES ?= 100000
policy-test: ## Hold the retention planner's 13 invariants over 100000 (HISTORIES=n) random histories each; SEED=n goes on from a run's seed
	@hack/setup.sh test
	$(GO) test -count=1 -v -timeout 12h -run 'TestInvariant' ./pkg/retention -args -rapid.checks $(HISTORIES) $(if $(SEED),-rapid.seed $(SEED))

.PHONY: policy-scale
policy-scale: ## A snapshot policy over 1,000 PVCs with 50 snapshots each, beside a real API server; fails above the bars
	@hack/setup.sh cluster
	$(GO) run ./hack/cluster build
	$(GO) test -count=1 -v -timeout 20m -run 'TestPolicyScale' ./test/e2e/controllers -args -policy.scale

.PHONY: io-error-test
io-error-test: ## Fail every call site of the engine's files with every error, at several of its calls
	@hack/setup.sh test
	$(GO) test -count=1 -v -timeout 12h -run 'TestIOErrors' ./pkg/engine -args -ioerror.all

.PHONY: bench
bench: build ## Measure the engine on this machine; fails below the bars (BENCHFLAGS="--only first --dir /mnt/fast")
	@hack/setup.sh bench
	bin/rowanctl bench $(BENCHFLAGS)

.PHONY: bench-report
bench-report: build ## Measure copy-on-write against redirect-on-write; fails where a bar is missed (as root)
	@hack/setup.sh bench
	bin/rowanctl bench --report $(BENCHFLAGS)

.PHONY: fold-test
fold-test: build ## Delete some of 1000 snapshots of a volume of 10 million blocks under load; fails above the bars (45 GiB of space)
	bin/rowanctl bench --only fold,space $(BENCHFLAGS)

.PHONY: full-test
full-test: ## Fill a pool, and the file system under one, on a loop device (as root): nothing is lost, writes go on when space comes back
	@hack/setup.sh demo
	$(GO) run ./hack/fulltest

.PHONY: bench-peers
bench-peers: ## Compare first writes after a snapshot with XFS reflink and qcow2; fails below the bars
	@hack/setup.sh bench-peers
	@if [ -d cmd/rowanctl ]; then $(MAKE) --no-print-directory build; fi
	hack/bench-peers/run

.PHONY: cluster-build
cluster-build: ## Build a whole Kubernetes from Go modules into the user's cache, once
	@hack/setup.sh cluster
	$(GO) run ./hack/cluster build

.PHONY: cluster-up
cluster-up: NODES ?= 3
cluster-up: ## Bring up a real Kubernetes of 3 (NODES=n) nodes on this machine (as root)
	@hack/setup.sh cluster
	$(GO) run ./hack/cluster up --nodes $(NODES)

.PHONY: cluster-down
cluster-down: ## Take it down; nothing is left of it
	$(GO) run ./hack/cluster down

.PHONY: cluster-test
cluster-test: ## Bring clusters up and down, stop nodes, kill, and compare the machine before and after (as root)
	@hack/setup.sh cluster
	$(GO) run ./hack/cluster build
	$(GO) test -count=1 -v -timeout $(TEST_TIMEOUT) ./hack/cluster/kube -args -cluster

# How many flows run side by side. Most of a flow is waiting.
E2E_P       ?= 8
.PHONY: e2e
e2e: ## Bring a cluster up, install the chart, run the flows of test/e2e, take it down (as root); SEED=n repeats a run's kills, RUN=regexp chooses flows, KUBERNETES=v1.32.5 another version
	@hack/setup.sh cluster
	$(GO) run ./hack/cluster $(if $(KUBERNETES),--kubernetes $(KUBERNETES)) build
	$(GO) run ./hack/e2e $(if $(KUBERNETES),-kubernetes $(KUBERNETES)) -artifacts .cache/e2e -- $(GO) test -count=1 -v -timeout 40m -parallel $(E2E_P) $(if $(RUN),-run '$(RUN)') ./test/e2e \
		-args -kubeconfig {kubeconfig} -node-exec '{node-exec}' -machine '{machine}' -artifacts {artifacts} $(if $(SEED),-seed $(SEED))

.PHONY: e2e-kill
e2e-kill: ## Every flow with each of Rowan's processes killed in it; goes on where the last run stopped (as root); PROCESSES=engine,provisioner RUN=regexp SEED=n KILLFLAGS=-fresh
	@hack/setup.sh cluster
	@mkdir -p bin
	$(GO) build -o bin/killmatrix ./hack/killmatrix
	$(GO) run ./hack/e2e -artifacts .cache/e2e-kill-cluster -timeout 8h -- bin/killmatrix -procs $(E2E_P) \
		-kubeconfig {kubeconfig} -node-exec '{node-exec}' -subject {artifacts}/rowan.tar \
		$(if $(RUN),-run '$(RUN)') $(if $(PROCESSES),-processes $(PROCESSES)) $(if $(SEED),-seed $(SEED)) $(KILLFLAGS)

.PHONY: e2e-sanity
e2e-sanity: ## The CSI project's conformance tests over the sockets of the driver in a cluster of its own (as root)
	@hack/setup.sh cluster
	$(GO) run ./hack/e2e -nodes 1 -artifacts .cache/e2e-sanity -- $(GO) test -count=1 -v -timeout 45m -run TestSanityInCluster ./test/e2e/sanity \
		-args -kubeconfig {kubeconfig} -node-exec '{node-exec}'

.PHONY: e2e-scale
e2e-scale: ## Times and sizes on a cluster of its own: snapshots, restores, 200 (CLAIMS=n) claims with 5 snapshots each; fails above the bars (as root)
	@hack/setup.sh cluster
	$(GO) run ./hack/e2e -artifacts .cache/e2e-scale -- $(GO) test -count=1 -v -timeout 50m -parallel 30 -run TestScale ./test/e2e \
		-args -scale $(if $(CLAIMS),-claims $(CLAIMS)) -kubeconfig {kubeconfig} -node-exec '{node-exec}' -artifacts {artifacts}

# Specs of the upstream suite side by side. Most of them wait most of the time.
UPSTREAM_P  ?= 8
.PHONY: e2e-upstream
e2e-upstream: ## Kubernetes' own storage tests on a cluster of its own; goes on where the last run stopped (as root); UPSTREAMFLAGS="-fresh -run expand"
	@hack/setup.sh cluster
	@mkdir -p bin
	$(GO) build -o bin/upstream ./hack/upstream
	$(GO) run ./hack/e2e -artifacts .cache/e2e-upstream-cluster -values test/e2e/upstream/values.yaml -timeout 4h -- bin/upstream -procs $(UPSTREAM_P) \
		-kubeconfig {kubeconfig} -cluster {cluster} -subject {artifacts}/rowan.tar $(UPSTREAMFLAGS)

.PHONY: e2e-upstream-groups
e2e-upstream-groups: ## Those of them that cut a StatefulSet's volumes at one moment, on a cluster of one node (as root)
	@hack/setup.sh cluster
	@mkdir -p bin
	$(GO) build -o bin/upstream ./hack/upstream
	$(GO) run ./hack/e2e -nodes 1 -artifacts .cache/e2e-upstream-groups-cluster -values test/e2e/upstream/values.yaml -- bin/upstream -one-node \
		-results .cache/e2e-upstream-groups -run volumegroupsnapshottable -procs $(UPSTREAM_P) -kubeconfig {kubeconfig} -cluster {cluster} \
		-subject {artifacts}/rowan.tar $(UPSTREAMFLAGS)

.PHONY: clean
clean: ## Remove what the targets above made
	rm -rf bin .cache
