#!/usr/bin/env bash
# Prints the name of a Python 3.11 or newer that can make environments.
for name in python3.11 python3.12 python3.13 python3 python; do
    if "$name" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "$name"
        exit
    fi
done
echo "No Python 3.11 or newer (with venv) found on PATH." >&2
exit 1
