{{/* What the schema cannot say: refusals with cause and fix. */}}

{{/* Takes root, name and service. */}}
{{- define "roundhouse.check" -}}
{{- $s := .service -}}
{{- $at := printf "services.%s" .name -}}
{{- $drain := $s.drain -}}
{{- $needed := addf $drain.preStopS $drain.waitS $drain.graceS 5 -}}
{{- if lt (float64 $s.terminationGracePeriodS) $needed -}}
{{- fail (printf "%s.terminationGracePeriodS is %v, but drain.preStopS + waitS + graceS + 5 is %v: requests would be cut off; raise it or shorten drain" $at $s.terminationGracePeriodS $needed) -}}
{{- end -}}
{{- if eq (int $s.port) (int $s.publicPort) -}}
{{- fail (printf "%s.port and publicPort are both %v: give them different ports" $at $s.port) -}}
{{- end -}}
{{- range $name, $_ := $s.env -}}
{{- if regexMatch "^(RH_|(ENVIRONMENT|LOG_LEVEL|(NATS|REDIS|DATABASE)_URL(_FILE)?)$)" $name -}}
{{- fail (printf "%s.env.%s is decided elsewhere: settings of the service go into settings without their prefix, the others are environment, logLevel, bundled and external" $at $name) -}}
{{- end -}}
{{- end -}}
{{- if $s.autoscaling.enabled -}}
{{- include "roundhouse.checkAutoscaling" (dict "at" $at "service" $s) -}}
{{- end -}}
{{- end -}}

{{- define "roundhouse.checkAutoscaling" -}}
{{- $a := .service.autoscaling -}}
{{- $requests := .service.resources.requests | default dict -}}
{{- if gt (int $a.min) (int $a.max) -}}
{{- fail (printf "%s.autoscaling.min is %v, which is above max %v: lower min or raise max" .at $a.min $a.max) -}}
{{- end -}}
{{- if not (or $a.cpuPercent $a.memoryPercent $a.requestsPerSecond) -}}
{{- fail (printf "%s.autoscaling looks at nothing: set cpuPercent, memoryPercent or requestsPerSecond, or enabled: false" .at) -}}
{{- end -}}
{{- if and $a.cpuPercent (not $requests.cpu) -}}
{{- fail (printf "%s.autoscaling.cpuPercent is a part of resources.requests.cpu, which is missing: set it, or cpuPercent: 0" .at) -}}
{{- end -}}
{{- if and $a.memoryPercent (not $requests.memory) -}}
{{- fail (printf "%s.autoscaling.memoryPercent is a part of resources.requests.memory, which is missing: set it, or memoryPercent: 0" .at) -}}
{{- end -}}
{{- end -}}

{{/* A URL of `external`; never shown, since it holds a password. Takes store, value, url and schemes. */}}
{{- define "roundhouse.checkUrl" -}}
{{- if not .url -}}
{{- fail (printf "external.%s is missing: bundled.%s.enabled is false, so say where it is, or name a Secret in external.existingSecret" .value .store) -}}
{{- end -}}
{{- if not (has (first (splitList "://" .url)) .schemes) -}}
{{- fail (printf "external.%s must begin with %s://" .value (join ":// or " .schemes)) -}}
{{- end -}}
{{- end -}}

{{/* External PostgreSQL outlives the release, and with it what was sealed: a seal generated here would be lost. */}}
{{- define "roundhouse.checkSecrets" -}}
{{- $s := .Values.secrets -}}
{{- if and (not .Values.bundled.postgres.enabled) (not $s.existingSecret) -}}
{{- range $key := list "keySeal" "adminPassword" -}}
{{- if not (get $s $key) -}}
{{- fail (printf "secrets.%s is missing: with external PostgreSQL give it, or name a Secret with admin-password, key-seal and mail-url in secrets.existingSecret" $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $s.keySeal (lt (len $s.keySeal) 16) -}}
{{- fail "secrets.keySeal is shorter than 16 characters" -}}
{{- end -}}
{{- if and $s.adminPassword (lt (len $s.adminPassword) 8) -}}
{{- fail "secrets.adminPassword is shorter than 8 characters" -}}
{{- end -}}
{{- end -}}
