# syntax=docker/dockerfile:1
# One image for all of Rowan's processes: rowan-engine (and its keeper), rowan-driver, rowan-controller, and rowanctl for those who look inside. It has no
# entry point; the chart names the program.
#
#   docker buildx build --platform linux/amd64,linux/arm64 --build-arg VERSION=v0.1.0 --tag REGISTRY/rowan-csi/rowan:v0.1.0 --push .

ARG GO_VERSION=1.26
ARG DEBIAN=trixie

# Built on the machine's own platform for the image's: Go needs no emulator for that.
FROM --platform=$BUILDPLATFORM golang:${GO_VERSION}-${DEBIAN} AS build
ARG TARGETOS TARGETARCH
ARG VERSION=v0.0.0-dev
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY cmd cmd
COPY pkg pkg
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -ldflags="-s -w -X main.version=$VERSION" -o /out/ \
    ./cmd/rowan-engine ./cmd/rowan-driver ./cmd/rowan-controller ./cmd/rowanctl

# Debian, not scratch: engine and driver run mkfs.xfs, xfs_growfs, mkfs.ext4, e2fsck, resize2fs, blkid, wipefs and mount, which are not static.
# What they make is what Linux 5.10 mounts, whatever their version: the options say each feature (pkg/driver/mount, pkg/engine/member).
FROM debian:${DEBIAN}-slim
ARG VERSION=v0.0.0-dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Rowan" \
      org.opencontainers.image.description="Kubernetes CSI driver for node-local volumes with a snapshot engine of its own" \
      org.opencontainers.image.url="https://github.com/rowan-csi/rowan" \
      org.opencontainers.image.source="https://github.com/rowan-csi/rowan" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
RUN apt-get update && \
    apt-get install --yes --no-install-recommends e2fsprogs xfsprogs mount util-linux && \
    apt-get clean && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/*
COPY LICENSE /usr/share/doc/rowan/LICENSE
COPY --from=build /out/ /usr/bin/
# Of nobody. Keeper, engine and node plugin need root, and their pods say so.
USER 65532:65532
