{{/* The pod of a service. Takes root, services, service and name. */}}
{{- define "roundhouse.pod" -}}
{{- $root := .root -}}
{{- $service := .service -}}
{{- $full := include "roundhouse.fullname" $root -}}
metadata:
  labels:
    {{- include "roundhouse.labels" . | nindent 4 }}
    {{- with $service.podLabels }}{{ toYaml . | nindent 4 }}{{ end }}
  annotations:
    checksum/config: {{ print (include "roundhouse.variables" .) (ternary ($root.Files.Get "files/listen.py") "" (gt (int $service.publicPort) 0)) | sha256sum }}
    checksum/secrets: {{ include "roundhouse.secretText" . | sha256sum }}
    {{- if $root.Values.scrapeAnnotations }}
    prometheus.io/scrape: "true"
    prometheus.io/port: {{ $service.port | quote }}
    prometheus.io/path: /metrics
    {{- end }}
    {{- with $service.podAnnotations }}{{ toYaml . | nindent 4 }}{{ end }}
spec:
  serviceAccountName: {{ $full }}-{{ .name }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ $service.terminationGracePeriodS }}
  securityContext:
    {{- toYaml $service.podSecurityContext | nindent 4 }}
  {{- with $root.Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $service.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with $service.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $service.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $service.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $service.topologySpread }}
  topologySpreadConstraints:
    {{- range . }}
    - {{ toYaml . | nindent 6 | trim }}
      labelSelector:
        matchLabels:
          {{- include "roundhouse.selector" $ | nindent 10 }}
      # Old pods of a roll-out do not count.
      matchLabelKeys: [pod-template-hash]
    {{- end }}
  {{- end }}
  containers:
    - {{ include "roundhouse.container" . | nindent 6 | trim }}
  volumes:
    - name: tmp
      emptyDir:
        medium: Memory
        sizeLimit: {{ $service.tmpSize }}
    {{- with include "roundhouse.secretSources" . }}
    - name: secrets
      projected:
        # 0440: for the group of the pod's securityContext
        defaultMode: 288
        sources:
          {{- . | nindent 10 }}
    {{- end }}
    {{- if $service.publicPort }}
    - name: files
      configMap:
        name: {{ $full }}-{{ .name }}-files
    {{- end }}
{{- end -}}

{{- define "roundhouse.container" -}}
{{- $service := .service -}}
{{- $prefix := include "roundhouse.prefix" .name -}}
name: {{ .name }}
image: {{ include "roundhouse.image" . | quote }}
imagePullPolicy: {{ $service.image.pullPolicy }}
{{- if $service.publicPort }}
command: [python, /etc/roundhouse/listen.py]
args: [{{ $service.settings.HOST | default "0.0.0.0" | quote }}, {{ $service.publicPort | quote }}, {{ $prefix }}FD, services.{{ .name }}]
{{- end }}
envFrom:
  - configMapRef:
      name: {{ include "roundhouse.fullname" .root }}-{{ .name }}
env:
  - name: {{ $prefix }}REPLICA
    valueFrom:
      fieldRef:
        fieldPath: metadata.name
  {{- range $store := $service.stores }}
  - name: {{ include "roundhouse.urlVariable" $store }}_FILE
    value: /run/roundhouse/{{ include "roundhouse.urlKey" $store }}
  {{- end }}
  {{- range $setting, $key := $service.secretSettings }}
  - name: {{ $prefix }}{{ $setting }}_FILE
    value: /run/roundhouse/{{ $key }}
  {{- end }}
ports:
  - name: http
    containerPort: {{ $service.port }}
    protocol: TCP
  {{- if $service.publicPort }}
  - name: public
    containerPort: {{ $service.publicPort }}
    protocol: TCP
  {{- end }}
startupProbe:
  httpGet: {path: /live, port: http}
  {{- toYaml $service.probes.startup | nindent 2 }}
livenessProbe:
  httpGet: {path: /live, port: http}
  {{- toYaml $service.probes.liveness | nindent 2 }}
readinessProbe:
  httpGet: {path: /ready, port: http}
  {{- toYaml $service.probes.readiness | nindent 2 }}
{{- if $service.drain.preStopS }}
lifecycle:
  preStop:
    sleep:
      seconds: {{ $service.drain.preStopS }}
{{- end }}
resources:
  {{- toYaml $service.resources | nindent 2 }}
securityContext:
  {{- toYaml $service.securityContext | nindent 2 }}
volumeMounts:
  - name: tmp
    mountPath: /tmp
  {{- if include "roundhouse.secretSources" . }}
  - name: secrets
    mountPath: /run/roundhouse
    readOnly: true
  {{- end }}
  {{- if $service.publicPort }}
  - name: files
    mountPath: /etc/roundhouse
    readOnly: true
  {{- end }}
{{- end -}}

{{/* Of each Secret only the keys that this service needs. */}}
{{- define "roundhouse.secretSources" -}}
{{- range $store := .service.stores }}
- secret:
    name: {{ include "roundhouse.storesName" (dict "root" $.root "store" $store) }}
    items:
      - key: {{ include "roundhouse.urlKey" $store }}
        path: {{ include "roundhouse.urlKey" $store }}
{{- end }}
{{- with .service.secretSettings }}
- secret:
    name: {{ include "roundhouse.secretsName" $.root }}
    items:
      {{- range $_, $key := . }}
      - key: {{ $key }}
        path: {{ $key }}
      {{- end }}
{{- end }}
{{- end -}}

{{/* What a change of should start new pods: the service's own keys, as far as the chart makes them, and where they come from. */}}
{{- define "roundhouse.secretText" -}}
{{- $generated := include "roundhouse.generated" .root | fromYaml -}}
{{- include "roundhouse.secretSources" . -}}
{{- range $store := .service.stores }}{{ get ($generated.stores | default dict) (include "roundhouse.urlKey" $store) }}{{ end -}}
{{- range $_, $key := .service.secretSettings }}{{ get ($generated.secrets | default dict) $key }}{{ end -}}
{{- end -}}
