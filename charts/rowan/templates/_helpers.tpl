{{/* Labels of an object. Call with (dict "root" $ "component" "node"); component may be missing. */}}
{{- define "rowan.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: rowan
{{ include "rowan.selector" . }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* What a component's pods are found by. It can never change: selectors of Deployments and DaemonSets are immutable. */}}
{{- define "rowan.selector" -}}
app.kubernetes.io/name: rowan
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end }}

{{/* An image's full name. Call with (dict "root" $ "image" VALUES "tag" DEFAULT). */}}
{{- define "rowan.image" -}}
{{- $registry := default .image.registry .root.Values.imageRegistry -}}
{{- with $registry }}{{ trimSuffix "/" . }}/{{ end -}}
{{ .image.repository }}
{{- if .image.digest }}@{{ .image.digest }}{{ else }}:{{ default .tag .image.tag }}{{ end -}}
{{- end }}

{{- define "rowan.ownImage" -}}
{{ include "rowan.image" (dict "root" . "image" .Values.image "tag" (printf "v%s" .Chart.AppVersion)) }}
{{- end }}

{{/* What the pods of all components begin with. */}}
{{- define "rowan.podSpec" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Where keeper, engine and node plugin run: the same nodes for all three, for none is of use without the others. */}}
{{- define "rowan.nodePlacement" -}}
priorityClassName: {{ .Values.priorityClassNames.node }}
{{- with .Values.nodes.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodes.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if .Values.nodes.affinity }}
affinity:
  {{- toYaml .Values.nodes.affinity | nindent 2 }}
{{- else if not .Values.nodes.controlPlane }}
affinity:
  nodeAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms:
        - matchExpressions:
            - key: node-role.kubernetes.io/control-plane
              operator: DoesNotExist
        # k3s and RKE2: their servers run everybody's pods.
        - matchExpressions:
            - key: node-role.kubernetes.io/control-plane
              operator: In
              values: ["true"]
        # minikube: so does its first node.
        - matchExpressions:
            - key: minikube.k8s.io/primary
              operator: Exists
{{- end }}
{{- end }}

{{/* Where a Deployment's pods run. Call with (dict "root" $ "component" NAME "values" VALUES). */}}
{{- define "rowan.controllerPlacement" -}}
priorityClassName: {{ .root.Values.priorityClassNames.controller }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
affinity:
{{- if .values.affinity }}
  {{- toYaml .values.affinity | nindent 2 }}
{{- else }}
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels:
              {{- include "rowan.selector" . | nindent 14 }}
{{- end }}
{{- end }}

{{/* What a container that needs no rights has. */}}
{{- define "rowan.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* Whether the cluster has the snapshot CRDs, now or when this release is installed. */}}
{{- define "rowan.haveSnapshotCRDs" -}}
{{- if or .Values.snapshotController.install (.Capabilities.APIVersions.Has "snapshot.storage.k8s.io/v1") }}true{{ end }}
{{- end }}

{{- define "rowan.snapshotter" -}}
{{- $v := toString .Values.sidecars.snapshotter.enabled -}}
{{- if or (eq $v "true") (and (eq $v "auto") (include "rowan.haveSnapshotCRDs" .)) }}true{{ end }}
{{- end }}

{{- define "rowan.wantSnapshotClass" -}}
{{- $v := toString .Values.volumeSnapshotClass.create -}}
{{- if or (eq $v "true") (and (eq $v "auto") (include "rowan.haveSnapshotCRDs" .)) }}true{{ end }}
{{- end }}

{{- define "rowan.wantGroupSnapshotClass" -}}
{{- $v := toString .Values.volumeGroupSnapshotClass.create -}}
{{- $have := or .Values.snapshotController.install (.Capabilities.APIVersions.Has "groupsnapshot.storage.k8s.io/v1") -}}
{{- if or (eq $v "true") (and (eq $v "auto") $have) }}true{{ end }}
{{- end }}

{{/* Folders of the host that members are in, besides what is below /var/lib/rowan: a list, sorted, without doubles. */}}
{{- define "rowan.memberDirectories" -}}
{{- $found := list }}
{{- range .Values.poolSets }}
  {{- range .spec.template.members }}
    {{- if .directory }}{{- $found = append $found (.directory.path | trimSuffix "/") }}{{- end }}
  {{- end }}
{{- end }}
{{- range .Values.engine.extraDirectories }}{{- $found = append $found (trimSuffix "/" .) }}{{- end }}
{{- $out := list }}
{{- range $found | uniq | sortAlpha }}
  {{- if not (or (eq . "/var/lib/rowan") (hasPrefix "/var/lib/rowan/" .)) }}{{- $out = append $out . }}{{- end }}
{{- end }}
{{- toJson $out }}
{{- end }}
