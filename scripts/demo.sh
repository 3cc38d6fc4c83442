#!/usr/bin/env bash
# Watch a LoRA being trained inside a real ComfyUI graph, and sampled with:
#   scripts/demo.sh             sets everything up, runs the tiny workflow, leaves demo_output/
#   scripts/demo.sh --serve     leaves ComfyUI running with the tiny models in place, for a look in the browser
# Needs Python 3.11 or newer on PATH; the rest is fetched into .venv and .host (git-ignored).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
system_python="$(bash scripts/find_python.sh)"
"$system_python" -m scripts.host setup
exec "$("$system_python" -m scripts.host path python)" -m scripts.demo "$@"
