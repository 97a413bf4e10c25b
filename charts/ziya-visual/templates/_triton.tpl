{{/* The container in which Triton runs the language model, in our Deployment and in KServe's. */}}

{{/* (dict "root" $ "folder" of-the-checkpoint) */}}
{{- define "ziya.triton" -}}
{{- $values := .root.Values.llama -}}
{{ include "ziya.container" (list .root $values.image.repository) }}
command: [tritonserver]
args:
  - --model-repository=/opt/ziya/model_repository
  - --disable-auto-complete-config # it would start, and throw away, a whole second Python
  - --model-control-mode=none
  - --log-info=false
  - --http-port=8000
  - --grpc-port=8001
  - --metrics-port=8002
  # A connection ends now and then, so that gateways find pods that came later; answers on it have their time.
  - --grpc-max-connection-age=30000
  - --grpc-max-connection-age-grace={{ mul .root.Values.requestTimeout 1000 }}
  - --exit-timeout-secs={{ add .root.Values.drainSeconds 5 }}
  {{- if .root.Values.tls.enabled }}
  - --grpc-use-ssl-mutual=true
  - --grpc-server-cert=/etc/ziya/tls/tls.crt
  - --grpc-server-key=/etc/ziya/tls/tls.key
  - --grpc-root-cert=/etc/ziya/tls/ca.crt
  # HTTP has no certificates: to those who do not know this pod's id it says whether it is well, and nothing else.
  - --http-restricted-api=metadata,inference,shared-memory,model-config,model-repository,statistics,trace,logging:x-ziya-pod=$(POD_UID)
  {{- end }}
env:
  {{- if .root.Values.tls.enabled }}
  - {name: POD_UID, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}
  {{- end }}
  {{- include "ziya.env.quiet" .root | nindent 2 }}
  - {name: OMP_NUM_THREADS, value: {{ $values.threads | quote }}}
  - {name: ZIYA_LOG_LEVEL, value: {{ .root.Values.logLevel }}}
  - {name: ZIYA_CHECKPOINT, value: {{ .folder }}}
  {{- include "ziya.env.redis" (list .root "ZIYA_REDIS_URL" "llama") | nindent 2 }}
  {{- include "ziya.env.tls" .root | nindent 2 }}
  - {name: ZIYA_REDIS_START_SECONDS, value: {{ .root.Values.redis.startSeconds | quote }}}
  - {name: ZIYA_REQUEST_TIMEOUT, value: {{ .root.Values.requestTimeout | quote }}}
  - {name: ZIYA_DRAIN_SECONDS, value: {{ .root.Values.drainSeconds | quote }}}
  - {name: ZIYA_LLAMA_ENGINE, value: {{ $values.engine }}}
  {{- if eq $values.engine "vllm" }}
  - {name: ZIYA_LLAMA_VLLM_TENSOR_PARALLEL, value: {{ $values.vllm.tensorParallel | quote }}}
  - {name: ZIYA_LLAMA_VLLM_MEMORY, value: {{ $values.vllm.memory | quote }}}
  - {name: ZIYA_LLAMA_VLLM_QUANTISE, value: {{ $values.vllm.quantise | quote }}}
  - {name: ZIYA_LLAMA_VLLM_ADAPTERS, value: {{ $values.vllm.adapters | quote }}}
  {{- end }}
  - {name: ZIYA_LLAMA_DEVICE, value: {{ $values.device }}}
  - {name: ZIYA_LLAMA_DTYPE, value: {{ $values.dtype }}}
  - {name: ZIYA_LLAMA_THREADS, value: {{ $values.threads | quote }}}
  - {name: ZIYA_LLAMA_MAX_RUNNING, value: {{ $values.maxRunning | int | quote }}}
  - {name: ZIYA_LLAMA_MAX_WAITING, value: {{ $values.maxWaiting | int | quote }}}
  - {name: ZIYA_LLAMA_MAX_CONTEXT, value: {{ $values.maxContext | int | quote }}}
  - {name: ZIYA_LLAMA_QUANTISE, value: {{ $values.quantise }}}
  - {name: ZIYA_LLAMA_KV_BLOCKS, value: {{ $values.kvBlocks | int | quote }}}
  - {name: ZIYA_LLAMA_LOOKUP_TOKENS, value: {{ $values.lookupTokens | quote }}}
  {{- if $values.adaptersClaim }}
  - {name: ZIYA_LLAMA_ADAPTERS_DIR, value: /adapters}
  {{- end }}
# Triton listens when the model is loaded, has run once, and has Redis or has waited for it long enough: that takes its time
# beside the weights', so that nobody is started again for want of Redis. From then on alive is Triton's own word, and asks
# nobody. Should the model's process die, the server ends with it (services/llama/lifeline.py).
startupProbe: {httpGet: {path: /v2/models/ziya_llama/ready, port: 8000}, periodSeconds: 5, timeoutSeconds: 2, failureThreshold: {{ div (add $values.startSeconds .root.Values.redis.startSeconds) 5 }}}
livenessProbe: {httpGet: {path: /v2/health/live, port: 8000}, periodSeconds: 10, timeoutSeconds: 5, failureThreshold: 6}
readinessProbe: {httpGet: {path: /v2/models/ziya_llama/ready, port: 8000}, periodSeconds: 5, timeoutSeconds: 3}
{{ include "ziya.lifecycle" .root }}
resources: {{- toYaml $values.resources | nindent 2 }}
{{- end }}

{{/* Triton and the model's process exchange tensors here. Takes the root. */}}
{{- define "ziya.triton.mounts" -}}
{{- include "ziya.secrets.mounts" (list . "llama") }}
- {name: tmp, mountPath: /tmp}
- {name: memory, mountPath: /dev/shm}
{{- if .Values.llama.adaptersClaim }}
- {name: adapters, mountPath: /adapters, readOnly: true}
{{- end }}
{{- end }}

{{/* Takes the root. */}}
{{- define "ziya.triton.volumes" -}}
{{- include "ziya.secrets.volumes" (list . "llama" "llama") }}
- {name: tmp, emptyDir: {}}
- {name: memory, emptyDir: {medium: Memory, sizeLimit: {{ .Values.llama.sharedMemory }}}}
{{- if .Values.llama.adaptersClaim }}
- {name: adapters, persistentVolumeClaim: {claimName: {{ .Values.llama.adaptersClaim }}, readOnly: true}}
{{- end }}
{{- end }}
