#!/usr/bin/env bash
# Everything that must pass: environment and host, lint, format, types, tests. Arguments go to pytest:
#   scripts/test.sh                          all
#   scripts/test.sh tests/unit -k config     some
# Needs Python 3.11 or newer on PATH; the rest is fetched into .venv and .host (git-ignored).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

step() { printf '\n== %s\n' "$*"; }

system_python="$(bash scripts/find_python.sh)"

step "environment and host"
"$system_python" -m scripts.host setup
python="$("$system_python" -m scripts.host path python)"

step "ruff"
"$python" -m ruff check .
"$python" -m ruff format --check .

step "mypy"
bash scripts/check_types.sh "$python"

step "javascript"
bash scripts/check_js.sh "$python"

step "pytest"
CHROMIUM="$(bash scripts/chromium.sh)"
export CHROMIUM
if (($#)); then exec "$python" -m pytest -q --durations=10 "$@"; fi

# The browser tests have servers and folders of their own and run beside all others; one thread each, so that neither
# takes the other's core. What they print comes last.
export OMP_NUM_THREADS=1
browser_output="$(mktemp)"
"$python" -m pytest -q --durations=10 -p no:cacheprovider tests/browser >"$browser_output" 2>&1 &
browser=$!
trap 'kill "$browser" 2>/dev/null || true; rm -f "$browser_output"' EXIT
failed=0
"$python" -m pytest -q --durations=10 --ignore=tests/browser || failed=$?
wait "$browser" || failed=$?
step "pytest tests/browser"
cat "$browser_output"
exit "$failed"
