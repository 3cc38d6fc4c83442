#!/usr/bin/env bash
# Type-check the pack: scripts/check_types.sh [python]   (default: .venv/bin/python)
#
# The pack is one package whose folder may have any name (a git clone has a dash in it), and its modules import each
# other relatively across folders (`from ..trainer import ...`). mypy needs a name to hang them on, so it looks at the
# repository through a link called lora_kiln.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${1:-.venv/bin/python}"

mkdir -p .work/types
ln -sfn ../.. .work/types/lora_kiln

targets=()
for folder in trainer nodes scripts; do
    if compgen -G "$folder/*.py" >/dev/null; then targets+=(-p "lora_kiln.$folder"); fi
done
if [[ -f headless.py ]]; then targets+=(-m lora_kiln.headless); fi

# sed: name the files as they are called outside the link
MYPYPATH=.work/types "$python" -m mypy --config-file pyproject.toml "${targets[@]}" | sed 's#\.work/types/lora_kiln/##'
