{{/*
One scaler a stage, of the kind that autoscaling.kind names. Both kinds read the same numbers: HPA as custom metrics of
pods under the very names that the programs export, KEDA by queries over them. Up at once, down slowly: a new replica
is of use only after its weights are loaded, and what it takes to load them should not be lost to a short lull.
*/}}

{{/* Whether replicas are a scaler's business. Takes the root. */}}
{{- define "ziya.scaled" -}}
{{ if ne .Values.autoscaling.kind "none" }}true{{ end }}
{{- end }}

{{/* The labels that ServiceMonitors give to a stage's samples, and others. (list $ component [labels]) */}}
{{- define "ziya.samples" -}}
{namespace="{{ (index . 0).Release.Namespace }}",service="{{ include "ziya.name" . }}"
{{- if gt (len .) 2 }}{{ range $label, $value := index . 2 }},{{ $label }}="{{ $value }}"{{ end }}{{ end }}}
{{- end }}

{{/*
(dict "root" $ "component" … "range" {min, max} "metrics" (list metric …) "target" Deployment "samples" component "wake" query)
A metric is (dict "name" … "target" …); with "fold" all pods export the same number, whose largest counts, and "labels"
choose among its samples. With `wake`, a stage at zero comes back when that query is above zero.
*/}}
{{- define "ziya.scaler" -}}
{{- $root := .root -}}
{{- $scaling := $root.Values.autoscaling -}}
{{- $at := .samples | default .component -}}
{{- if eq $scaling.kind "hpa" -}}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {{- include "ziya.meta" (list $root .component) | nindent 2 }}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: {{ .target | default (include "ziya.name" (list $root .component)) }}}
  minReplicas: {{ .range.min }}
  maxReplicas: {{ .range.max }}
  metrics:
  {{- range .metrics }}
  {{- if .fold }}
    - type: External # all pods export the same number: the adapter takes the largest of them
      external:
        metric: {name: {{ .name }}, selector: {matchLabels: {{ merge (dict "service" (include "ziya.name" (list $root $at))) (.labels | default dict) | toJson }}}}
        target: {type: AverageValue, averageValue: {{ include "ziya.quantity" .target }}}
  {{- else }}
    - type: Pods
      pods: {metric: {name: {{ .name }}}, target: {type: AverageValue, averageValue: {{ include "ziya.quantity" .target }}}}
  {{- end }}
  {{- end }}
  behavior: {{- include "ziya.behavior" $root | nindent 4 }}
{{- else -}}
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata: {{- include "ziya.meta" (list $root .component) | nindent 2 }}
spec:
  scaleTargetRef: {name: {{ include "ziya.name" (list $root .component) }}}
  pollingInterval: {{ $scaling.pollSeconds }}
  cooldownPeriod: {{ $scaling.downSeconds }} # from one replica to none
  minReplicaCount: {{ .range.min }}
  maxReplicaCount: {{ .range.max }}
  {{- if gt (int .range.min) 0 }}
  fallback: {failureThreshold: 4, replicas: {{ .range.min }}, behavior: currentReplicasIfHigher} # Prometheus is away
  {{- end }}
  advanced:
    horizontalPodAutoscalerConfig:
      behavior: {{- include "ziya.behavior" $root | nindent 8 }}
  triggers:
  {{- range .metrics }}
    - type: prometheus
      metadata:
        serverAddress: {{ $scaling.prometheus }}
        query: {{ printf "%s(%s%s)" (.fold | default "sum") .name (include "ziya.samples" (list $root $at (.labels | default dict))) | quote }}
        threshold: {{ .target | quote }}
  {{- end }}
  {{- with .wake }}
    - type: prometheus
      metadata:
        serverAddress: {{ $scaling.prometheus }}
        query: {{ . | quote }}
        threshold: "1000000" # wakes, and never adds
        activationThreshold: "0"
  {{- end }}
{{- end }}
{{- end }}

{{/* Takes the root. */}}
{{- define "ziya.behavior" -}}
scaleUp:
  stabilizationWindowSeconds: 0
  policies: [{type: Percent, value: 100, periodSeconds: 15}, {type: Pods, value: 2, periodSeconds: 15}]
scaleDown:
  stabilizationWindowSeconds: {{ .Values.autoscaling.downSeconds }}
  policies: [{type: Pods, value: 1, periodSeconds: 60}]
{{- end }}

{{/* A number as Kubernetes writes it: 0.5 is 500m. */}}
{{- define "ziya.quantity" -}}
{{ round (mulf . 1000) 0 | int64 }}m
{{- end }}

{{/* Requests at the gateway wake a stage that may have no replica. (list $ values) */}}
{{- define "ziya.wake" -}}
{{- if eq (int (index . 1).scaling.min) 0 -}}
sum(ziya_gateway_in_flight{{ include "ziya.samples" (list (index . 0) "gateway-pods") }})
{{- end }}
{{- end }}
