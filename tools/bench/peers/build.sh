#!/bin/sh
# Builds the peers into target/bench/peers/<name>, where `package` is what would be deployed. An unchanged peer is
# not built again.
set -eu
cd "$(dirname "$0")"
peers=$PWD
mkdir -p ../../../target/bench/peers
target=$(cd ../../../target/bench/peers && pwd)

missing() { echo "The peers need $1 (Debian: apt-get install $2)." >&2; exit 1; }
need() { command -v "$1" > /dev/null || missing "$1" "$2"; }

# Succeeds if the peer was built from these files with this tool.
built() { # peer, tool's version, files
    peer=$target/$1 inputs=$(echo "$2"; shift 2; cat "$@" | cksum)
    [ "$inputs" = "$(cat "$peer/built" 2> /dev/null)" ] && return
    mkdir -p "$peer"
    rm -f "$peer/built"
    false
}
done_with() { echo "$inputs" > "$peer/built"; }
logged() { "$@" > "$target/log" 2>&1 || { tail -n 30 "$target/log" >&2; exit 1; }; }

# Debian's Python uses a fifth less CPU per call than one built by pyenv.
python=/usr/bin/python3
[ -x $python ] || python=python3
need $python python3
$python -c 'import sys; sys.exit(sys.version_info < (3, 10))' || missing "Python 3.10 or newer" python3
$python -c 'import ensurepip, venv' 2> /dev/null || missing "Python's venv" python3-venv
if ! built python "$($python -VV)" build.sh python/app.py python/requirements.txt python/runtime.txt; then
    rm -rf "$peer/runtime" "$peer/package"
    $python -m venv "$peer/runtime"
    pip="$peer/runtime/bin/python -m pip install -q --disable-pip-version-check --require-hashes --only-binary :all:"
    $pip -r python/runtime.txt
    $pip -r python/requirements.txt --target "$peer/package"
    cp python/app.py "$peer/package"
    logged "$peer/runtime/bin/python" -m compileall -q "$peer/package" "$peer/runtime/lib"
    done_with
fi

need node nodejs
need npm npm
node -e 'process.exit(process.versions.node.split(".")[0] >= 20 ? 0 : 1)' || missing "Node 20 or newer" nodejs
if ! built typescript/node_modules "$(node --version)" typescript/package*.json; then
    # aws-lambda-ric compiles libcurl and Lambda's C++ client.
    for tool in make g++ cmake autoconf automake; do need $tool $tool; done
    need libtoolize libtool
    cp typescript/package*.json "$target/typescript"
    (cd "$target/typescript" && logged npm ci --no-audit --no-fund)
    done_with
fi
if ! built typescript "$(node --version)" build.sh typescript/*.ts typescript/*.json; then
    cp typescript/*.ts "$peer"
    cp typescript/tsconfig.json "$peer"
    (cd "$peer" && logged npm run build)
    done_with
fi

need cargo cargo
mkdir -p "$target/rust-defaults/package"
# Built from /, so that the settings of this repository do not apply: its .cargo/config.toml disables the jitter
# entropy.
(
    cd /
    unset AWS_LC_SYS_NO_JITTER_ENTROPY RUSTFLAGS CARGO_BUILD_TARGET
    CARGO_TARGET_DIR=$target/rust-defaults cargo build --quiet --locked --release \
        --manifest-path "$peers/rust-defaults/Cargo.toml"
)
cp "$target/rust-defaults/release/rust-defaults" "$target/rust-defaults/package/bootstrap"
