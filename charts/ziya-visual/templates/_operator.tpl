{{/* What the operator's programs share. */}}

{{/* Both halves read the same settings. Takes the root. */}}
{{- define "ziya.env.operator" -}}
{{ include "ziya.env.quiet" . }}
- {name: ZIYA_HOST, value: 0.0.0.0}
- {name: ZIYA_LOG_LEVEL, value: {{ .Values.logLevel }}}
{{ include "ziya.env.redis" (list . "ZIYA_OPERATOR_BROKER_URL" "operator") }}
- {name: ZIYA_OPERATOR_NAMESPACE, value: {{ .Values.operator.namespace | quote }}}
- {name: ZIYA_OPERATOR_TRAINER_IMAGE, value: {{ include "ziya.image" (list . .Values.operator.trainer.repository) }}}
- {name: ZIYA_OPERATOR_TRAINER_ACCOUNT, value: {{ include "ziya.name" (list . "trainer") }}}
- {name: ZIYA_OPERATOR_PROGRESS_URL, value: "http://{{ include "ziya.name" (list . "operator") }}.{{ .Release.Namespace }}.svc:9003"}
{{- end }}

{{/* Binds a role to a component's account, in all namespaces or in the one that is looked at. (list $ component role) */}}
{{- define "ziya.binding" -}}
{{- $root := index . 0 -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ if $root.Values.operator.namespace }}RoleBinding{{ else }}ClusterRoleBinding{{ end }}
metadata:
  name: {{ include "ziya.clusterName" . }}
  {{- with $root.Values.operator.namespace }}
  namespace: {{ . }}
  {{- end }}
  labels: {{ include "ziya.labels" . }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {{ include "ziya.clusterName" (list $root (index . 2)) }}}
subjects: [{kind: ServiceAccount, name: {{ include "ziya.name" . }}, namespace: {{ $root.Release.Namespace }}}]
{{- end }}

{{/* A worker that no longer carries out messages, while Redis answers, is stuck: only a new one helps. */}}
{{- define "ziya.worker.probes" -}}
startupProbe: {exec: {command: [python, -m, services.operator.alive]}, periodSeconds: 10, timeoutSeconds: 10, failureThreshold: 12}
livenessProbe: {exec: {command: [python, -m, services.operator.alive]}, periodSeconds: 60, timeoutSeconds: 10, failureThreshold: 3}
{{- end }}
