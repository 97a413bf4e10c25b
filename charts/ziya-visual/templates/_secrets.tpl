{{/*
Certificates and passwords: what a pod mounts of them. They are files, because files change in a running pod, and the
programs read them again. Those of Redis are its own; with the chart's Redis they are the certificates of everything.
*/}}

{{/* One certificate for a component, good for the name of a Service. (list $ component service) */}}
{{- define "ziya.certificate" -}}
{{- $root := index . 0 -}}
{{- if and $root.Values.tls.enabled $root.Values.tls.issuer.name -}}
{{- $host := include "ziya.name" (list $root (index . 2)) -}}
{{- $namespace := $root.Release.Namespace }}
---
apiVersion: cert-manager.io/v1
kind: Certificate
metadata: {{- include "ziya.meta" . | nindent 2 }}
spec:
  secretName: {{ include "ziya.tls.secret" . }}
  duration: 2160h
  renewBefore: 720h # a month to notice that it failed
  privateKey: {algorithm: ECDSA, size: 256, rotationPolicy: Always}
  usages: [digital signature, server auth, client auth]
  dnsNames: [{{ $host }}, {{ $host }}.{{ $namespace }}, {{ $host }}.{{ $namespace }}.svc, {{ $host }}.{{ $namespace }}.svc.cluster.local]
  issuerRef: {group: cert-manager.io, kind: {{ $root.Values.tls.issuer.kind }}, name: {{ $root.Values.tls.issuer.name }}}
{{- end }}
{{- end }}

{{/* The Secret with a component's certificate. (list $ component) */}}
{{- define "ziya.tls.secret" -}}
{{ (index . 0).Values.tls.secretName | default (printf "%s-tls" (include "ziya.name" .)) }}
{{- end }}

{{/* (list $ component) */}}
{{- define "ziya.secrets.mounts" -}}
{{- $values := (index . 0).Values -}}
{{- if $values.tls.enabled }}
- {name: tls, mountPath: /etc/ziya/tls, readOnly: true}
{{- end }}
{{- if $values.redis.tlsSecret }}
- {name: redis-tls, mountPath: /etc/ziya/redis-tls, readOnly: true}
{{- end }}
{{- if $values.redis.auth.enabled }}
- {name: redis-password, mountPath: /etc/ziya/redis, readOnly: true}
{{- end }}
{{- end }}

{{/* (list $ component user), the user being the component's in Redis */}}
{{- define "ziya.secrets.volumes" -}}
{{- $values := (index . 0).Values -}}
{{- if $values.tls.enabled }}
- {name: tls, secret: {secretName: {{ include "ziya.tls.secret" . }}, defaultMode: 0440}}
{{- end }}
{{- if $values.redis.tlsSecret }}
- {name: redis-tls, secret: {secretName: {{ $values.redis.tlsSecret }}, defaultMode: 0440}}
{{- end }}
{{- if $values.redis.auth.enabled }}
- {name: redis-password, secret: {secretName: {{ $values.redis.auth.secretName }}, defaultMode: 0440, items: [{key: {{ index . 2 }}, path: password}]}}
{{- end }}
{{- end }}

{{/* Of the four stages. Takes the root. */}}
{{- define "ziya.env.tls" -}}
{{- if .Values.tls.enabled }}
- {name: ZIYA_TLS_DIR, value: /etc/ziya/tls}
{{- end }}
{{- end }}

{{/* Where Redis is, and how to get in. (list $ variable user) */}}
{{- define "ziya.env.redis" -}}
{{- $root := index . 0 -}}
{{- $redis := $root.Values.redis -}}
{{- if $redis.enabled -}}
- {name: {{ index . 1 }}, value: "{{ ternary "rediss" "redis" $root.Values.tls.enabled }}://{{ if $redis.auth.enabled }}{{ index . 2 }}@{{ end }}{{ include "ziya.name" (list $root "redis") }}:6379/0"}
{{- else if $redis.urlSecret.name -}}
- name: {{ index . 1 }}
  valueFrom: {secretKeyRef: {name: {{ $redis.urlSecret.name }}, key: {{ $redis.urlSecret.key }}}}
{{- else -}}
- {name: {{ index . 1 }}, value: {{ $redis.url | quote }}}
{{- end }}
{{- if and $redis.enabled $root.Values.tls.enabled }}
- {name: ZIYA_REDIS_TLS_DIR, value: /etc/ziya/tls}
{{- else if $redis.tlsSecret }}
- {name: ZIYA_REDIS_TLS_DIR, value: /etc/ziya/redis-tls}
{{- end }}
{{- if $redis.auth.enabled }}
- {name: ZIYA_REDIS_PASSWORD_FILE, value: /etc/ziya/redis/password}
{{- end }}
{{- end }}
