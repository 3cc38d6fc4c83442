"""Every node has its texts and help pages in both languages, and they say what the sources say.

The nodes import the host, so their texts are read off the syntax tree.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trainer import config
from trainer.config import field_info

ROOT = Path(__file__).parents[2]
CJK = re.compile("[\u4e00-\u9fff]")
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e-\d+)?")

# The frontend compiles texts with vue-i18n, where these signs mean something, but newer ones show tooltips as they
# stand: no spelling of them is right in both, so no text of ours holds one.
SIGNS = re.compile(r"[{}|@]")
# Names that Chinese users write in Latin letters too
LATIN_NAMES = {"VAE", "CLIP", "LoRA", "Alpha", "Beta1", "Beta2"}


def node_trees() -> list[ast.Module]:
    return [ast.parse(p.read_text(encoding="utf-8")) for p in sorted((ROOT / "nodes").glob("*.py"))]


def node_ids() -> list[str]:
    """Classes named Kiln...: their names are the node ids."""
    found = [n.name for tree in node_trees() for n in ast.walk(tree) if isinstance(n, ast.ClassDef)]
    return sorted(name for name in found if name.startswith("Kiln"))


def source_texts() -> set[str]:
    """Every string of the nodes, and the explanations of every setting and settings class."""
    nodes = [n for tree in node_trees() for n in ast.walk(tree)]
    texts = {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    texts |= {f"{text} (LoRA Kiln)" for text in texts}  # settings nodes' titles
    for each in (config.TrainConfig, *config.THEMES.values()):
        texts |= {field.metadata["doc"] for field in field_info(each).values()}
        texts |= {*field_info(each), str(each.__doc__)}
    return texts


def read(language: str, file: str) -> dict[str, Any]:
    return json.loads((ROOT / "locales" / language / file).read_text(encoding="utf-8"))


def flat(entry: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """{"a": {"b": "text"}} -> ("a.b", "text")"""
    if isinstance(entry, str):
        yield path, entry
        return
    for key, value in entry.items():
        yield from flat(value, f"{path}.{key}" if path else key)


ENGLISH, CHINESE = dict(flat(read("en", "nodeDefs.json"))), dict(flat(read("zh", "nodeDefs.json")))


def test_node_ids_are_read_off_the_sources() -> None:
    literal = set()
    for node in (n for tree in node_trees() for n in ast.walk(tree)):
        if isinstance(node, ast.keyword) and node.arg == "node_id" and isinstance(node.value, ast.Constant):
            literal.add(node.value.value)
    assert {"KilnTrainLora", "KilnAdapterSettings"} <= set(node_ids())
    assert literal <= set(node_ids()), "a node's class and its id have different names"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_node_has_texts(language: str) -> None:
    assert sorted(read(language, "nodeDefs.json")) == node_ids()
    shelves = {"data", "train", "settings", "use", "tools"}
    assert read(language, "main.json")["nodeCategories"].keys() == {"LoRA Kiln", *shelves}


def test_both_languages_have_the_same_keys() -> None:
    assert CHINESE.keys() == ENGLISH.keys()


def test_texts_are_whole_and_free_of_signs() -> None:
    for text in (*ENGLISH.values(), *CHINESE.values()):
        assert text.strip() == text != ""
        assert not SIGNS.search(text), text


def test_english_texts_stand_in_the_sources() -> None:
    assert set(ENGLISH.values()) - source_texts() == set()


def test_every_setting_has_a_text() -> None:
    """Settings are widgets of their settings node, or of the training node."""
    nodes = {"guards": "KilnGuardSettings", "": "KilnTrainLora"}
    for theme, each in {"": config.TrainConfig, **config.THEMES}.items():
        node = nodes.get(theme, f"Kiln{theme.title()}Settings")
        for name, field in field_info(each).items():
            places = [f"{each}.inputs.{name}.tooltip" for each in (node, "KilnTrainLora")]
            assert field.metadata["doc"] in [ENGLISH.get(p) for p in places], name


def test_chinese_is_chinese() -> None:
    for key, text in CHINESE.items():
        if key.endswith(".name") and text in LATIN_NAMES:
            continue
        assert CJK.search(text), key
        assert text != ENGLISH.get(key), key


def test_chinese_tooltips_give_the_same_figures() -> None:
    for key, text in ENGLISH.items():
        if not key.endswith(".name"):
            assert set(NUMBER.findall(text)) == set(NUMBER.findall(CHINESE[key])), key


@pytest.mark.parametrize("node_id", node_ids())
def test_help_pages(node_id: str) -> None:
    docs = ROOT / "web" / "docs"
    english = (docs / f"{node_id}.md").read_text(encoding="utf-8")
    chinese = (docs / node_id / "zh.md").read_text(encoding="utf-8")
    assert CJK.search(chinese) and not CJK.search(english)
    for name in read("en", "nodeDefs.json")[node_id]["inputs"]:
        assert f"`{name}` |" in english, f"{name} is not in the English table"
        assert f"`{name}` |" in chinese, f"{name} is not in the Chinese table"


def test_no_help_page_without_a_node() -> None:
    docs = ROOT / "web" / "docs"
    assert sorted(p.stem for p in docs.glob("*.md")) == sorted(p.name for p in docs.iterdir() if p.is_dir())
    assert sorted(p.stem for p in docs.glob("*.md")) == node_ids()


@pytest.mark.parametrize(("table", "ours"), [("PRESETS", config.PRESETS), ("RANGES", config.RANGES)])
def test_presets_of_the_canvas_are_those_of_the_trainer(table: str, ours: dict[str, Any]) -> None:
    script = (ROOT / "web" / "presets.mjs").read_text(encoding="utf-8")
    match = re.search(rf"export const {table} = (\{{.*?\n\}});", script, re.DOTALL)
    assert match, f"web/presets.mjs has no table {table}"
    quoted = re.sub(r'([{,]\s*)"?([A-Za-z_-]+(?:,? [A-Za-z_-]+)*)"?:', r'\1"\2":', match[1])
    assert json.loads(re.sub(r",(\s*\})", r"\1", quoted)) == ours
