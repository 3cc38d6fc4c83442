"""What the dataset page asks over HTTP, and that nothing a client sends reaches a file outside the dataset."""

from __future__ import annotations

import io
import json
import random
import re
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from scripts.host import RunningHost
from scripts.host_client import EventStream, HostClient
from tests.media import clip, picture, scene
from trainer.dataset.buckets import BucketOptions
from trainer.dataset.report import DatasetReport
from trainer.dataset.scan import ScanOptions, scan_folder

BASE = "/lora_kiln/dataset"
BYTES = "application/octet-stream"


@pytest.fixture
def folder(host: RunningHost, request: pytest.FixtureRequest) -> Path:
    """A dataset of two pictures, one with a mask, and a clip; another one for every test."""
    made = host.base / "input" / re.sub(r"\W", "_", f"bench_{request.node.name[:80]}")
    for number in range(2):
        made.mkdir(exist_ok=True)
        scene(number, (96, 80)).save(made / f"{number}.png")
        (made / f"{number}.txt").write_text(f"caption {number}", "utf-8")
    picture(made / "masks" / "1.png", (96, 80), "white")
    clip(made / "clip.mp4")
    return made


def ask(
    client: HostClient, path: str, data: Any = None, kind: str = "application/json", **headers: str
) -> tuple[int, Any]:
    """Status and answer, whatever they are."""
    body = data if data is None or isinstance(data, bytes) else json.dumps(data).encode()
    sent = (
        {"Content-Type": kind, **{k.replace("_", "-"): v for k, v in headers.items()}}
        if body is not None
        else headers
    )
    request = urllib.request.Request(
        client.url + path, body, {k.replace("_", "-"): v for k, v in sent.items()}
    )
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            request, timeout=300
        ) as answer:
            status, content = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        status, content = error.code, error.read()
    try:
        return status, json.loads(content)
    except ValueError:
        return status, content


def get(client: HostClient, what: str, **query: Any) -> tuple[int, Any]:
    return ask(client, f"{BASE}/{what}?{urllib.parse.urlencode(query)}")


def listed(client: HostClient, folder: Path, **query: Any) -> dict[str, Any]:
    status, answer = get(client, "items", folder=folder.name, **query)
    assert status == 200, answer
    return {item["name"]: item for item in answer["items"]} | {"": answer}


def wait_figures(client: HostClient, folder: Path, **query: Any) -> dict[str, Any]:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        status, answer = get(client, "figures", folder=folder.name, resolution=64, max_frames=9, **query)
        assert status == 200, answer
        if answer["ready"]:
            found: dict[str, Any] = answer
            return found
        time.sleep(0.05)
    raise TimeoutError("the folder was not measured")


def everything(host: RunningHost) -> dict[str, bytes]:
    """All files below the server's folders, apart from its log and what our own store holds."""
    files = (p for p in host.base.rglob("*") if p.is_file() and "__lora_kiln" not in p.parts)
    return {str(p): p.read_bytes() for p in files if p.suffix not in (".log", ".db", ".pyc")}


def test_what_is_in_a_folder(client: HostClient, folder: Path) -> None:
    found = listed(client, folder)
    assert [*found][:-1] == ["0.png", "1.png", "clip.mp4"] and found[""]["writable"]
    assert found["0.png"]["caption"] == "caption 0" and found["clip.mp4"]["clip"] and found["1.png"]["mask"]
    assert [folder.name, 3] in get(client, "folders")[1]["folders"]
    seen = get(client, "glance", folder=folder.name)[1]
    assert (seen["count"], seen["clips"], seen["without"]) == (3, 1, 1) and seen["first"][0][
        "name"
    ] == "0.png"
    assert "does not exist" in get(client, "glance", folder="nowhere")[1]["missing"]
    (folder / "broken.png").write_bytes(b"no picture")
    figures = wait_figures(client, folder)
    assert figures["items"]["0.png"] | {"warnings": 0} == {
        "width": 96,
        "height": 80,
        "frames": 1,
        "seconds": 0.0,
        "bucket": "64x48",
        "lost": figures["items"]["0.png"]["lost"],
        "repeats": 1,
        "masked": False,
        "warnings": 0,
    }
    assert figures["items"]["1.png"]["masked"] and figures["items"]["clip.mp4"]["frames"] == 20
    assert [w["kind"] for w in figures["items"]["clip.mp4"]["warnings"]].count("no caption") == 1
    assert len(figures["skipped"]) == 1 and "broken.png" in figures["skipped"][0]


@pytest.mark.parametrize("seed", range(6))
def test_the_node_the_page_and_the_report_leave_out_the_same(
    client: HostClient, folder: Path, seed: int
) -> None:
    """Of a folder of odd things: what the strip says, what the page lists, what the node and the report say."""
    draw = random.Random(seed)
    odd: dict[str, bytes] = {
        "broken.png": b"no picture",
        "orphan.txt": b"of nothing",
        "deep/c.png": (folder / "0.png").read_bytes(),
        "metadata.csv": b"file_name,text\n1.png,one, of two\ngone.png,lost\n",
        "2.png.json": b"{broken",
        "notes.md": b"x",
        "masks/gone.png": (folder / "0.png").read_bytes(),
        "0731_trip/d.png": (folder / "1.png").read_bytes(),
        "set_aside/e.png": (folder / "1.png").read_bytes(),
        "@eaDir/f.jpg": b"",
        "0.json": b'{"prompt": {"3": {}}}',
    }
    for name in draw.sample(sorted(odd), 5):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(odd[name])
    recursive = draw.random() < 0.5
    dataset = scan_folder(folder, ScanOptions(on_bad_file="skip", recursive=recursive))
    page = wait_figures(client, folder, recursive=int(recursive))
    told = get(client, "left_out", folder=folder.name, recursive=int(recursive))[1]
    assert told == {
        "ready": True,
        "error": "",
        "skipped": page["skipped"],
        "remarks": page["remarks"],
        "count": len(dataset.items),
        "clips": 1,
        "without": sum(not item.caption for item in dataset.items),
    }
    assert len(page["items"]) == len(dataset.items)
    assert {folder / name: reason for name, reason in page["bad"].items()} == dict(dataset.bad)
    pictures = {
        name
        for name, item in listed(client, folder, recursive=int(recursive)).items()
        if name and not item["aside"]
    }
    assert {*page["items"], *page["bad"]} == pictures, "every tile has figures or a reason"
    report, said = DatasetReport(dataset, BucketOptions()).markdown(), dataset.describe()
    sentences = [*told["skipped"], *told["remarks"]]
    assert sentences
    for sentence in sentences:
        assert sentence in said and sentence.replace("`", "'") in report, sentence
    assert len(sentences) == sum(line.startswith(("skipped: ", "note: ")) for line in said.splitlines())


@pytest.mark.parametrize("controls", ["{}/before", ".", "", "{}/before, ."])
def test_control_pictures_are_no_items_on_the_page(client: HostClient, folder: Path, controls: str) -> None:
    """Those of a folder within the dataset, beside the items, and named by a column: as where it is trained."""
    names = controls.format(folder.name)
    for path in sorted(folder.glob("*.*")):
        beside = folder / f"{path.stem}_control.png" if "." in names.split(", ") else None
        for control in (folder / "before" / f"{path.stem}.png" if "before" in names else None, beside):
            if control is not None:
                picture(control, (96, 80))
    if not names:
        picture(folder / "made" / "0.png", (96, 80))
        rows = [{"file_name": "0.png", "control_path": "made/0.png"}]
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = ScanOptions(
        recursive=True,
        control_folders=tuple(
            folder if n == "." else folder.parent / n for n in filter(None, names.split(", "))
        ),
    )
    dataset = scan_folder(folder, options)
    assert len(dataset.items) == 3 and any(item.controls for item in dataset.items)
    page = wait_figures(client, folder, recursive=1, controls=names)
    pictures = [name for name in listed(client, folder, recursive=1, controls=names) if name]
    assert {*pictures} - {*page["controls"]} == {*page["items"]} == {"0.png", "1.png", "clip.mp4"}
    told = get(client, "left_out", folder=folder.name, recursive=1, controls=names)[1]
    assert told["count"] == 3 and told["remarks"] == list(dataset.remarks)


def test_a_control_folder_that_is_not_there_is_said(client: HostClient, folder: Path) -> None:
    """The pictures are listed all the same, as its name is being typed."""
    query = {"folder": folder.name, "controls": "nowhe"}
    assert [*listed(client, folder, controls="nowhe")][:-1] == ["0.png", "1.png", "clip.mp4"]
    assert get(client, "glance", **query)[1]["count"] == 3
    for what in ("left_out", "figures"):
        status, answer = get(client, what, **query)
        assert status == 409 and "'nowhe' does not exist" in answer["error"]


def test_masks_that_keep_nothing_do_not_count_where_they_are_off(client: HostClient, folder: Path) -> None:
    (folder / "clip.mp4").unlink()
    (folder / "0.png").unlink()
    picture(folder / "masks" / "1.png", (96, 80), "black")
    assert "keep nothing" in wait_figures(client, folder)["error"]
    assert wait_figures(client, folder, masks="0")["error"] == ""


def test_a_folder_of_bad_files_alone_is_said(client: HostClient, folder: Path) -> None:
    for file in folder.iterdir():
        if file.is_file():
            file.unlink()
    (folder / "broken.png").write_bytes(b"no picture")
    page = wait_figures(client, folder)
    told = get(client, "left_out", folder=folder.name)[1]
    assert "none of its 1 images can be read. The image" in told["error"] and told["error"] == page["error"]


def test_pictures(client: HostClient, folder: Path) -> None:
    for name in ("0.png", "clip.mp4"):
        status, small = get(client, "thumbnail", folder=folder.name, name=name, side=96)
        assert status == 200 and max(Image.open(io.BytesIO(small)).size) <= 96
        status, whole = get(client, "file", folder=folder.name, name=name)
        assert status == 200 and whole == (folder / name).read_bytes()
    clip(folder / "one.mp4", frames=1)
    status, small = get(client, "thumbnail", folder=folder.name, name="one.mp4", side=96)
    assert status == 200 and Image.open(io.BytesIO(small)).size == (64, 48), "a clip of one frame has it"
    status, red = get(client, "overlay", folder=folder.name, name="1.png")
    assert status == 200 and Image.open(io.BytesIO(red)).getextrema()[3] == (0, 0), (
        "a white mask hides nothing"
    )
    assert get(client, "overlay", folder=folder.name, name="0.png")[0] == 404
    for place in ("sub", "masks/sub"):
        picture(folder / place / "b.png", (96, 80), "black")
    status, red = get(client, "overlay", folder=folder.name, name="sub/b.png")
    assert status == 200 and Image.open(io.BytesIO(red)).getextrema()[3] == (170, 170), (
        "a black one hides all"
    )
    (folder / "broken.png").write_bytes(b"no picture")
    assert get(client, "thumbnail", folder=folder.name, name="broken.png")[0] == 409


def test_a_mask_is_painted(client: HostClient, folder: Path) -> None:
    """What the host's editor is given, and what becomes of what it gives back."""
    status, place = ask(client, f"{BASE}/mask/sheet", {"folder": folder.name, "name": "1.png"})
    assert status == 200 and place["type"] == "temp"
    shown = Image.open(io.BytesIO(ask(client, f"/view?{urllib.parse.urlencode(place)}")[1]))
    assert shown.size == (96, 80) and shown.getextrema()[3] == (0, 0), "a white mask: all of it is painted"
    painted = Image.new("RGBA", (96, 80), (9, 9, 9, 255))
    painted.paste((0, 0, 0, 76), (0, 0, 48, 80))  # a brush of 70 %
    out = io.BytesIO()
    painted.save(out, "PNG")
    version = listed(client, folder)["1.png"]["version"]
    query = urllib.parse.urlencode({"folder": folder.name, "name": "1.png", "version": version})
    status, answer = ask(client, f"{BASE}/mask?{query}", out.getvalue(), BYTES)
    assert status == 200 and answer["items"][0]["mask"] and answer["undo"]["what"] == "mask"
    mask = Image.open(folder / "masks" / "1.png")
    assert (mask.mode, mask.getpixel((10, 10)), mask.getpixel((90, 70))) == ("L", 255, 0)
    Image.new("RGBA", (96, 80)).save(out := io.BytesIO(), "WEBP")
    for body, sentence in ((b"no picture", "cannot be read"), (out.getvalue(), "cannot be read")):
        status, answer = ask(client, f"{BASE}/mask?{query}", body, BYTES)
        assert status == 409 and sentence in answer["error"]


def test_write_set_aside_and_undo(client: HostClient, folder: Path, events: EventStream) -> None:
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    item = listed(client, folder)["0.png"]
    change = {"name": "0.png", "version": item["version"], "caption": "new", "fields": {"lighting": "neon"}}
    status, answer = ask(
        client, f"{BASE}/write", {"folder": folder.name, "what": "caption", "changes": [change]}
    )
    assert status == 200 and answer["items"][0]["caption"] == "new" and answer["undo"]["count"] == 1
    told = events.wait_for(lambda e: e.type == "lora_kiln.dataset")
    assert told.data == {"folder": folder.name, "names": ["0.png"]}
    assert (folder / "0.txt").read_text() == "new" and json.loads((folder / "0.json").read_text())[
        "lighting"
    ] == "neon"
    status, answer = ask(
        client, f"{BASE}/write", {"folder": folder.name, "what": "caption", "changes": [change]}
    )
    assert status == 409 and answer["outdated"] == ["0.png"] and answer["items"][0]["caption"] == "new"
    many = [{"name": f"{n}.png", "version": "old", "caption": ""} for n in range(50_000)]
    status, answer = ask(client, f"{BASE}/write", {"folder": folder.name, "what": "caption", "changes": many})
    assert status == 409 and len(answer["outdated"]) == 100
    assert [item["name"] for item in answer["items"]] == ["0.png", "1.png"], "those that there are"
    seen = [{"name": n, "version": listed(client, folder)[n]["version"]} for n in ("0.png", "1.png")]
    status, answer = ask(client, f"{BASE}/set_aside", {"folder": folder.name, "items": seen})
    assert status == 200 and (folder / "set_aside" / "masks" / "1.png").is_file()
    for _ in range(2):
        status, answer = ask(client, f"{BASE}/undo", {"folder": folder.name, "id": answer["undo"]["id"]})
        assert status == 200, answer
    assert answer["undo"] is None
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_deleting_needs_the_number_that_was_asked_about(client: HostClient, folder: Path) -> None:
    seen = [{"name": "1.png", "version": listed(client, folder)["1.png"]["version"]}]
    assert ask(client, f"{BASE}/delete", {"folder": folder.name, "items": seen})[0] == 400
    assert (folder / "1.png").is_file()
    status, answer = ask(client, f"{BASE}/delete", {"folder": folder.name, "items": seen, "sure": 1})
    assert status == 200 and answer["files"] == 3
    assert sorted(p.name for p in folder.rglob("*") if p.is_file()) == ["0.png", "0.txt", "clip.mp4"]


def test_uploads(client: HostClient, host: RunningHost, folder: Path) -> None:
    target = f"{folder.name}/new"
    status, answer = ask(client, f"{BASE}/upload/look", {"folder": target, "names": ["a.png", "b.exe"]})
    assert (
        status == 200 and answer["taken"] == ["a.png"] and not answer["exists"] and answer["limit"] > 1 << 20
    )
    assert answer["refused"][0][0] == "b.exe"
    data = (folder / "0.png").read_bytes()
    query = urllib.parse.urlencode({"folder": target, "name": "sub/a.png"})
    assert ask(client, f"{BASE}/upload/file?{query}", data, BYTES)[0] == 200
    assert (folder / "new" / "sub" / "a.png").read_bytes() == data
    status, answer = ask(client, f"{BASE}/upload/file?{query}", b"other", BYTES)
    assert status == 409 and answer["exists"] == "sub/a.png"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("sub/a.png", data + b" ")
        archive.writestr("b.txt", "a caption")
        archive.writestr("../../up.png", data)
    status, answer = ask(client, f"{BASE}/upload/archive?folder={target}", packed.getvalue(), BYTES)
    assert status == 200 and answer["clashing"] == ["sub/a.png"] and len(answer["refused"]) == 1
    body = {"folder": target, "token": answer["token"], "clash": "keep both"}
    assert ask(client, f"{BASE}/upload/unpack", body) == (200, {"written": 2})
    assert (folder / "new" / "sub" / "a (1).png").read_bytes() == data + b" "
    assert ask(client, f"{BASE}/upload/unpack", body)[0] == 404, "an archive is unpacked once"
    assert not list((host.base / "user" / "__lora_kiln" / "uploads").iterdir())


def test_an_upload_above_the_hosts_limit(client: HostClient, folder: Path) -> None:
    limit = ask(client, f"{BASE}/upload/look", {"folder": folder.name, "names": []})[1]["limit"]
    query = urllib.parse.urlencode({"folder": folder.name, "name": "big.png"})
    head = f"POST {BASE}/upload/file?{query} HTTP/1.1\r\nHost: x\r\nContent-Type: {BYTES}\r\n"
    head += f"Content-Length: {limit + 1}\r\n\r\n"
    parts = urllib.parse.urlsplit(client.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=120) as connection:
        connection.sendall(head.encode())
        said = connection.recv(4000).decode()
    assert "413" in said.splitlines()[0] and "--max-upload-size" in said
    assert not (folder / "big.png").exists()


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=["origin", "cross-site", "same-site"],
)
def test_foreign_pages_are_refused(client: HostClient, folder: Path, headers: dict[str, str]) -> None:
    before = sorted(p.name for p in folder.rglob("*"))
    version = listed(client, folder)["0.png"]["version"]
    change = {"name": "0.png", "version": version, "caption": "theirs"}
    bodies: dict[str, Any] = {
        "write": {"folder": folder.name, "what": "caption", "changes": [change]},
        "delete": {"folder": folder.name, "items": [change], "sure": 1},
        "upload/look": {"folder": folder.name, "names": []},
        f"upload/file?folder={folder.name}&name=x.png": b"data",
        f"mask?folder={folder.name}&name=0.png&version={version}": b"data",
        "mask/sheet": {"folder": folder.name, "name": "0.png"},
        f"items?folder={folder.name}": None,
        f"file?folder={folder.name}&name=0.png": None,
    }
    for path, body in bodies.items():
        kind = BYTES if isinstance(body, bytes) else "application/json"
        assert ask(client, f"{BASE}/{path}", body, kind, **headers)[0] == 403, path
    assert sorted(p.name for p in folder.rglob("*")) == before
    assert (folder / "0.txt").read_text() == "caption 0"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_bodies_that_a_form_can_send_are_refused(client: HostClient, folder: Path, kind: str) -> None:
    body = json.dumps({"folder": folder.name, "names": []}).encode()
    assert ask(client, f"{BASE}/upload/look", body, kind)[0] == 415
    assert ask(client, f"{BASE}/upload/file?folder={folder.name}&name=x.png", b"data", kind)[0] == 415


def test_folders_outside_are_not_written(client: HostClient, host: RunningHost, tmp_path: Path) -> None:
    for name in ("..", "../output", str(tmp_path), "/", "~", "a\0b", "x" * 5000, "\ud800", ""):
        assert ask(client, f"{BASE}/upload/look", {"folder": name, "names": []})[0] in (400, 409), name
        assert ask(client, f"{BASE}/undo", {"folder": name, "id": "1"})[0] in (400, 403, 404), name
        query = urllib.parse.urlencode({"folder": name}, errors="replace")
        assert ask(client, f"{BASE}/items?{query}")[0] in (400, 404), name


NASTY = [
    *(
        "../0.png",
        "..",
        ".",
        "",
        "/etc/passwd",
        "..\\0.png",
        "a/../../x.png",
        "%2e%2e/x.png",
        "\0",
        "x" * 3000,
    ),
    *(
        "set_aside/../../x.png",
        "link/x.png",
        "\ud800.png",
        "con.png",
        None,
        7,
        [],
        {},
        True,
        1e308,
        "0.png/x.png",
    ),
    *(
        "//x.png",
        "C:\\x.png",
        "~/x.png",
        "\u202e.png",
        "masks/../../../x.png",
        "0.png\n",
        ["0.png"],
        {"name": "0.png"},
    ),
]


def test_fuzzed_requests_touch_nothing_outside(
    client: HostClient, host: RunningHost, folder: Path, tmp_path: Path
) -> None:
    """Every route, with fields of wrong kinds and names that lead elsewhere: an answer each time, no traceback."""
    picture(tmp_path / "x.png", caption="outside")
    (folder / "link").symlink_to(tmp_path, target_is_directory=True)
    good = listed(client, folder)["0.png"]["version"]
    before = everything(host)
    rng = random.Random(5)

    def some(*usual: Any) -> Any:
        return rng.choice([*usual, *NASTY])

    def seen() -> Any:
        return some(
            {
                "name": some("0.png", "nothing.png"),
                "version": some(good),
                "caption": some("x", None),
                "fields": some({}, {"a": some("b")}),
            }
        )

    posts = (
        "write",
        "set_aside",
        "bring_back",
        "delete",
        "undo",
        "upload/look",
        "upload/unpack",
        "mask/sheet",
    )
    gets = ("items", "glance", "figures", "left_out", "thumbnail", "overlay", "file", "folders")
    allowed = {200, 400, 403, 404, 409, 413, 415}  # 403: the input folder itself is only shown
    for number in range(400):
        what = rng.choice((*posts, *gets, "upload/file", "upload/archive", "mask"))
        name, place = some("0.png"), some(folder.name)
        if what in posts:
            body = {
                "folder": place,
                "what": some("caption"),
                "changes": some(
                    [{**c} for c in [seen()] if isinstance(c, dict) and c.get("name") != "0.png"]
                ),
                "items": some([seen() for _ in range(2)]),
                "names": some(["0.png"], [some("a.png")]),
                "id": some("1"),
                "sure": some(1, 2),
                "token": some("0" * 32),
                "clash": some("refuse"),
                "name": name,
            }
            status, answer = ask(client, f"{BASE}/{what}", rng.choice([body, body, body, some([body])]))
        else:
            query = {
                "folder": place,
                "name": name,
                "side": some(96),
                "recursive": some(0),
                "clash": some("refuse"),
            }
            address = f"{BASE}/{what}?{urllib.parse.urlencode(query, errors='replace')}"
            sent = b"data" if what.startswith("upload") or what == "mask" else None
            status, answer = ask(client, address, sent, BYTES)
        assert status in allowed, (number, what, status, answer)
        if status >= 400 and isinstance(answer, dict):
            assert (
                answer["error"]
                and "Traceback" not in answer["error"]
                and str(tmp_path) not in answer["error"]
            )
    after = everything(host)
    changed = {p for p in {*before, *after} if before.get(p) != after.get(p)}
    changed = {p for p in changed if not Path(p).is_relative_to(host.base / "temp" / "kiln_masks")}
    assert all(Path(p).is_relative_to(host.base / "input") for p in changed), changed
    elsewhere = {
        p for p in changed if not Path(p).is_relative_to(folder)
    }  # uploads into folders of other names
    assert elsewhere.isdisjoint(before), elsewhere
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.png", "x.txt"]
    log = host.read_log()
    assert (
        "Error handling request" not in log
        and "dataset_routes.py" not in log
        and "upload_routes.py" not in log
        and "mask_routes.py" not in log
    )
