#!/usr/bin/env bash
# Prints the path of a Chromium for the browser tests; installs Debian's where there is none and we may.
set -euo pipefail
for name in "${CHROMIUM:-}" chromium chromium-browser google-chrome; do
    if [[ -n "$name" ]] && command -v "$name" >/dev/null; then
        command -v "$name"
        exit
    fi
done
if command -v apt-get >/dev/null && [[ "$(id -u)" == 0 ]]; then
    echo "browser: installing Debian's chromium" >&2
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        chromium fonts-noto-cjk; } >/dev/null
    command -v chromium
    exit
fi
echo "No Chromium found: install one, or set CHROMIUM to its path." >&2
exit 1
