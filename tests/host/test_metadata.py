"""What files of ours hold on a live server: with --disable-metadata and with embed_metadata off, only figures."""

from __future__ import annotations

import json
import sqlite3
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from scripts.host import RunningHost, start_host
from scripts.host_client import HostClient, failure_of
from scripts.host_files import workspace

from .graphs import dataset, loaders, node, sampling, saved, training
from .test_samples import sample_settings

MARK = "a mark that only the graph holds"
PROMPT = "a red circle nobody else writes"
TRIGGER = "zorbword"


def graph(**options: Any) -> dict[str, Any]:
    """A run with samples, its LoRA as a file, a picture of its loss and a grid."""
    found = {
        **loaders(),
        **dataset(),
        "captions": node(
            "KilnCaptionTemplate",
            dataset=["dataset", 0],
            template="",
            values="",
            trigger_word=TRIGGER,
            missing="drop clause",
            seed=0,
        ),
        **training(steps=4, seed=931, **options),
        **saved(filename_prefix="metadata/lora"),
        **sample_settings(prompts=PROMPT, length=5),
        "plot": node("KilnLossPlot", run=["train", 3]),
        **sampling("drawn", ["train", 1], batch=1, text=PROMPT),
        "grid": node("KilnComparisonGrid", images=["drawn decode", 0], labels="one", columns=0),
    }
    found["encoded"]["inputs"]["dataset"] = ["captions", 0]
    found["train"]["inputs"]["settings"] = ["samples", 0]
    return found


def queue(client: HostClient, prompt: dict[str, Any], **marks: str) -> dict[str, Any]:
    workflow = {"nodes": [], "extra": {"mark": MARK, **marks}}
    entry = client.wait(client.queue_prompt(prompt, {"extra_pnginfo": {"workflow": workflow}}))
    assert failure_of(entry) is None
    outputs: dict[str, Any] = entry["outputs"]
    return outputs


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as opened:
        return opened.metadata() or {}


def run_folder(base: Path, outputs: dict[str, Any]) -> Path:
    return base / "user" / "__lora_kiln" / "runs" / outputs["train"]["summary"][0]["run"]


def written(*places: Path) -> list[Path]:
    """Every file there."""
    found = [path for place in places for path in place.rglob("*") if path.is_file()]
    assert {path.suffix for path in found} >= {".png", ".webp", ".safetensors", ".json", ".toml"}
    assert {"dataset.json", "state.json", "result.json"} <= {path.name for path in found}
    return found


def rows(base: Path, run: Path) -> list[str]:
    """All that the history holds of a run."""
    with sqlite3.connect(f"file:{base / 'user' / '__lora_kiln' / 'history.db'}?mode=ro", uri=True) as db:
        found = [*db.execute("SELECT * FROM runs WHERE id = ?", (run.name,))]
        found += db.execute("SELECT * FROM samples WHERE run = ?", (run.name,))
    assert len(found) > 2
    return list(map(repr, found))


def test_disable_metadata_holds_for_every_file() -> None:
    base = workspace("metadata", fresh=True)
    models = base / "models" / "diffusion_models"
    whole = load_file(models / "tiny_wan.safetensors")
    save_file(whole, models / "with_graph.safetensors", {"workflow": MARK, "prompt": PROMPT})
    prompt = graph() | {
        "merged": node(
            "KilnSaveMergedModel",
            base_name="with_graph.safetensors",
            lora_1=["train", 0],
            weight_1=1.0,
            filename_prefix="metadata/merged",
            dtype="base",
            layout="comfyui",
        )
    }
    options = ["--disable-metadata", "--enable-cors-header", "https://Studio.example/"]
    with start_host(base, python=Path(sys.executable), cpu=True, extra_args=options) as running:
        outputs = queue(HostClient(running.url), prompt)
        assert_only_the_opened_page_is_answered(running.url)
    pictures = [path.stem for path in (base / "input" / "tiny_concept").iterdir()]
    files = written(base / "output", base / "temp", base / "user" / "__lora_kiln")
    assert {"history.db", "merged"} <= {path.name.partition("_0")[0] for path in files}
    for path in files:
        content = path.read_bytes()
        cached = (
            path.parent.name == "scans"
        )  # names below the dataset's folder, by which files are known again
        names = () if cached else ("tiny_concept", *(stem for stem in pictures if len(stem) > 4))
        for secret in (MARK, PROMPT, TRIGGER, str(base), f"{Path.home()}/", "class_type", *names):
            assert secret.encode() not in content, (path, secret)
    found = metadata(Path(outputs["save"]["path"][0]))
    assert found["ss_network_dim"] == "4" and found["modelspec.architecture"] == "wan2.1/lora"
    assert metadata(Path(outputs["merged"]["path"][0])).keys() <= {"format"}


def assert_only_the_opened_page_is_answered(url: str) -> None:
    """Of the server that is up for another test: its own page, and the one that --enable-cors-header names."""
    opened, other = "https://studio.example", "https://studio.example.evil.example"
    for status, headers in (
        (200, {"Origin": opened, "Sec-Fetch-Site": "cross-site"}),
        (200, {"Origin": opened}),
        (200, {"Referer": f"{opened}/runs?x=1", "Sec-Fetch-Site": "cross-site"}),  # a picture that it shows
        (200, {"Origin": url, "Sec-Fetch-Site": "same-origin"}),
        (403, {"Origin": other, "Sec-Fetch-Site": "cross-site"}),
        (403, {"Origin": other, "Referer": f"{opened}/", "Sec-Fetch-Site": "cross-site"}),
        (403, {"Referer": f"{other}/", "Sec-Fetch-Site": "cross-site"}),
        (403, {"Origin": "null", "Sec-Fetch-Site": "cross-site"}),
        (403, {"Origin": "http://studio.example"}),
        (403, {"Sec-Fetch-Site": "cross-site"}),
        (403, {"Origin": "*", "Sec-Fetch-Site": "cross-site"}),
    ):
        request = urllib.request.Request(f"{url}/lora_kiln/runs", headers=headers)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            found = opener.open(request, timeout=300).status
        except urllib.error.HTTPError as error:
            found = error.code
        assert found == status, headers


def test_a_run_with_metadata_and_one_without(host: RunningHost, client: HostClient) -> None:
    outside = str(host.base / "input")
    told = queue(client, graph(), folder=outside)
    run = run_folder(host.base, told)
    for path in written(run, host.base / "output" / "loras" / "metadata"):
        content = path.read_bytes()
        assert str(host.base).encode() not in content and f"{Path.home()}/".encode() not in content, path
    assert not any(str(host.base) in row for row in rows(host.base, run))
    assert any(PROMPT in row for row in rows(host.base, run))
    found = metadata(Path(told["save"]["path"][0]))
    assert json.loads(found["workflow"])["extra"] == {"mark": MARK, "folder": "input"}
    assert json.loads(metadata(run / "lora.safetensors")["workflow"])["extra"]["folder"] == "input"
    assert found["modelspec.title"] == "lora" and found["ss_sd_model_name"] == "tiny_wan"
    assert found["modelspec.trigger_phrase"] == TRIGGER
    assert json.loads(found["ss_tag_frequency"])["dataset"][TRIGGER] == 20
    assert found["modelspec.resolution"] == "64x64" and found["modelspec.prediction_type"] == "flow"
    assert found["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")
    assert metadata(run / "lora.safetensors")["modelspec.title"] == run.name
    assert str(host.base) not in json.dumps(found)

    silent = queue(client, graph(embed_metadata=False))
    run = run_folder(host.base, silent)
    save = Path(silent["save"]["path"][0])
    for path in [save, *(file for file in run.rglob("*") if file.is_file())]:
        content = path.read_bytes()
        model = () if path.name == "run.toml" else ("tiny_wan",)
        for secret in (
            MARK,
            PROMPT,
            TRIGGER,
            "tiny_concept",
            str(host.base),
            "class_type",
            "jpeg;base64",
            *model,
        ):
            assert secret.encode() not in content, (path, secret)
    for secret in (PROMPT, TRIGGER, str(host.base)):
        assert not any(secret in row for row in rows(host.base, run)), secret
    assert metadata(save)["ss_steps"] == "4"
    assert "workflow" not in Image.open(next((run / "samples").glob("*.png"))).info
    first, second = (load_file(outputs["save"]["path"][0]) for outputs in (told, silent))
    assert all(first[k].equal(second[k]) for k in first), "the LoRA is the same"
