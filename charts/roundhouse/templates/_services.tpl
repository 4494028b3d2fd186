{{/* The services as they are meant: defaults with the service's own values over them. */}}

{{/* All enabled services by name, as YAML; every template ranges over this. */}}
{{- define "roundhouse.services" -}}
{{- $found := dict -}}
{{- range $name, $own := .Values.services -}}
{{- $service := mergeOverwrite (deepCopy $.Values.defaults) (deepCopy ($own | default dict)) -}}
{{- if $service.enabled -}}
{{- include "roundhouse.check" (dict "root" $ "name" $name "service" $service) -}}
{{- $_ := set $found $name $service -}}
{{- end -}}
{{- end -}}
{{- toYaml $found -}}
{{- end -}}

{{/* Names of the enabled services that this one calls, separated by commas. Takes services, service and name. */}}
{{- define "roundhouse.callees" -}}
{{- $found := list -}}
{{- range $name, $_ := .services -}}
{{- if and (ne $name $.name) (or (has "*" $.service.calls) (has $name $.service.calls)) -}}
{{- $found = append $found $name -}}
{{- end -}}
{{- end -}}
{{- join "," $found -}}
{{- end -}}

{{/* The headless Service that names every replica. Takes root, name and service. */}}
{{- define "roundhouse.replicas" -}}
{{- include "roundhouse.fullname" .root }}-{{ .name }}{{ if .service.publicPort }}-replicas{{ end -}}
{{- end -}}

{{- define "roundhouse.endpoints" -}}
{{- $found := list -}}
{{- range $callee := (include "roundhouse.callees" . | splitList "," | compact) -}}
{{- $service := get $.services $callee -}}
{{- $host := include "roundhouse.replicas" (dict "root" $.root "name" $callee "service" $service) -}}
{{- $found = append $found (printf "%s=%s:%v" $callee $host $service.port) -}}
{{- end -}}
{{- join "," $found -}}
{{- end -}}

{{/* Pods that there are at least. */}}
{{- define "roundhouse.podsMin" -}}
{{- if .autoscaling.enabled }}{{ .autoscaling.min }}{{ else }}{{ .replicas }}{{ end -}}
{{- end -}}

{{/* The plain variables of a service, as YAML. Takes root, services, service and name. */}}
{{- define "roundhouse.variables" -}}
{{- $prefix := include "roundhouse.prefix" .name -}}
{{- $found := dict "ENVIRONMENT" .root.Values.environment "LOG_LEVEL" .root.Values.logLevel -}}
{{- range $key, $value := .service.env }}{{ $_ := set $found $key (include "roundhouse.text" $value) }}{{ end -}}
{{- $_ := set $found (print $prefix "HOST") "0.0.0.0" -}}
{{- if eq .name "health" -}}
{{- $_ := set $found (print $prefix "SERVICES") (include "roundhouse.callees" .) -}}
{{- end -}}
{{- range $key, $value := .service.settings }}{{ $_ := set $found (print $prefix $key) (include "roundhouse.text" $value) }}{{ end -}}
{{- $_ := set $found (print $prefix "PORT") (include "roundhouse.text" .service.port) -}}
{{- $_ := set $found (print $prefix "ENDPOINTS") (include "roundhouse.endpoints" .) -}}
{{- $_ := set $found (print $prefix "DRAIN_WAIT_S") (include "roundhouse.text" .service.drain.waitS) -}}
{{- $_ := set $found (print $prefix "DRAIN_GRACE_S") (include "roundhouse.text" .service.drain.graceS) -}}
{{- toYaml $found -}}
{{- end -}}
