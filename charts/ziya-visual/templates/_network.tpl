{{/*
NetworkPolicies: nobody may talk to a pod of ours, or be talked to by one, but as its file says. Probes of the kubelet
come from the node, which every network plug-in that we know lets through.
*/}}

{{/* The head of a component's policy. (list $ component) */}}
{{- define "ziya.policy" -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{- include "ziya.meta" . | nindent 2 }}
spec:
  podSelector: {matchLabels: {{ include "ziya.selector" . }}}
  policyTypes: [Ingress, Egress]
{{- end }}

{{/* A peer: the pods of some of our components. (list $ "component" "component" …) */}}
{{- define "ziya.peers" -}}
{{- range rest . }}
- podSelector: {matchLabels: {{ include "ziya.selector" (list (index $ 0) .) }}}
{{- end }}
{{- end }}

{{/* The pods of the language model, ours or KServe's. Takes the root. */}}
{{- define "ziya.llama.peer" -}}
- podSelector: {matchLabels: {{ include "ziya.llama.selector" . }}}
{{- end }}

{{/* Whoever gathers metrics. (list $ port) */}}
{{- define "ziya.from.prometheus" -}}
- from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: {{ (index . 0).Values.networkPolicy.prometheusNamespace }}}}}]
  ports: [{port: {{ index . 1 }}, protocol: TCP}]
{{- end }}

{{- define "ziya.to.dns" -}}
- to: # the second is the cache that some clusters have on every node
    - {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}}
    - {ipBlock: {cidr: 169.254.20.10/32}}
  ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
{{- end }}

{{/* Takes the root. */}}
{{- define "ziya.to.redis" -}}
{{- if .Values.redis.enabled -}}
- to: {{- include "ziya.peers" (list . "redis") | nindent 4 }}
  ports: [{port: 6379, protocol: TCP}]
{{- else -}}
- to: [{ipBlock: {cidr: {{ .Values.redis.egress.cidr }}}}]
  ports: [{port: {{ .Values.redis.egress.port }}, protocol: TCP}]
{{- end }}
{{- end }}

{{/* For spans. Takes the root. */}}
{{- define "ziya.to.collector" -}}
{{- if .Values.tracing.endpoint }}
{{- with .Values.networkPolicy.collector }}
- to:
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: {{ .namespace }}}}
    {{- with .cidr }}
    - ipBlock: {cidr: {{ . }}}
    {{- end }}
  ports: [{port: {{ .port }}, protocol: TCP}]
{{- end }}
{{- end }}
{{- end }}

{{/* For the container that copies the checkpoint. Takes the root. */}}
{{- define "ziya.to.store" -}}
{{- if eq .Values.model.source "url" }}
- to: [{ipBlock: {cidr: {{ .Values.networkPolicy.objectStore.cidr }}}}]
  ports: [{port: {{ .Values.networkPolicy.objectStore.port }}, protocol: TCP}]
{{- end }}
{{- end }}

{{/* Takes the root. */}}
{{- define "ziya.to.kubernetes" -}}
- to: [{ipBlock: {cidr: {{ .Values.networkPolicy.apiServer.cidr }}}}]
  ports: {{- range .Values.networkPolicy.apiServer.ports }}
    - {port: {{ . }}, protocol: TCP}
  {{- end }}
{{- end }}
