#!/usr/bin/env bash
# Runs a command and writes its terminal output to an SVG file:
#   docs/pictures/record.sh docs/pictures/trace.svg fieldctl trace <siteId>
# The command must print colours although its output is not a terminal. For fieldctl, the script adds `--color always`.
set -euo pipefail
cd "$(dirname "$0")/../.."
picture=$1
shift
columns=${COLUMNS:-110}
if [ ! -x target/pictures/bin/python ]; then
  python3 -m venv target/pictures
  target/pictures/bin/pip install --quiet 'rich==14.*'
fi
shown="$ $*"
[ "$(basename "$1")" = fieldctl ] && set -- "$1" --color always "${@:2}"
{ COLUMNS=$columns "$@" || true; } | target/pictures/bin/python -c '
import sys
from rich.console import Console
from rich.text import Text
picture, title, columns = sys.argv[1], sys.argv[2], int(sys.argv[3])
console = Console(record=True, width=columns, file=open("/dev/null", "w"), force_terminal=True)
console.print(Text.from_ansi(sys.stdin.read()))
console.save_svg(picture, title=title)
' "$picture" "$shown" "$columns"
