#!/usr/bin/env bash
# Smoke test of a deployed stack through its public interfaces: onboards a site, sends and queries readings, and decommissions
# the site. With --read-only it changes nothing (for production, where each site has a paid subscription).
#
# Requires jq, fieldctl (FIELDCTL, or on the PATH), and the settings of fieldctl: FIELDSTATION_STACK, AWS_REGION, credentials. The
# stack needs a kit of air_temperature in stock (docs/integrating.md, "Kits"; `make smoke` delivers one), and the key of a Stripe
# test account.
set -euo pipefail
command -v jq > /dev/null || { echo "jq is missing: install it (Debian: apt-get install jq)." >&2; exit 1; }
FIELDCTL=${FIELDCTL:-fieldctl}
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT

log() { printf '%s %s\n' "$(date -u +%H:%M:%SZ)" "$*"; }
fail() { log "FAILED: $*" >&2; exit 1; }
# Reports the command that failed, because some commands print no message.
trap 'log "FAILED: line $LINENO: $BASH_COMMAND" >&2' ERR

log "checking that the API responds"
"$FIELDCTL" --json sites list --status active --limit 1 > /dev/null
"$FIELDCTL" --json sites show 00000000-0000-5000-8000-000000000000 > /dev/null 2> "$work/error" && fail "the API returns a site that does not exist"
[ -s "$work/error" ] || fail "there is no error message for a site that does not exist"
log "reading the event log and the failures"
"$FIELDCTL" --json events list --type SiteCreated --limit 1 > /dev/null
"$FIELDCTL" --json failures groups > /dev/null
stuck=$("$FIELDCTL" --json sagas list --stuck | jq -s length)
[ "$stuck" -eq 0 ] || fail "$stuck sagas are stuck: $FIELDCTL sagas list --stuck"

if [ "${1-}" = --read-only ]; then
  log "passed (read-only)"
  exit 0
fi

log "onboarding a site"
cat > "$work/site.json" << JSON
{ "name": "Smoke test", "operator": "Fieldstation", "plan": "community", "paymentMethod": "pm_card_visa",
  "location": { "latitude": 37.69, "longitude": -105.92, "elevationM": 2317 },
  "sensors": [{ "metric": "air_temperature", "unit": "Cel", "min": -50, "max": 50 }] }
JSON
if ! "$FIELDCTL" --json sites onboard "$work/site.json" --wait > "$work/onboarded.json"; then
  site=$(jq -er .siteId "$work/onboarded.json") || fail "the site could not be registered: see the message above"
  "$FIELDCTL" sites show "$site" >&2
  if [ "$(jq -r .failure.error "$work/onboarded.json")" = KitsOutOfStock ]; then
    bus=${FIELDSTATION_STACK:-fieldstation}-events
    cat >&2 << HELP
No kit of air_temperature is in stock. Each sensor needs a kit, and a new stack has none. Deliver one:
  on a local stack:  make kits METRIC=air_temperature
  on AWS:            aws events put-events --entries '[{"EventBusName": "$bus", "Source": "com.example.supplier",
    "DetailType": "KitsDelivered", "Detail": "{\\"deliveryId\\": \\"smoke-1\\", \\"kits\\": [{\\"metric\\": \\"air_temperature\\", \\"quantity\\": 1}]}"}]'
HELP
  fi
  fail "site $site was not onboarded: $FIELDCTL trace $site"
fi
site=$(jq -er .siteId "$work/onboarded.json")
"$FIELDCTL" --json sites show "$site" > "$work/shown.json"
[ "$(jq -r .status "$work/shown.json")" = ACTIVE ] || fail "site $site is not ACTIVE: $FIELDCTL trace $site"
sensor=$(jq -er '.sensors[0].sensorId' "$work/shown.json")

log "sending and querying readings"
start=$(date -u -d '10 minutes ago' +%Y-%m-%dT%H:%M:00Z)
jq -n --arg site "$site" --arg sensor "$sensor" --arg at "$start" \
  '{ bundleId: "smoke-1", siteId: $site, series: [{ sensorId: $sensor, samples: [[$at, 21.5]] }] }' > "$work/bundle.json"
# The sensors can send readings when project-sensors has registered them, a moment after the site is ACTIVE. Until then, telemetry
# rejects them as unknown.
within_a_minute() { for _ in $(seq 60); do "$@" && return; sleep 1; done; return 1; }
known() { "$FIELDCTL" --json readings get "$sensor" --from "$start" > "$work/readings.json" 2> /dev/null; }
within_a_minute known || fail "telemetry does not know sensor $sensor: $FIELDCTL failures list --source project-sensors"
"$FIELDCTL" --json readings send "$work/bundle.json" > /dev/null
stored() { known && grep -q 21.5 "$work/readings.json"; }
within_a_minute stored || fail "the reading of sensor $sensor can't be queried: $FIELDCTL failures list"

log "decommissioning the site"
"$FIELDCTL" --json sites teardown "$site" --yes --wait > /dev/null || fail "site $site could not be decommissioned: $FIELDCTL trace $site"
[ "$("$FIELDCTL" --json sites show "$site" | jq -r .status)" = DECOMMISSIONED ] || fail "site $site is not DECOMMISSIONED: $FIELDCTL trace $site"
log "passed"
