{{/* What the bundled servers have in common: one pod, no token, the restricted profile. */}}

{{/* The headless Service. Takes root, name and port. */}}
{{- define "roundhouse.storeService" -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ include "roundhouse.fullname" .root }}-{{ .name }}
  labels:
    {{- include "roundhouse.labels" . | nindent 4 }}
spec:
  clusterIP: None
  selector:
    {{- include "roundhouse.selector" . | nindent 4 }}
  ports:
    - name: {{ .name }}
      port: {{ .port }}
      targetPort: {{ .name }}
      protocol: TCP
{{- end -}}

{{/* The head of the StatefulSet, up to the containers. Takes root, name, uid and graceS. */}}
{{- define "roundhouse.storeHead" -}}
apiVersion: apps/v1
kind: StatefulSet
metadata:
  name: {{ include "roundhouse.fullname" .root }}-{{ .name }}
  labels:
    {{- include "roundhouse.labels" . | nindent 4 }}
spec:
  replicas: 1
  serviceName: {{ include "roundhouse.fullname" .root }}-{{ .name }}
  selector:
    matchLabels:
      {{- include "roundhouse.selector" . | nindent 6 }}
  template:
    metadata:
      labels:
        # No version: a new chart alone must not restart a database.
        {{- include "roundhouse.selector" . | nindent 8 }}
      annotations:
        checksum/secrets: {{ include "roundhouse.storeText" . | sha256sum }}
    spec:
      serviceAccountName: {{ include "roundhouse.fullname" .root }}-{{ .name }}
      automountServiceAccountToken: false
      enableServiceLinks: false
      terminationGracePeriodSeconds: {{ .graceS }}
      securityContext:
        runAsNonRoot: true
        runAsUser: {{ .uid }}
        runAsGroup: {{ .uid }}
        fsGroup: {{ .uid }}
        fsGroupChangePolicy: OnRootMismatch
        seccompProfile: {type: RuntimeDefault}
      {{- with .root.Values.imagePullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
{{- end -}}

{{- define "roundhouse.storeText" -}}
{{- $stores := (include "roundhouse.generated" .root | fromYaml).stores -}}
{{- get $stores (printf "%s-password" .name) }}{{ get $stores (printf "%s.conf" .name) -}}
{{- end -}}

{{/* The one key of the Secret that a server reads, as a volume. Takes root and key. */}}
{{- define "roundhouse.storeSecret" -}}
- name: secrets
  secret:
    secretName: {{ include "roundhouse.fullname" .root }}-stores
    defaultMode: 288
    items:
      - key: {{ .key }}
        path: {{ .key }}
{{- end -}}

{{- define "roundhouse.storeVolume" -}}
volumeClaimTemplates:
  - metadata:
      name: data
    spec:
      accessModes: [ReadWriteOnce]
      {{- with .storageClass }}
      storageClassName: {{ . }}
      {{- end }}
      resources:
        requests:
          storage: {{ .storage }}
{{- end -}}

{{- define "roundhouse.storeSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end -}}
