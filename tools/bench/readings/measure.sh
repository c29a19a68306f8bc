#!/bin/sh
# Measures a batch of readings: the instructions per sample that store-readings executes before it sends the
# rows, then the samples per second of one core and the peak memory, with a DynamoDB that answers at once.
# Fails if the instructions are not linear within 10 %, if a sample takes more than MAX_INSTRUCTIONS, or if the
# memory of a batch of 500 records reaches 64 MB. Prints markdown tables. Needs valgrind.
set -eu
cd "$(dirname "$0")"
if ! command -v valgrind >/dev/null; then
    echo "measure.sh counts instructions with valgrind, which is missing: apt-get install valgrind" >&2
    exit 1
fi
# What a plain sample took before contract version 2, which added flags, revisions and arrivals.
MAX_INSTRUCTIONS=4369
binary=${CARGO_TARGET_DIR:-$PWD/../../../target}/release/bench-readings
cargo build --locked --quiet --release -p bench-readings

instructions() {
    valgrind --tool=callgrind --callgrind-out-file=/dev/null "$binary" build "$@" 2>&1 |
        awk '/Collected/ { print $4 }'
}

echo "| records of 8 x 15 samples | samples | instructions a sample | with a flag |"
echo "|---:|---:|---:|---:|"
first=
for records in 500 2000 10000; do
    samples=$("$binary" build plain "$records" 0)
    row="| $records | $samples |"
    for flags in plain flagged; do
        none=$(instructions "$flags" "$records" 0)
        once=$(instructions "$flags" "$records" 1)
        each=$(awk "BEGIN { printf \"%.0f\", ($once - $none) / $samples }")
        row="$row $each |"
        if [ "$each" -gt "$MAX_INSTRUCTIONS" ]; then
            echo "$each instructions a $flags sample, more than $MAX_INSTRUCTIONS" >&2
            exit 1
        fi
        [ "$flags" = plain ] || continue
        [ -n "$first" ] || first=$each
        if ! awk "BEGIN { exit !($each <= 1.1 * $first && $each >= 0.9 * $first) }"; then
            echo "not linear: $each instructions a sample at $records records, $first at 500" >&2
            exit 1
        fi
    done
    echo "$row"
done

echo
echo "| records | samples a second, one core | peak memory |"
echo "|---:|---:|---:|"
for records in 500 10000; do
    set -- $("$binary" store flagged "$records" 1)
    echo "| $records | $2 | $3 kB |"
    if [ "$records" = 500 ] && [ "$3" -ge 64000 ]; then
        echo "a batch of 500 records takes $3 kB, not less than 64 MB" >&2
        exit 1
    fi
done
