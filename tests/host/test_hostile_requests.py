"""What no page of ours sends: every route answers with a status below 500 and a sentence, every node with one."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

import pytest

from scripts.host_client import HostClient

from .conftest import GraphFailed, RunGraph
from .graphs import dataset, loaders, node, saved, training

JSON = {"Content-Type": "application/json"}
LONG = "x" * 5000
IDS = {
    "long": LONG,
    "NUL": "%00",
    "dots": "..%2F..%2Fetc%2Fpasswd",
    "half a character": "%ED%A0%80",
    "no UTF-8": "%FF%FE",
    "percent": "%",
    "newline": "a%0Ab",
}
DEEP = b'{"config": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
BODIES = {
    "deep": DEEP,
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "digits": b'{"rating": ' + b"9" * 5000 + b', "resolution": ' + b"9" * 4000 + b"}",
    "list": b"[1, 2]",
    "no JSON": b"\xff\xfe{",
    "empty": b"",
    "nan": b'{"rating": NaN, "notes": "\\ud800", "name": "\\ud800"}',
    "nothing": b"{}",
}
GETS = (
    "/lora_kiln/runs/{id}",
    "/lora_kiln/{id}",
    "/lora_kiln/runs/{id}/samples/1-1.png",
    "/lora_kiln/runs/x/samples/1-{id}.png",
    "/lora_kiln/history/{id}/curve",
    "/lora_kiln/history/{id}/graph",
    "/lora_kiln/history/{id}/leavings",
    "/lora_kiln/history/{id}/sample/0",
    "/lora_kiln/history/x/sample/{id}",
    "/lora_kiln/history?words={id}&order={id}",
    "/lora_kiln/history?offset={id}",
    "/lora_kiln/dataset/items?folder={id}",
    "/lora_kiln/dataset/thumbnail?folder={id}&name={id}",
)
POSTS = (
    "/lora_kiln/runs/{id}/stop",
    "/lora_kiln/runs/x/{id}",
    "/lora_kiln/estimate",
    "/lora_kiln/history/{id}/rate",
    "/lora_kiln/history/{id}/delete",
    "/lora_kiln/dataset/write",
    "/lora_kiln/dataset/upload/look",
)


def ask(
    client: HostClient, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, str]:
    request = urllib.request.Request(client.url + path, body, headers or {})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=300) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")


def assert_refused(status: int, text: str, what: str) -> None:
    assert 200 <= status < 500, f"{what}: {status} {text[:300]}"
    if status >= 400 and text.startswith("{"):
        sentence = json.loads(text)["error"]
        assert 5 < len(sentence) <= 1000 and "\n" not in sentence, what


@pytest.mark.parametrize("kind", IDS)
def test_ids_that_none_has(client: HostClient, kind: str) -> None:
    for path in GETS:
        assert_refused(*ask(client, path.replace("{id}", IDS[kind])), f"GET {path}")
    for path in POSTS:
        assert_refused(*ask(client, path.replace("{id}", IDS[kind]), b"{}", JSON), f"POST {path}")


@pytest.mark.parametrize("kind", BODIES)
def test_bodies_that_none_sends(client: HostClient, run_graph: RunGraph, kind: str) -> None:
    run_graph({**loaders(), **dataset(), **training(seed=77), **saved()})
    run = json.loads(ask(client, "/lora_kiln/history?limit=1")[1])["runs"][0]["id"]
    for path in POSTS:
        if path.endswith("delete") and kind in ("nothing", "nan"):
            continue  # an object: that is what deletes it
        assert_refused(*ask(client, path.replace("{id}", run), BODIES[kind], JSON), f"POST {path}")
    assert ask(client, f"/lora_kiln/history/{run}/curve")[0] == 200, "it is still there"


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_bodies_are_json_only(client: HostClient, kind: str) -> None:
    """Types that a form of another site can send without asking first."""
    for path in POSTS:
        status, text = ask(client, path.replace("{id}", "x"), b"{}", {"Content-Type": kind})
        assert status == 415 and "send Content-Type: application/json" in text, path


@pytest.mark.parametrize("charset", ["foo", "hex", "x" * 5000])
def test_a_charset_that_none_knows(client: HostClient, charset: str) -> None:
    headers = {"Content-Type": f"application/json; charset={charset}"}
    for path in POSTS:
        status, text = ask(client, path.replace("{id}", "x"), b"{}", headers)
        assert status == 415 and "send UTF-8" in json.loads(text)["error"], f"{path}: {status} {text[:300]}"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example", "Host": "192.168.1.2:8188"},
    ],
    ids=str,
)
def test_pages_of_other_sites_are_refused(client: HostClient, headers: dict[str, str]) -> None:
    """Also where the host is not asked on loopback, where it does not look itself."""
    for path in POSTS:
        assert ask(client, path.replace("{id}", "x"), b"{}", {**JSON, **headers})[0] == 403, path


def test_our_own_page_is_answered(client: HostClient) -> None:
    own = {"Origin": client.url, "Sec-Fetch-Site": "same-origin"}
    assert ask(client, "/lora_kiln/runs/x/stop", b"{}", {**JSON, **own})[0] == 404


TEXTS = {
    "NUL": "a\0b",
    "half a character": "a\ud800b",
    "long": LONG,
    "dots": "../../etc",
    "newline": "a\nb",
    "digits": "9" * 5000,
    "deep JSON": "[" * 100_000,
    "deep YAML": "a: " + "[" * 20_000,
    "YAML of references": "a0: &a0 [1,1]\n"
    + "".join(f"a{i}: &a{i} [*a{i - 1},*a{i - 1}]\n" for i in range(1, 60)),
    "YAML that holds itself": "a: &a [*a]",
    "YAML digits": "rank: " + "9" * 5000,
    "long YAML digits": "rank: " + "9" * 4000,
    "infinite": "rank: .inf",
}


def graphs(text: str) -> dict[str, dict[str, Any]]:
    """Nodes that take a text of the user's, each with it."""
    load = dataset()["dataset"]
    template = {
        "template": "{caption}",
        "values": "",
        "trigger_word": "",
        "missing": "drop clause",
        "seed": 0,
    }
    show = {"show": node("PreviewAny", source=["x", 0])}
    model = loaders()
    found: dict[str, dict[str, Any]] = {
        "folder": {"x": node("KilnLoadDataset", **{**load["inputs"], "folder": text}), **show},
        "validation_folder": {
            "x": node("KilnLoadDataset", **{**load["inputs"], "validation_folder": text}),
            **show,
        },
        "yaml": {"x": node("KilnImportSettings", yaml=text), **show},
        "target_modules": {"x": node("KilnAdapterSettings", dropout=0.0, target_modules=text), **show},
        "rank_pattern": {
            "x": node("KilnAdapterSettings", dropout=0.0, target_modules="", rank_pattern=text),
            **show,
        },
        "prompt": {
            **model,
            "x": node("KilnPromptLora", model=["model", 0], prompt=f"<lora:{text}:1>"),
            **show,
        },
        "history": {
            "x": node("KilnRunHistory", filter=text, order="newest", place=1, rating=0, notes=""),
        },
        "lora_name": {
            **model,
            "x": node("KilnLoadLora", lora_name=text, model=["model", 0], strength=1.0),
            **show,
        },
        "tuned_name": {"x": node("KilnExtractLora", tuned_name=text, base_name=text, rank=4), **show},
    }
    for name in ("template", "values", "trigger_word"):
        caption = node("KilnCaptionTemplate", dataset=["dataset", 0], **{**template, name: text})
        found[name] = {"dataset": load, "x": caption, "show": node("PreviewAny", source=["x", 1])}
    return found


@pytest.mark.parametrize("kind", TEXTS)
def test_texts_that_nobody_writes(client: HostClient, run_graph: RunGraph, kind: str) -> None:
    for name, graph in graphs(TEXTS[kind]).items():
        try:
            run_graph(graph)
        except GraphFailed as failed:
            where, kind_of_error, sentence = str(failed).split(": ", 2)
            assert kind_of_error == "lora_kiln.KilnError", f"{name}: {kind_of_error}: {sentence[:300]}"
            assert len(sentence) <= 1000, (name, where)
        except Exception as error:
            assert "status 400" in str(error), f"{name}: {error}"  # the host itself refuses the value


def test_names_that_are_saved_under(run_graph: RunGraph) -> None:
    graph = {**loaders(), **dataset(), **training(seed=77), **saved()}
    for text in (TEXTS[kind] for kind in ("NUL", "half a character", "long", "dots", "newline", "digits")):
        graph["save"]["inputs"]["filename_prefix"] = text[:6000]
        with pytest.raises(GraphFailed, match=r"lora_kiln\.KilnError") as failed:
            run_graph(graph)
        assert len(str(failed.value)) < 1100


def test_choices_of_a_run_that_is_none(run_graph: RunGraph) -> None:
    for text in TEXTS.values():
        graph = {**loaders(), **dataset(), **training(resume=text, seed=78), **saved()}
        with pytest.raises(GraphFailed, match=r"lora_kiln\.\w+") as failed:
            run_graph(graph)
        assert "There is no checkpoint" in str(failed.value) and len(str(failed.value)) < 1100
