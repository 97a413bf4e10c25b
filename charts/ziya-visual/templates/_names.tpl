{{/* Names, labels and images. Most take (list $ "component"), where $ is the root. */}}

{{- define "ziya.name" -}}
{{ printf "%s-%s" (trunc 40 (index . 0).Release.Name | trimSuffix "-") (index . 1) }}
{{- end }}

{{- define "ziya.own" -}}
app.kubernetes.io/name: ziya-visual, app.kubernetes.io/instance: {{ (index . 0).Release.Name }}, app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "ziya.selector" -}}
{ {{- include "ziya.own" . -}} }
{{- end }}

{{- define "ziya.labels" -}}
{ {{- include "ziya.own" . }}, app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}, app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}, helm.sh/chart: {{ printf "%s-%s" (index . 0).Chart.Name (index . 0).Chart.Version }}}
{{- end }}

{{/* The metadata of every object that is named for its component. */}}
{{- define "ziya.meta" -}}
name: {{ include "ziya.name" . }}
namespace: {{ (index . 0).Release.Namespace }}
labels: {{ include "ziya.labels" . }}
{{- end }}

{{/* Of what is in no namespace: another release may have our name in another one. */}}
{{- define "ziya.clusterName" -}}
{{ printf "%s-%s" (index . 0).Release.Namespace (include "ziya.name" .) }}
{{- end }}

{{/* (list $ repository) */}}
{{- define "ziya.image" -}}
{{- $image := (index . 0).Values.image -}}
{{ with $image.registry }}{{ . }}/{{ end }}{{ index . 1 }}:{{ $image.tag | default (index . 0).Chart.AppVersion }}
{{- end }}

{{/* What a gRPC client connects to: all pods behind a headless Service, in turn. (list $ component port) */}}
{{- define "ziya.target" -}}
dns:///{{ include "ziya.name" . }}:{{ index . 2 }}
{{- end }}

{{/* The language model, wherever it runs: only Knative has a name of its own for it, which splits canary traffic. */}}
{{- define "ziya.llama.target" -}}
{{- if and .Values.llama.kserve.enabled (eq .Values.llama.kserve.mode "Knative") -}}
{{ include "ziya.name" (list . "llama") }}-predictor.{{ .Release.Namespace }}.svc.cluster.local:80
{{- else -}}
{{ include "ziya.target" (list . "llama-pods" 8001) }}
{{- end }}
{{- end }}

{{/* Takes the root. */}}
{{- define "ziya.llama.selector" -}}
{{- if .Values.llama.kserve.enabled -}}
{serving.kserve.io/inferenceservice: {{ include "ziya.name" (list . "llama") }}}
{{- else -}}
{{ include "ziya.selector" (list . "llama") }}
{{- end }}
{{- end }}

{{/* One of the operator's rules, which stand in one file for this chart and for installing without it. (list $ role) */}}
{{- define "ziya.rules" -}}
{{- $role := index . 1 -}}
{{- range splitList "\n---\n" ((index . 0).Files.Get "files/operator-rbac.yaml") -}}
{{- $one := fromYaml . -}}
{{- if and (eq $one.kind "ClusterRole") (eq $one.metadata.name $role) }}{{ toYaml $one.rules }}{{ end -}}
{{- end }}
{{- end }}
