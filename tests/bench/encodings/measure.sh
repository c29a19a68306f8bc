#!/bin/sh
# Ways to pack the samples of one series into one item: size, instructions, what the code adds to a
# stripped binary. Prints a markdown table. Needs valgrind.
#   sh measure.sh [json plain pco packing]
set -eu
cd "$(dirname "$0")"
if ! command -v valgrind >/dev/null; then
    echo "measure.sh counts instructions with valgrind, which is missing: apt-get install valgrind" >&2
    exit 1
fi
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/../../../target/encodings}"
# The Lambda baseline of x86_64 is built for, not the newest processors that pco would like.
export PCO_DISMISS_BUILD_WARNINGS=1
data=../../data/surfrad-alamosa-2016-01-01.dat
item=180  # what an item takes beside the packed bytes
[ $# -gt 0 ] || set -- json plain pco packing

build() {
    cargo build --locked --quiet --release --features "$1"
    binary=$CARGO_TARGET_DIR/release/encodings
    size=$(stat -c %s "$binary")
}
instructions() {
    valgrind --tool=callgrind --callgrind-out-file=/dev/null "$binary" "$@" <"$data" 2>&1 |
        awk '/Collected/ { print $4 }'
}

build ""
baseline=$size
echo "| candidate | bundle | bytes a sample | with jitter | largest | fits 1 KB | pack, instructions a sample | unpack | binary, bytes | lossless |"
echo "|---|---|---|---|---|---|---|---|---|---|"
for candidate; do
    build "$candidate"
    for minutes in 15 60 1440; do
        even=$("$binary" "$minutes" 1 1 <"$data") || even="1 0 0 fails"
        jitter=$("$binary" "$minutes" 1 1 jitter <"$data") || jitter="1 0 0 fails"
        once=$(instructions "$minutes" 1 1)
        packs=$(instructions "$minutes" 3 1)
        unpacks=$(instructions "$minutes" 1 3)
        echo "$even $jitter $once $packs $unpacks" | awk -v name="$candidate" -v minutes="$minutes" \
            -v item=$item -v size=$((size - baseline)) '{
                printf "| %s | %s | %.2f | %.2f | %d | %s | %.0f | %.0f | %+d | %s |\n", name,
                    minutes == 1440 ? "24 h" : minutes " min", $2 / $1, $6 / $5, $3,
                    $3 + item <= 1024 ? "yes" : "no", ($10 - $9) / 2 / $1, ($11 - $9) / 2 / $1,
                    size, $4 == $8 ? $4 : $4 ", with jitter " $8
            }'
    done
done
