"""The pages in docs/: links that lead somewhere, messages of the help pages, a whole table of contents."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from scripts.host_files import REPO
from scripts.troubleshooting import PAGE, rows_of, written

DOCS = REPO / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8")):
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        target = (DOCS / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_in_the_contents() -> None:
    nav = yaml.safe_load((REPO / "mkdocs.yml").read_text("utf-8"))["nav"]
    assert sorted(re.findall(r"[\w-]+\.md", str(nav))) == [page.name for page in PAGES]


def test_troubleshooting_is_that_of_the_help_pages() -> None:
    assert PAGE.read_text("utf-8") == written(), "run python -m scripts.troubleshooting"
    assert rows_of(
        "# A\n\n## What goes wrong\n\n| message | m |\n| --- | --- |\n| a | b |\n\n## More\n| c | d |\n"
    ) == ["| a | b |"]


def test_templates_that_pages_name_exist() -> None:
    names = {path.stem for path in (REPO / "workflows").glob("*.json")}
    pages = [*PAGES, REPO / "README.md", REPO / "README.zh.md"]
    text = "\n".join(page.read_text("utf-8") for page in pages)
    found = set(re.findall(r"\b([1-5] Wan 2\.1[^*|\n]*?)(?= ?[*|])", text))
    assert found and found <= names, found - names
