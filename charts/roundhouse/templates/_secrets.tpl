{{/* What the two Secrets hold. Generated values are kept: an upgrade reads them back from the cluster. */}}

{{/* The value of a key in a Secret of the cluster, empty where there is none. Takes root, secret and key. */}}
{{- define "roundhouse.kept" -}}
{{- $found := lookup "v1" "Secret" .root.Release.Namespace .secret -}}
{{- if $found }}{{ get ($found.data | default dict) .key | b64dec }}{{ end -}}
{{- end -}}

{{- define "roundhouse.secretsName" -}}
{{- .Values.secrets.existingSecret | default (printf "%s-secrets" (include "roundhouse.fullname" .)) -}}
{{- end -}}

{{/* The Secret that holds the URL of a store. Takes root and store. */}}
{{- define "roundhouse.storesName" -}}
{{- $values := .root.Values -}}
{{- $isBundled := (get $values.bundled .store).enabled -}}
{{- if and (not $isBundled) $values.external.existingSecret -}}
{{- $values.external.existingSecret -}}
{{- else -}}
{{- include "roundhouse.fullname" .root }}-stores
{{- end -}}
{{- end -}}

{{- define "roundhouse.urlKey" -}}
{{- get (dict "nats" "nats-url" "valkey" "redis-url" "postgres" "database-url") . -}}
{{- end -}}

{{- define "roundhouse.urlVariable" -}}
{{- get (dict "nats" "NATS_URL" "valkey" "REDIS_URL" "postgres" "DATABASE_URL") . -}}
{{- end -}}

{{/* Both Secrets' text as YAML, made once a rendering: made twice, what is random would differ from its own checksum. */}}
{{- define "roundhouse.generated" -}}
{{- if not (hasKey .Values "generatedOnce") -}}
{{- $_ := set .Values "generatedOnce" (dict "secrets" (include "roundhouse.makeSecrets" . | fromYaml) "stores" (include "roundhouse.makeStores" . | fromYaml)) -}}
{{- end -}}
{{- toYaml .Values.generatedOnce -}}
{{- end -}}

{{- define "roundhouse.makeSecrets" -}}
{{- include "roundhouse.checkSecrets" . -}}
{{- if not .Values.secrets.existingSecret -}}
{{- $name := include "roundhouse.secretsName" . -}}
{{- $admin := include "roundhouse.kept" (dict "root" . "secret" $name "key" "admin-password") -}}
{{- $seal := include "roundhouse.kept" (dict "root" . "secret" $name "key" "key-seal") -}}
admin-password: {{ .Values.secrets.adminPassword | default $admin | default (randAlphaNum 24) | quote }}
key-seal: {{ .Values.secrets.keySeal | default $seal | default (randAlphaNum 48) | quote }}
mail-url: {{ .Values.secrets.mailUrl | default "" | quote }}
{{- end -}}
{{- end -}}

{{- define "roundhouse.makeStores" -}}
{{- $full := include "roundhouse.fullname" . -}}
{{- $found := dict -}}
{{- range $store, $value := dict "nats" "natsUrl" "valkey" "redisUrl" "postgres" "databaseUrl" -}}
{{- if (get $.Values.bundled $store).enabled -}}
{{- $key := printf "%s-password" $store -}}
{{- $kept := include "roundhouse.kept" (dict "root" $ "secret" (printf "%s-stores" $full) "key" $key) -}}
{{- $password := $kept | default (randAlphaNum 32) -}}
{{- $_ := set $found $key $password -}}
{{- $url := get (dict
  "nats" (printf "nats://roundhouse:%s@%s-nats:4222" $password $full)
  "valkey" (printf "redis://:%s@%s-valkey:6379/0" $password $full)
  "postgres" (printf "postgresql://roundhouse:%s@%s-postgres:5432/roundhouse" $password $full)) $store -}}
{{- $_ := set $found (include "roundhouse.urlKey" $store) $url -}}
{{- else if not $.Values.external.existingSecret -}}
{{- $url := get $.Values.external $value -}}
{{- $schemes := get (dict "nats" (list "nats" "tls") "valkey" (list "redis" "rediss") "postgres" (list "postgresql" "postgres")) $store -}}
{{- include "roundhouse.checkUrl" (dict "store" $store "value" $value "url" $url "schemes" $schemes) -}}
{{- $_ := set $found (include "roundhouse.urlKey" $store) $url -}}
{{- end -}}
{{- end -}}
{{- if .Values.bundled.nats.enabled -}}
{{- $_ := set $found "nats.conf" (include "roundhouse.natsConf" (dict "values" .Values.bundled.nats "password" (get $found "nats-password"))) -}}
{{- end -}}
{{- if .Values.bundled.valkey.enabled -}}
{{- $_ := set $found "valkey.conf" (include "roundhouse.valkeyConf" (dict "values" .Values.bundled.valkey "password" (get $found "valkey-password"))) -}}
{{- end -}}
{{- toYaml $found -}}
{{- end -}}

{{- define "roundhouse.natsConf" -}}
server_name: roundhouse
listen: 0.0.0.0:4222
http: 0.0.0.0:8222
max_payload: 1MB
authorization { user: roundhouse, password: {{ .password | quote }} }
jetstream {
  store_dir: /data
  # Without it a power cut may lose two minutes of acknowledged messages.
  sync_interval: always
  max_mem: 256MB
  max_file: {{ .values.fileMax }}
}
{{ end -}}

{{- define "roundhouse.valkeyConf" -}}
bind * -::*
port 6379
requirepass {{ .password }}
save ""
appendonly no
maxmemory {{ .values.memoryMax }}
maxmemory-policy allkeys-lru
dir /tmp
{{ end -}}
