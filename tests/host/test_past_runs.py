"""What the runs tab asks of the history over HTTP, and what it may do to it."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import pytest
from PIL import Image

from scripts.host import RunningHost
from scripts.host_client import EventStream, HostClient, HostError
from trainer.runs.history import History

from .conftest import RunGraph
from .graphs import dataset, loaders, node, saved, training
from .test_routes import newest, tell, wait_for
from .test_training import wait_for_step

BASE = "/lora_kiln/history"


@pytest.fixture(scope="module")
def runs(client: HostClient, host: RunningHost) -> list[str]:
    """Two runs; the second one has a picture."""
    found = []
    for seed, rank in ((301, 4), (302, 6)):
        client.wait(
            client.queue_prompt(
                {**loaders(), **dataset(), **training(steps=6, seed=seed, rank=rank), **saved()},
                {"extra_pnginfo": {"workflow": {"nodes": [], "seed": seed}}},
            )
        )
        found.append(newest(client)["run"])
    folder = host.base / "user" / "__lora_kiln" / "runs" / found[1] / "samples"
    folder.mkdir()
    Image.new("RGB", (640, 320), "red").save(folder / "00000006-00.png")
    history = History(host.base / "user" / "__lora_kiln" / "history.db")
    history.add_sample(found[1], 6, "a red circle", folder / "00000006-00.png")
    history.close()
    return found


def listed(client: HostClient, query: str = "") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get_json(f"{BASE}{query}")["runs"]
    return found


def test_the_list_shows_settings_and_results(client: HostClient, runs: list[str]) -> None:
    newest_run, older = listed(client, "?limit=2")
    assert [newest_run["id"], older["id"]] == runs[::-1]
    assert newest_run["config"]["adapter"]["rank"] == 6 and newest_run["changed"]["adapter"]["rank"] == 6
    assert newest_run["status"] == "done" and newest_run["step"] == 6 and newest_run["loss"] > 0
    assert newest_run["samples"] == [6] and not newest_run["live"] and newest_run["resumable"]
    assert newest_run["lora"] == f"user/__lora_kiln/runs/{runs[1]}/lora.safetensors"


def test_filter_sort_and_pages(client: HostClient, runs: list[str]) -> None:
    assert [r["id"] for r in listed(client, f"?words={runs[0]}")] == [runs[0]]
    assert listed(client, "?words=nothing-holds-this") == []
    page = client.get_json(f"{BASE}?offset=1&limit=1")
    assert [r["id"] for r in page["runs"]] == [runs[0]] and page["total"] >= 2
    losses = [r["loss"] for r in listed(client, "?order=loss")]
    # Other tests' runs may have ended before their first step
    known = [loss for loss in losses if loss is not None]
    assert losses == sorted(known) + [None] * (len(losses) - len(known))


def test_curve_graph_and_picture(client: HostClient, runs: list[str]) -> None:
    points = client.get_json(f"{BASE}/{runs[0]}/curve")["points"]
    assert [p[0] for p in points] == [1, 2, 3, 4, 5, 6] and all(p[3] > 0 for p in points)
    assert client.get_json(f"{BASE}/{runs[0]}/graph")["workflow"] == {"nodes": [], "seed": 301}
    picture = Image.open(io.BytesIO(client.request(f"{BASE}/{runs[1]}/sample/0")))
    assert picture.size == (384, 192) and picture.getpixel((5, 5))[0] > 240  # type: ignore[index]


def test_rating_and_notes(client: HostClient, runs: list[str]) -> None:
    client.post_json(f"{BASE}/{runs[0]}/rate", {"rating": 4})
    now = client.post_json(f"{BASE}/{runs[0]}/rate", {"notes": "good hands"})
    assert (now["rating"], now["notes"]) == (4, "good hands")
    assert listed(client, "?order=rating")[0]["id"] == runs[0]


@pytest.mark.parametrize(
    ("path", "body", "status", "sentence"),
    [
        ("?order=size", None, 400, "order is 'size'"),
        ("?offset=-1", None, 400, "offset is '-1'"),
        ("?limit=100000", None, 400, "limit is 100000"),
        ("/unknown/curve", None, 404, "holds no such run"),
        ("/..%2F..%2Fetc/graph", None, 404, "holds no such run"),
        ("/{run}/sample/99", None, 404, "no sample 99"),
        ("/{run}/sample/..%2Fx", None, 400, "the number of a sample"),
        ("/{run}/items", None, 409, "kept no losses of its items"),
        ("/unknown/items", None, 404, "holds no such run"),
        ("/{run}/rate", {"rating": 9}, 400, "whole number from 0 to 5"),
        ("/{run}/rate", {"rating": True}, 400, "whole number from 0 to 5"),
        ("/{run}/rate", {"notes": "x" * 3000}, 400, "at most 2000"),
        ("/{run}/rate", [1], 400, "JSON object"),
        ("/{run}/rate", {}, 400, "Send rating, notes or both"),
        ("/unknown/delete", {}, 404, "holds no such run"),
    ],
)
def test_wrong_requests_get_a_sentence(
    client: HostClient, runs: list[str], path: str, body: Any, status: int, sentence: str
) -> None:
    with pytest.raises(HostError, match=rf"status {status}.*{sentence}"):
        client.request(BASE + path.replace("{run}", runs[0]), body)


def test_a_picture_outside_the_hosts_folders_is_not_served(
    client: HostClient, host: RunningHost, runs: list[str]
) -> None:
    outside = host.base / "models" / "secret.png"
    Image.new("RGB", (8, 8)).save(outside)
    history = History(host.base / "user" / "__lora_kiln" / "history.db")
    history.add_sample(runs[0], 1, "", outside)
    history.close()
    with pytest.raises(HostError, match=r"status 404.*no sample 0"):
        client.request(f"{BASE}/{runs[0]}/sample/0")


def test_items_with_the_highest_and_the_lowest_loss(
    client: HostClient, host: RunningHost, run_graph: RunGraph
) -> None:
    """With their pictures, where these lie among the datasets; on the tab and from the node."""
    graph = {**loaders(), **dataset(), **training(steps=16, batch_size=8, seed=305), **saved()}
    history = node(
        "KilnRunHistory", filter="", order="newest", place=1, rating=0, notes="", encoded=["encoded", 0]
    )
    run_graph(graph)
    outputs = run_graph(
        {
            **{name: graph[name] for name in ("vae", "clip", "dataset", "encoded")},
            "history": history,
            "shown": node("PreviewImage", images=["history", 3]),
        }
    )
    assert outputs["shown"]["images"], "the sheet"
    run = newest(client)["run"]
    found = client.get_json(f"{BASE}/{run}/items")
    high, low = found["high"], found["low"]
    assert len(high) == len(low) == 6 and not {i["number"] for i in high} & {i["number"] for i in low}
    assert [i["times"] for i in high] == sorted((i["times"] for i in high), reverse=True)
    assert high[0]["times"] > 1 > low[0]["times"] and low[0]["times"] <= low[1]["times"]
    assert all(i["name"].startswith("zorb_") and i["draws"] > 0 for i in high)
    picture = Image.open(io.BytesIO(base64.b64decode(high[0]["picture"].partition(",")[2])))
    assert picture.size == (64, 64)
    listed = host.base / "user" / "__lora_kiln" / "runs" / run / "dataset.json"
    outside = host.base / "models" / "secret.png"
    Image.new("RGB", (8, 8)).save(outside)
    values = json.loads(listed.read_text("utf-8"))
    values["items"] = [{**item, "source": str(outside)} for item in values["items"]]
    listed.write_text(json.dumps(values), "utf-8")
    assert not any(i["picture"] for i in client.get_json(f"{BASE}/{run}/items")["high"])


def test_deleting_takes_the_run_and_no_saved_lora(
    client: HostClient, host: RunningHost, run_graph: RunGraph
) -> None:
    outputs = run_graph({**loaders(), **dataset(), **training(seed=303), **saved()})
    run = newest(client)["run"]
    folder = host.base / "user" / "__lora_kiln" / "runs" / run
    found = client.get_json(f"{BASE}/{run}/leavings")
    assert found["lora"] and found["checkpoints"] >= 1 and found["bytes"] > 1000 and found["kept"] == []
    assert folder.is_dir()
    assert client.post_json(f"{BASE}/{run}/delete", {}) == found
    assert not folder.exists() and run not in [r["id"] for r in listed(client, "?limit=200")]
    kept = outputs["save"]["path"][0]
    assert (host.base / "output" / "loras").joinpath(*kept.replace("\\", "/").split("/")[-2:]).is_file()


def test_a_run_that_goes_on_is_not_deleted(client: HostClient, events: EventStream) -> None:
    queued = client.queue_prompt({**loaders(), **dataset(), **training(steps=100_000, seed=304), **saved()})
    wait_for_step(events, 3)
    run = newest(client)["run"]
    assert listed(client)[0]["live"]
    with pytest.raises(HostError, match=r"status 409.*still going on"):
        client.post_json(f"{BASE}/{run}/delete", {})
    tell(client, run, "finish")
    client.wait(queued, timeout=300)
    wait_for(client, run, "stopped")
    client.post_json(f"{BASE}/{run}/delete", {})
