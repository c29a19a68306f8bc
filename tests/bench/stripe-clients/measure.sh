#!/bin/sh
# Stripe client candidates: stripped size, crates, instructions from process start to exit. Needs valgrind.
#   sh measure.sh [none hyper reqwest async-stripe]
set -eu
cd "$(dirname "$0")"
export AWS_LC_SYS_NO_JITTER_ENTROPY=1 CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/../../../target/stripe-clients}"
[ $# -gt 0 ] || set -- none hyper reqwest async-stripe
for client; do
    features=$client
    [ "$client" != none ] || features=
    crates=$(cargo tree --locked -e normal --prefix none --no-dedupe --features "$features" | sort -u | wc -l)
    started=$(date +%s)
    cargo build --locked --quiet --release --features "$features"
    seconds=$(($(date +%s) - started))
    binary=$CARGO_TARGET_DIR/release/stripe-clients
    instructions=$(valgrind --tool=callgrind --callgrind-out-file=/dev/null "$binary" 2>&1 | awk '/Collected/ { print $4 }')
    echo "$client: $(stat -c %s "$binary") bytes, $crates crates, $instructions instructions, built in $seconds s"
done
