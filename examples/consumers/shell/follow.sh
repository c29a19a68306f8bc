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
# API lists the events of a type for up to 31 days at once, so `follow.sh type` must not stand still for longer.
set -euo pipefail

usage() { sed -n '4,5s/^# *//p' "$0" >&2; exit 2; }

# Calls GET /events with these parameters, such as type=SiteCreated. curl repeats calls that are refused by a rate limit.
events() {
  local arguments=() parameter
  for parameter in "$@"; do arguments+=(--data-urlencode "$parameter"); done
  curl --silent --show-error --fail --retry 5 --get "${arguments[@]}" \
    --header @<(printf 'Authorization: Bearer %s\n' "$FIELDSTATION_API_KEY") "$API_URL/events"
}

timestamp() { jq -nr --argjson seconds "$1" '$seconds | todate'; }

# Replaces the position file in one step.
remember() {
  printf '%s\n' "$1" > "$position.new"
  mv -- "$position.new" "$position"
}

# The API returns an entity's events in order, from the sequence after the position.
follow_entity() {
  local after page
  after=$(cat -- "$position" 2> /dev/null || echo 0)
  while page=$(events "entity=$subject" "after=$after" limit=100) || exit; jq -e '.events != []' <<< "$page" > /dev/null; do
    jq -c '.events[]' <<< "$page"
    after=$(jq '.events[-1].metadata.sequence' <<< "$page")
    remember "$after"
  done
}

# The API returns a type's events newest first, from an index that may be seconds behind. So each run reads the last minute
# before its position again, and leaves out the ids that it has printed.
follow_type() {
  local known until from page token=() all='[]' new
  known=$(cat -- "$position" 2> /dev/null || echo '{"until": 0, "ids": []}')
  until=$(($(date +%s) - 5)) # the newest events may still be missing in the index
  from=$(jq --argjson day $((until - 86400)) 'if .until == 0 then $day else .until - 60 end' <<< "$known")
  while
    page=$(events "type=$subject" "from=$(timestamp "$from")" "to=$(timestamp "$until")" limit=100 "${token[@]}") || exit
    all=$(jq -c --argjson all "$all" '$all + .events' <<< "$page")
    token=("pageToken=$(jq -r '.nextPageToken // ""' <<< "$page")")
    [[ ${token[0]} != pageToken= ]]
  do :; done
  new=$(jq -c --argjson known "$known" 'reverse | map(select(.metadata.eventId | IN($known.ids[]) | not))' <<< "$all")
  jq -c '.[]' <<< "$new"
  remember "$(jq -c --argjson until "$until" '{until: $until, ids: map(.metadata.eventId)}' <<< "$all")"
}

[[ $# -ge 3 && $# -le 4 ]] || usage
kind=$1 subject=$2 position=$3 seconds=${4-5}
[[ $kind == entity || $kind == type ]] || usage
: "${API_URL:?}" "${FIELDSTATION_API_KEY:?}"

while :; do
  "follow_$kind"
  [[ $seconds != 0 ]] || break
  sleep "$seconds"
done
