#!/usr/bin/env bash
# Prints the events of an entity or of a type, one JSON line each, every event once and in order, and goes on with new ones.
#
#   follow.sh entity <type>/<id> <position file> [seconds]
#   follow.sh type <event type> <position file> [seconds]
#
# The position file remembers what was printed; delete it to begin again. With seconds = 0 the script prints what is new and
# ends. API_URL and FIELDSTATION_API_KEY name the API and a key that may read. Requires curl 7.88 and jq.
#
# An event is printed before its position is written. If the script is killed in between, the next run prints it again. The
# API lists the events of a type for up to 31 days at once, so `follow.sh type` must not pause for longer.
set -euo pipefail

usage() { sed -n '4,5s/^# *//p' "$0" >&2; exit 2; }

# Calls GET /events with these parameters, such as type=SiteCreated. curl repeats calls that are refused by a rate limit.
events() {
  local arguments=() parameter
  for parameter in "$@"; do arguments+=(--data-urlencode "$parameter"); done
  curl --silent --show-error --fail --retry 5 --get "${arguments[@]}" \
    --header @<(printf 'Authorization: Bearer %s\n' "$FIELDSTATION_API_KEY") "$API_URL/events"
}

# Replaces the position file by the file .new in one step.
remember() { mv -- "$position.new" "$position"; }

# The API returns an entity's events in order, from the sequence after the position.
follow_entity() {
  local after page count
  after=$(cat -- "$position" 2> /dev/null || echo 0)
  while :; do
    page=$(events "entity=$subject" "after=$after" limit=100)
    count=$(jq '.events | length' <<< "$page")
    [[ $count != 0 ]] || break
    jq -c '.events[]' <<< "$page"
    after=$(jq '.events[-1].metadata.sequence' <<< "$page")
    printf '%s\n' "$after" > "$position.new"
    remember
  done
}

# The API returns a type's events newest first, from an index that may be seconds behind. So each run reads the last minute
# before its position again, and leaves out the ids that it has printed. Events and ids are passed to jq in files, because
# Linux limits an argument to 128 KiB.
follow_type() {
  local until from to page token=''
  if [[ -e $position ]]; then cp -- "$position" "$work/known"; else echo '{"until": 0, "ids": []}' > "$work/known"; fi
  until=$(($(date +%s) - 5)) # the newest events may still be missing in the index
  from=$(jq -er --argjson day $((until - 86400)) '(if .until == 0 then $day else .until - 60 end) | todate' "$work/known")
  to=$(jq -nr --argjson until "$until" '$until | todate')
  : > "$work/events"
  while :; do
    page=$(events "type=$subject" "from=$from" "to=$to" limit=100 ${token:+"pageToken=$token"})
    jq -c '.events[]' <<< "$page" >> "$work/events"
    token=$(jq -r '.nextPageToken // ""' <<< "$page")
    [[ $token ]] || break
  done
  jq -sc --slurpfile known "$work/known" '($known[0].ids | map({key: ., value: true}) | from_entries) as $printed
    | reverse[] | select($printed[.metadata.eventId] | not)' "$work/events"
  jq -sc --argjson until "$until" '{until: $until, ids: map(.metadata.eventId)}' "$work/events" > "$position.new"
  remember
}

[[ $# -ge 3 && $# -le 4 ]] || usage
kind=$1 subject=$2 position=$3 seconds=${4-5}
[[ $kind == entity || $kind == type ]] || usage
: "${API_URL:?}" "${FIELDSTATION_API_KEY:?}"
work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT

while :; do
  "follow_$kind"
  [[ $seconds != 0 ]] || break
  sleep "$seconds"
done
