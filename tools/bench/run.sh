#!/bin/sh
# Runs the benchmarks and writes their tables into docs/performance.md.
#
# FUNCTIONS='create-site get-site' measures only these functions and writes nothing. BIN_DIR is a folder of
# functions that are already built. MERGE=1 with FUNCTIONS stores these figures in tools/bench/figures.json.
# UPDATE_BUDGET=1 writes the counts to tools/bench/budget.json.
# REPORT_ONLY=1 measures nothing and writes the tables again from tools/bench/figures.json.
set -eu
cd "$(dirname "$0")/../.."
host=$(rustc -vV | sed -n 's/^host: //p')
built=${CARGO_TARGET_DIR:-target}

# Writes a table between the two comments with its name in docs/performance.md.
write_table() {
    awk -v name="$1" -v file="$2" '
        $0 == "<!-- /" name " -->" { inside = 0 }
        !inside
        $0 == "<!-- " name " -->" { inside = 1; while ((getline line < file) > 0) print line }
    ' docs/performance.md > target/performance.md
    mv target/performance.md docs/performance.md
}

mkdir -p target/bench
if [ -z "${FUNCTIONS:-}${REPORT_ONLY:-}" ]; then
    echo "Measuring readings (some minutes) ..."
    sh tools/bench/readings/measure.sh > target/bench/readings.md
    cat target/bench/readings.md
    write_table readings target/bench/readings.md
    echo "Building the peers ..."
    sh tools/bench/peers/build.sh
fi

if [ -z "${BIN_DIR:-}${REPORT_ONLY:-}" ]; then
    echo "Building the functions for release, as sam build does (a quarter of an hour the first time) ..."
    cargo build --target "$host" --locked --release --bins
    export BIN_DIR="$built/$host/release"
fi
# The stand-ins for AWS are optimized for speed instead of size, because every measured time includes their time.
CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=3 CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
    cargo build --locked --release -p bench-functions
echo "Measuring the functions ..."
rm -f target/bench/functions.md
status=0
"$built/release/bench-functions" || status=$?
# The tables are written even if a figure exceeds its budget.
if [ -z "${FUNCTIONS:-}" ] && [ -e target/bench/functions.md ]; then
    for name in functions peers targets; do
        write_table "$name" "target/bench/$name.md"
    done
fi
exit "$status"
