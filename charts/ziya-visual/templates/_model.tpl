{{/* The checkpoint in a pod: where it lies, and how it comes there. */}}

{{/* Takes the root. */}}
{{- define "ziya.model.folder" -}}
{{ if eq .Values.model.source "image" }}{{ .Values.model.path }}{{ else }}/models{{ end }}
{{- end }}

{{/* Takes the root. */}}
{{- define "ziya.model.mount" -}}
{{- if ne .Values.model.source "image" }}
- {name: model, mountPath: /models, readOnly: true
{{- if eq .Values.model.source "pvc" }}{{ with .Values.model.pvc.path }}, subPath: {{ . | quote }}{{ end }}{{ end }}}
{{- end }}
{{- end }}

{{/* Takes the root. */}}
{{- define "ziya.model.volume" -}}
{{- if eq .Values.model.source "pvc" }}
- {name: model, persistentVolumeClaim: {claimName: {{ .Values.model.pvc.claim }}, readOnly: true}}
{{- else if eq .Values.model.source "url" }}
- {name: model, emptyDir: {}}
{{- end }}
{{- end }}

{{/* Copies from the object store what this stage reads of the checkpoint. (list $ part), no part is config.json alone */}}
{{- define "ziya.model.init" -}}
{{- $root := index . 0 -}}
{{- if eq $root.Values.model.source "url" }}
initContainers:
  - name: model
    {{- include "ziya.container" (list $root $root.Values.operator.trainer.repository) | nindent 4 }}
    command: [python, -m, training.download, {{ $root.Values.model.url.from | quote }}, /models{{ with index . 1 }}, {{ . }}{{ end }}]
    env: {{- include "ziya.env.quiet" $root | nindent 6 }}
    {{- with $root.Values.model.url.secretName }}
    envFrom: [{secretRef: {name: {{ . }}}}]
    {{- end }}
    resources: {requests: {cpu: 100m, memory: 256Mi}, limits: {memory: 2Gi}}
    volumeMounts: [{name: model, mountPath: /models}, {name: tmp, mountPath: /tmp}]
{{- end }}
{{- end }}
