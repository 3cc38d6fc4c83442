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
"$python" -m pytest -q --durations=10 "$@"
