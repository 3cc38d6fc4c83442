"""Import every module of the engine: what a Python version or a system lacks shows at once.

python -m scripts.import_all
"""

from __future__ import annotations

import importlib

from scripts.host_files import REPO


def main() -> None:
    files = sorted((REPO / "trainer").rglob("*.py"))
    for file in files:
        name = ".".join(file.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__")
        importlib.import_module(name)
    print(f"{len(files)} modules")


if __name__ == "__main__":
    main()
