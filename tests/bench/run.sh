#!/bin/sh
# Runs the benchmarks and writes their tables into docs/performance.md.
set -eu
cd "$(dirname "$0")/../.."

# Puts a table between the two comments of that name.
tell() {
    awk -v name="$1" -v file="$2" '
        $0 == "<!-- /" name " -->" { inside = 0 }
        !inside
        $0 == "<!-- " name " -->" { inside = 1; while ((getline line < file) > 0) print line }
    ' docs/performance.md > target/performance.md
    mv target/performance.md docs/performance.md
}

mkdir -p target/bench
for name in encodings readings; do
    echo "Measuring $name (some minutes) ..."
    sh "tests/bench/$name/measure.sh" > "target/bench/$name.md"
    cat "target/bench/$name.md"
    tell "$name" "target/bench/$name.md"
done
