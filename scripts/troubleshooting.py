"""Write docs/troubleshooting.md: every message that the nodes' help pages explain, on one page to search.

    python -m scripts.troubleshooting

The help pages in web/docs are the source of all that follows the mark; a test fails while the page is older.
"""

from __future__ import annotations

import json
import re

from scripts.host_files import REPO

PAGE = REPO / "docs" / "troubleshooting.md"
MARK = "<!-- From here on by python -m scripts.troubleshooting, out of web/docs -->\n"


def rows_of(page: str) -> list[str]:
    """Rows of the table under "What goes wrong"."""
    section = re.search(r"^## What goes wrong\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    lines = section[1].splitlines() if section else []
    rows = [line for line in lines if line.startswith("| ")]
    return [row for row in rows if not re.match(r"\| (message|what|-)", row)]


def written() -> str:
    """The whole page: its own beginning, then the tables."""
    titles = json.loads((REPO / "locales" / "en" / "nodeDefs.json").read_text("utf-8"))
    parts = [PAGE.read_text("utf-8").partition(MARK)[0] + MARK]
    for file in sorted((REPO / "web" / "docs").glob("*.md")):
        rows = rows_of(file.read_text("utf-8"))
        if rows:
            title = titles[file.stem]["display_name"].removesuffix(" (LoRA Kiln)")
            parts.append(
                "\n".join([f"## {title}\n", "| message | meaning and cure |", "| --- | --- |", *rows]) + "\n"
            )
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(written(), "utf-8")
