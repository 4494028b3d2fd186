{{/* Names and labels. */}}

{{- define "roundhouse.fullname" -}}
{{- $name := .Values.fullnameOverride | default .Release.Name -}}
{{- if gt (len $name) 40 -}}
{{- fail (printf "the name %q has more than 40 characters: give a shorter release name or set fullnameOverride" $name) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{/* What a selector may use: never changes during the life of a release. Takes root and name. */}}
{{- define "roundhouse.selector" -}}
app.kubernetes.io/name: roundhouse
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .name }}
{{- end -}}

{{- define "roundhouse.labels" -}}
{{ include "roundhouse.selector" . }}
app.kubernetes.io/part-of: roundhouse
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "roundhouse.image" -}}
{{- $image := .service.image -}}
{{- $repository := $image.repository | default (printf "roundhouse-%s" .name) -}}
{{- if $image.registry }}{{ $image.registry | trimSuffix "/" }}/{{ end }}{{ $repository }}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default .root.Chart.AppVersion }}{{ end }}
{{- end -}}

{{/* `users` -> `RH_USERS_` */}}
{{- define "roundhouse.prefix" -}}
RH_{{ . | upper | replace "-" "_" }}_
{{- end -}}

{{/* A setting as the process reads it: 1048576 stays that, where Go's own way writes 1.048576e+06. */}}
{{- define "roundhouse.text" -}}
{{- if kindIs "float64" . -}}
{{- if eq . (floor .) }}{{ printf "%.0f" . }}{{ else }}{{ . }}{{ end -}}
{{- else -}}
{{- toString . -}}
{{- end -}}
{{- end -}}
