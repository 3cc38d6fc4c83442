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
output="$(mktemp -d)"
"$python" -m pytest -q --durations=10 -o cache_dir="$output/browser" tests/browser >"$output/browser.txt" 2>&1 &
browser=$!
trap 'kill "$browser" 2>/dev/null || true; rm -rf "$output"' EXIT
failed=0 browser_failed=0
"$python" -m pytest -q --durations=10 -o cache_dir="$output/others" --ignore=tests/browser || failed=$?
wait "$browser" || browser_failed=$?
step "pytest tests/browser"
cat "$output/browser.txt"

# Three failures at most are tried once more, now that nothing runs beside them. What passes only then hangs on the
# load of the machine: it is named last, as something to mend.
only_alone=()
once_more() { # exit code and cache of a run
  local code=$1 cache=$2 names
  ((code)) || return 0
  mapfile -t names < <("$python" -m scripts.failed_tests "$cache")
  ((code == 1 && ${#names[@]} && ${#names[@]} <= 3)) || return "$code"
  step "once more, alone: ${names[*]}"
  "$python" -m pytest -q -p no:cacheprovider "${names[@]}" || return $?
  only_alone+=("${names[@]}")
}
once_more "$failed" "$output/others" || exit $?
once_more "$browser_failed" "$output/browser" || exit $?
for name in "${only_alone[@]}"; do echo "passed only alone, to be mended: $name"; done
