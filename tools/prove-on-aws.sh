#!/usr/bin/env bash
# Proves on a real AWS account what the emulator can't show: docs/deploying.md, "Prove it on your account". The cost is bounded
# (--list prints the bounds), and steps that only read run first. The steps are in tools/prove/.
#
#   tools/prove-on-aws.sh --list
#   tools/prove-on-aws.sh --environment fieldstation-staging --account 123456789012 --read-only
#   tools/prove-on-aws.sh --environment fieldstation-staging --account 123456789012 [--long] [--only <step>...]
#
# Needs .venv (`make setup`), AWS credentials and a region, and fieldctl for some steps.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$root/.venv/bin/python
[ -x "$python" ] || { echo "$python is missing: run \`make setup\` first." >&2; exit 2; }
exec "$python" "$root/tools/prove/prove.py" "$@"
