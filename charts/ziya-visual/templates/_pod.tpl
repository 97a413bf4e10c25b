{{/* What pods have in common: who they run as, where they go, what their programs are told. */}}

{{/* The head of a pod's spec. (dict "root" $ "component" "…" "place" values-with-nodeSelector-and-tolerations) */}}
{{- define "ziya.pod" -}}
serviceAccountName: {{ include "ziya.name" (list .root .component) }}
automountServiceAccountToken: {{ .token | default false }}
# Else Kubernetes makes ZIYA_GATEWAY_PORT=tcp://… of a Service's name, and the programs stop at names they do not know.
enableServiceLinks: false
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - {name: {{ . }}}
{{- end }}
{{- end }}
securityContext: {{ include "ziya.podSecurity" . }}
{{- include "ziya.spread" . }}
{{- with .place }}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}

{{- define "ziya.podSecurity" -}}
{runAsNonRoot: true, runAsUser: 10001, runAsGroup: 10001, fsGroup: 10001, seccompProfile: {type: RuntimeDefault}}
{{- end }}

{{- define "ziya.containerSecurity" -}}
{allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
{{- end }}

{{/* Over nodes and zones, as far as there are some. */}}
{{- define "ziya.spread" }}
topologySpreadConstraints:
{{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - topologyKey: {{ . }}
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    labelSelector: {matchLabels: {{ include "ziya.selector" (list $.root $.component) }}}
{{- end }}
{{- end }}

{{/* A container's image and rights. (list $ repository) */}}
{{- define "ziya.container" -}}
image: {{ include "ziya.image" . }}
imagePullPolicy: {{ (index . 0).Values.image.pullPolicy }}
securityContext: {{ include "ziya.containerSecurity" . }}
{{- end }}

{{/* Of every container of ours: a root that cannot be written needs a home, and no thread may spin while it waits. */}}
{{- define "ziya.env.quiet" -}}
- {name: HOME, value: /tmp}
- {name: OMP_WAIT_POLICY, value: PASSIVE}
- {name: TOKENIZERS_PARALLELISM, value: "false"}
- {name: HF_HUB_OFFLINE, value: "1"}
{{- end }}

{{/* What the four stages share; each program's own names stand in its file. (list $ component) */}}
{{- define "ziya.env" -}}
{{- $root := index . 0 -}}
{{ include "ziya.env.quiet" $root }}
- {name: ZIYA_HOST, value: 0.0.0.0}
- {name: ZIYA_LOG_LEVEL, value: {{ $root.Values.logLevel }}}
- {name: ZIYA_CHECKPOINT, value: {{ include "ziya.model.folder" $root }}}
{{ include "ziya.env.redis" (list $root "ZIYA_REDIS_URL" (index . 1)) }}
{{- include "ziya.env.tls" $root }}
- {name: ZIYA_REDIS_START_SECONDS, value: {{ $root.Values.redis.startSeconds | quote }}}
- {name: ZIYA_REQUEST_TIMEOUT, value: {{ $root.Values.requestTimeout | quote }}}
- {name: ZIYA_DRAIN_SECONDS, value: {{ $root.Values.drainSeconds | quote }}}
- {name: ZIYA_FEATURES_TTL, value: {{ $root.Values.cacheSeconds | quote }}}
- {name: ZIYA_TOKENS_TTL, value: {{ $root.Values.cacheSeconds | quote }}}
- {name: ZIYA_MAX_MESSAGE_BYTES, value: {{ $root.Values.maxMessageBytes | int | quote }}}
{{- with $root.Values.tracing }}
{{- if .endpoint }}
- {name: ZIYA_OTLP_ENDPOINT, value: {{ .endpoint | quote }}}
- {name: ZIYA_OTLP_RATIO, value: {{ .ratio | quote }}}
{{- end }}
{{- end }}
{{- end }}

{{/* On TERM the pod has left its Services already or is about to: first everybody hears of it. Takes the root. */}}
{{- define "ziya.lifecycle" -}}
lifecycle: {preStop: {exec: {command: [sleep, {{ .Values.preStopSeconds | quote }}]}}}
{{- end }}

{{/* Seconds from TERM to KILL, of a program that drains so many times. (list $ times) */}}
{{- define "ziya.grace" -}}
{{ add (index . 0).Values.preStopSeconds (mul (index . 1) (index . 0).Values.drainSeconds) 15 }}
{{- end }}

{{/* One voluntary disruption at a time, and none is held up by a pod that does not work anyway. (list $ component) */}}
{{- define "ziya.disruption" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {{- include "ziya.meta" . | nindent 2 }}
spec:
  maxUnavailable: 1
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector: {matchLabels: {{ include "ziya.selector" . }}}
{{- end }}

{{/* (list $ component) */}}
{{- define "ziya.account" -}}
apiVersion: v1
kind: ServiceAccount
metadata: {{- include "ziya.meta" . | nindent 2 }}
automountServiceAccountToken: false
{{- end }}
