"""Kill -9 at random moments of everything that writes: training, two runs at once, encoding, saving, merging (into a
file and into a folder), changing captions, unpacking an upload, deleting.

    python -m tests.kill_campaign [--kills 1000] [--seed 0] [--only train]

After each kill every file that is there must be whole (temporary files, which are hidden, may be cut off); work that is
taken up again must end as if nothing had happened, bit for bit. At the end a table: kills, torn files, results that
differ, temporary files that were not found and removed. tests/unit/runs/test_kill_campaign.py runs 40.

Children are forked from a process that has imported everything and never computed, so a kill costs no start. With a
start for each, at full length: tests/kill_test.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import pprint
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a fork has no use for a pool of threads

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import scripts.cpu_torchvision  # noqa: F401 - before peft
from tests.unit.toy import ToyDenoiser, ToyEncoder, hold_out, make_config, make_encoded
from trainer.config import ValidationConfig
from trainer.dataset.browse import Contents, Part
from trainer.dataset.buckets import BucketOptions
from trainer.dataset.edit import Change, DatasetEditor, Seen, recover_all
from trainer.dataset.encode import encode_dataset
from trainer.dataset.scan import scan_folder
from trainer.dataset.upload import unpack
from trainer.events import emitter
from trainer.loop.checks import resolve_auto
from trainer.loop.train import train
from trainer.lora_files.lora_weights import LoraWeights
from trainer.lora_files.read import read_lora
from trainer.lora_files.save import save_lora
from trainer.model_files.merge_into_file import WeightedLora, merge_into_file
from trainer.runs.artifacts import delete_artifacts, find_artifacts
from trainer.runs.checkpoint import read_adapter, read_state
from trainer.runs.checkpoint_list import find_checkpoints
from trainer.runs.history import History, Recorder
from trainer.runs.resume import continue_run
from trainer.runs.run import LORA, Run, save_result
from trainer.temporary import remove_stale

torch.set_num_threads(1)

LAYER = "diffusion_model.blocks.0.self_attn.q"
STEPS, SIDE, FOREIGN = 30, 512, "a person's own copy.safetensors"


def hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def files_of(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and not hidden(p, folder))


def digests(folder: Path, *left_out: str) -> dict[str, str]:
    """By name of all files but temporary ones. safetensors writes metadata in no certain order."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(_content(p)).hexdigest()
        for p in files_of(folder)
        if not p.name.startswith(left_out)
    }


def _content(path: Path) -> bytes:
    if path.suffix == ".json":
        return json.dumps(json.loads(path.read_text("utf-8")), sort_keys=True).encode()
    if path.suffix != ".safetensors":
        return path.read_bytes()
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    return json.dumps(json.loads(raw[8:end]), sort_keys=True).encode() + raw[end:]


# Each kind of work: what a child does in a folder, taken up where it finds it; what must hold after a kill


def train_run(folder: Path, name: str = "run") -> None:
    """A run with everything on that has a memory, its record in the history, its LoRA and its result."""
    encoded = hold_out(
        make_encoded(folder / f"{name} items", count=9, shapes=((4, 1, 2, 2), (4, 1, 2, 3))), 2
    )
    config = make_config(steps=STEPS, dropout=0.2, gradient_accumulation=2, ema_decay=0.95)
    config = dataclasses.replace(config, checkpoint_every=3, validation=ValidationConfig(every=5))
    config = resolve_auto(config, ToyDenoiser(), None)
    found = find_checkpoints(folder / name)
    goes_on = continue_run(found[-1], folder / "fresh", config, encoded.fingerprint) if found else None
    history = History(folder / "history.db")
    if goes_on and goes_on.finished:
        ended, files = goes_on.finished, [folder / name / LORA]
        history.end_killed(name, "done", ended.losses, seconds=ended.seconds, files=files)
        history.close()
        return
    done = read_state(goes_on.checkpoint).losses if goes_on else []
    history.start(name, folder / name, config.to_dict(), encoded, "model", losses=done)
    recorder = Recorder(history, name)
    result = train(
        ToyDenoiser(),
        encoded,
        config,
        run_folder=folder / name,
        resume_from=goes_on.checkpoint if goes_on else None,
        emit=emitter([recorder]),
    )
    lora = LoraWeights({f"{LAYER}.{k}": t for k, t in result.adapter.items()})
    save_lora(folder / name / LORA, lora)
    save_result(
        Run(
            run_id=name,
            folder=folder / name,
            config=result.config,
            lora=lora,
            losses=result.losses,
            seconds=1.0,  # the same, however often it was killed
            stopped=result.stopped,
            trained_parameters=0,
            model_parameters=0,
            validation=result.validation,
            advice=result.advice,
            adapter_step=result.adapter_step,
        )
    )
    recorder.flush()
    history.end(name, "done", seconds=1.0)
    history.close()


def check_train(folder: Path, name: str = "run") -> None:
    for path in find_checkpoints(folder / name):
        read_adapter(path)  # checks the hash
    for path in (folder / name).glob("*.json"):
        json.loads(path.read_text("utf-8"))
    if (folder / name / LORA).exists():
        load_file(folder / name / LORA)
    if (folder / "history.db").exists():
        with sqlite3.connect(folder / "history.db") as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        db.close()


def train_result(folder: Path, name: str = "run") -> object:
    history = History(folder / "history.db")
    record, curve = history.record(name), history.curve(name)
    history.close()
    assert record is not None
    return record.status, len(curve), digests(folder / name)


def encode(folder: Path) -> None:
    images = folder / "images"
    images.mkdir(exist_ok=True)
    for i in range(12):  # the person's own, not what is tested
        if not (images / f"{i}.png").exists():
            Image.new("RGB", (96, 64 + 16 * (i % 3)), (i * 12, 0, 0)).save(folder / ".new.png")
            os.replace(folder / ".new.png", images / f"{i}.png")
        (images / f"{i}.txt").write_text(f"number {'x' * i}")
    dataset = scan_folder(images, facts_cache=folder / "scans")
    encode_dataset(dataset, ToyEncoder(), folder / "cache", BucketOptions(resolution=96))


def check_encode(folder: Path) -> None:
    for path in files_of(folder / "cache") if (folder / "cache").exists() else []:
        if path.suffix == ".safetensors":
            load_file(path)


def some_lora(number: int) -> LoraWeights:
    g = torch.Generator().manual_seed(number)
    a, b = torch.randn(64, SIDE, generator=g), torch.randn(SIDE, 64, generator=g)
    return LoraWeights(
        {f"{LAYER}.lora_A.weight": a, f"{LAYER}.lora_B.weight": b}, {"modelspec.architecture": "wan2.1/lora"}
    )


def save(folder: Path) -> None:
    """The same names again and again, with the one content and the other."""
    for number in range(6):
        save_lora(folder / "file.safetensors", some_lora(number % 2), dtype="bf16")
        save_lora(folder / "adapter.safetensors", some_lora(number % 2), format="peft")


def check_save(folder: Path) -> None:
    for name in ("file.safetensors", "adapter"):
        path = folder / name
        if path.exists():
            found = read_lora(path)[f"{LAYER}.lora_A.weight"].float()
            either = [some_lora(number)[f"{LAYER}.lora_A.weight"] for number in (0, 1)]
            assert any(torch.allclose(found, wanted, atol=0.05) for wanted in either), name
        elif name == "adapter" and (folder / "file.safetensors").exists():
            for before in folder.glob(".adapter-*.before"):  # moved away, and nowhere whole
                assert read_lora(before)


def merge(folder: Path) -> None:
    g = torch.Generator().manual_seed(5)
    if not (folder / "base.safetensors").exists():
        tensors = {f"blocks.{i}.self_attn.q.weight": torch.randn(SIDE, SIDE, generator=g) for i in range(4)}
        save_file(tensors, folder / ".base.tmp")
        os.replace(folder / ".base.tmp", folder / "base.safetensors")
    loras = [WeightedLora(some_lora(1), 0.8)]
    merge_into_file(folder / "base.safetensors", folder / "out" / "merged.safetensors", loras)


def check_merge(folder: Path) -> None:
    for path in files_of(folder):
        load_file(path)


def merge_folder(folder: Path) -> None:
    """A merged Wan with the components of a pipeline, over an earlier one of the same name."""
    g, pipeline = torch.Generator().manual_seed(5), folder / "pipeline"
    if not (folder / "made").exists():
        shapes = {
            "patch_embedding.weight": (SIDE, 4, 1, 2, 2),
            "text_embedding.0.weight": (SIDE, 32),
            "time_embedding.0.weight": (SIDE, 32),
            "head.head.weight": (16, SIDE),
            "blocks.0.ffn.0.weight": (SIDE, SIDE),
            "blocks.0.self_attn.q.weight": (SIDE, SIDE),
        }
        save_file({k: torch.randn(s, generator=g) for k, s in shapes.items()}, folder / "base.safetensors")
        for name in ("vae", "text_encoder", "tokenizer", "transformer"):
            (pipeline / name).mkdir(parents=True, exist_ok=True)
            (pipeline / name / "config.json").write_text("{}")
        (pipeline / "vae" / "model.safetensors").write_bytes((folder / "base.safetensors").read_bytes())
        (pipeline / "model_index.json").write_text('{"_class_name": "WanPipeline", "transformer": []}')
        (folder / "made").touch()
    for number in (0, 1):
        loras = [WeightedLora(some_lora(number), 0.8)]
        target = folder / "out" / "merged"
        merge_into_file(folder / "base.safetensors", target, loras, layout="diffusers", pipeline=pipeline)


def check_merge_folder(folder: Path) -> None:
    """A folder of that name is the one or the other; what was moved away is whole."""
    wanted = {"vae/model.safetensors", "vae/config.json", "model_index.json", "tokenizer/config.json"}
    wanted |= {
        "text_encoder/config.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
    }
    for place in (folder / "out" / "merged", *(folder / "out").glob(".merged-*.before")):
        if place.exists():
            names = {p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file()}
            assert names == wanted or place.name.endswith(".before"), names  # that one may be half deleted
            if place.name.endswith(".before") and not (folder / "out" / "merged").exists():
                assert names == wanted, "moved away, and nowhere whole"


def captioned(folder: Path) -> Path:
    """Captioned pictures, the person's own."""
    root = folder / "photos"
    if not (folder / "made").exists():
        root.mkdir(exist_ok=True)
        for number in range(24):
            Image.new("RGB", (4, 4), (number, 0, 0)).save(root / f"{number}.png")
            (root / f"{number}.txt").write_text("before")
        (folder / "made").touch()
    return root


def caption(folder: Path) -> None:
    """All captions at once, again and again."""
    root = captioned(folder)
    for text in ("red", "blue", "green"):
        recover_all(folder / "journals")
        items = Contents(root, Part()).items()
        changes = [Change(Seen(item.name, item.version), text) for item in items]
        DatasetEditor(root, Part(), folder / "journals").write(changes, "caption")


def check_caption(folder: Path) -> None:
    """What the next start does, and then: all of one change, or of the one before."""
    if (folder / "made").exists():
        recover_all(folder / "journals")
        assert len({p.read_text() for p in (folder / "photos").glob("*.txt")}) == 1


def upload(folder: Path) -> None:
    """An archive of pictures and captions into a folder."""
    if not (folder / "made").exists():
        with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
            for number in range(60):
                archive.writestr(f"{number}.png", bytes([number]) * 50_000)
        (folder / "made").touch()
    unpack(folder / "photos.zip", folder / "input", "replace")


def check_upload(folder: Path) -> None:
    for path in files_of(folder / "input") if (folder / "input").exists() else []:
        assert path.read_bytes() == bytes([int(path.stem)]) * 50_000, path.name


def delete(folder: Path) -> None:
    """A run of two checkpoints, samples and a person's own file; its record too."""
    run = folder / "run"
    history = History(folder / "history.db")
    if not (folder / "made").exists():
        shutil.rmtree(run, ignore_errors=True)
        for name in ("step-00000010", "step-00000020", "samples"):
            (run / name).mkdir(parents=True)
            for i in range(20):
                (run / name / f"{i}.png").write_bytes(b"x" * 5000)
        for name in ("lora.safetensors", "run.toml", FOREIGN):
            (run / name).write_bytes(b"x" * 5000)
        history.start("run", run, {}, make_encoded(folder / "items", count=2), "model")
        (folder / "made").touch()
    delete_artifacts(run)
    history.forget("run")
    history.close()


def check_delete(folder: Path) -> None:
    if (folder / "made").exists():
        assert (folder / "run" / FOREIGN).read_bytes() == b"x" * 5000
        find_artifacts(folder / "run")
        assert find_checkpoints(folder / "run") == []


def deleted(folder: Path) -> object:
    history = History(folder / "history.db")
    record = history.record("run")
    history.close()
    return record, [p.name for p in (folder / "run").iterdir()]


@dataclass(frozen=True)
class Kind:
    """One kind of work.

    Attributes:
        children: what each process does, all at once.
        check: after a kill; raises where a file is torn.
        result: of finished work, to compare.
    """

    children: tuple[Callable[[Path], None], ...]
    check: Callable[[Path], object]
    result: Callable[[Path], object]


def _both(act: Callable[[Path, str], object]) -> Callable[[Path], object]:
    return lambda folder: [act(folder, "first"), act(folder, "second")]


KINDS = {
    "train": Kind((train_run,), check_train, train_result),
    "two runs": Kind(
        (lambda folder: train_run(folder, "first"), lambda folder: train_run(folder, "second")),
        lambda folder: _both(check_train)(folder),
        _both(train_result),
    ),
    "encode": Kind((encode,), check_encode, lambda folder: digests(folder / "cache")),
    "save": Kind((save,), check_save, digests),
    "merge": Kind((merge,), check_merge, digests),
    "merge folder": Kind((merge_folder,), check_merge_folder, lambda folder: digests(folder / "out")),
    "caption": Kind((caption,), check_caption, lambda folder: digests(folder / "photos")),
    "upload": Kind((upload,), check_upload, lambda folder: digests(folder / "input")),
    "delete": Kind((delete,), check_delete, deleted),
}


def start(work: Callable[[Path], None], folder: Path) -> int:
    """Fork a child that works in a folder; its process id. Its exit status is 0 when it is done."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.dup2(os.open(folder / ".errors.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        work(folder)
        status = 0
    except BaseException as error:
        print(repr(error), file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(status)


def run_to_the_end(kind: Kind, folder: Path) -> float:
    """Seconds that it took."""
    began = time.monotonic()
    for child in [start(work, folder) for work in kind.children]:
        _, status = os.waitpid(child, 0)
        assert status == 0, (folder / ".errors.log").read_text("utf-8")
    return time.monotonic() - began


@dataclass
class Count:
    """Of one kind of work."""

    kills: int = 0
    finished: int = 0  # times it was done to the end after kills
    torn: int = 0
    different: int = 0
    leftovers: int = 0


def kill_once(kind: Kind, folder: Path, moment: float) -> int:
    """How many children the kill met at work."""
    children = [start(work, folder) for work in kind.children]
    time.sleep(moment)
    for child in children:
        os.kill(child, signal.SIGKILL)
    return sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL for child in children)


def campaign(kills: int, seed: int, only: str = "", keep: str = "") -> dict[str, Count]:
    """keep: a folder for what differs."""
    draws = random.Random(seed)
    names = [name for name in KINDS if not only or name == only]
    counts = {name: Count() for name in names}
    with tempfile.TemporaryDirectory() as base:
        alone, taken, expected = {}, {}, {}
        for name in names:
            folder = Path(base) / "alone" / name
            folder.mkdir(parents=True)
            run_to_the_end(KINDS[name], folder)
            taken[name], expected[name] = _usual_time(KINDS[name], folder), KINDS[name].result(folder)
        alone = {name: Path(base) / "killed" / name for name in names}
        while sum(count.kills for count in counts.values()) < kills:
            name = min(names, key=lambda n: (counts[n].kills, draws.random()))
            kind, folder, count = KINDS[name], alone[name], counts[name]
            folder.mkdir(parents=True, exist_ok=True)
            met = bool(kill_once(kind, folder, draws.uniform(0.0, taken[name])))
            count.kills += met
            done = sum(each.kills for each in counts.values())
            if met and done % 100 == 0:
                print(f"{done} kills", flush=True)
            try:
                kind.check(folder)
            except Exception as error:
                count.torn += 1
                print(f"{name}: torn: {error!r}", flush=True)
            if draws.random() < 0.2:
                _finish(kind, folder, expected[name], count, name, keep)
        for name in names:
            if alone[name].exists():
                _finish(KINDS[name], alone[name], expected[name], counts[name], name, keep)
    return counts


def _usual_time(kind: Kind, folder: Path) -> float:
    """From nothing, when everything is loaded."""
    again = folder.with_name(f"{folder.name} timed")
    again.mkdir()
    taken = run_to_the_end(kind, again)
    shutil.rmtree(again)
    return taken


def _finish(kind: Kind, folder: Path, expected: object, count: Count, name: str, keep: str) -> None:
    """Let the work end undisturbed, compare, and begin anew. Before, what the host does when it starts."""
    places = [folder, *(p for p in folder.rglob("*") if p.is_dir())]
    remove_stale(places)
    remove_stale(
        places, now=time.time() + 7200
    )  # an hour later those whose process is not known, of safetensors
    run_to_the_end(kind, folder)
    count.finished += 1
    found = kind.result(folder)
    if found != expected:
        count.different += 1
        print(
            f"{name}: differs:\n" + "\n".join(sorted(set(_lines(found)) ^ set(_lines(expected)))), flush=True
        )
        if keep:
            shutil.copytree(folder, Path(keep) / f"{name} {count.different}")
    left = [p for p in folder.rglob(".*") if p.name != ".errors.log"]
    if left:
        print(f"{name}: left over: {', '.join(p.name for p in left)}", flush=True)
    count.leftovers += len(left)
    shutil.rmtree(folder)


def _lines(result: object) -> list[str]:
    return pprint.pformat(result, width=1).splitlines()


def table(counts: dict[str, Count]) -> str:
    heads = ("kills", "finished", "torn", "different", "leftovers")
    lines = ["| work | " + " | ".join(heads) + " |", "| --- |" + " --- |" * len(heads)]
    total: Counter[str] = Counter()
    for name, count in counts.items():
        values = dataclasses.asdict(count)
        total.update(values)
        lines.append(f"| {name} | " + " | ".join(str(values[head]) for head in heads) + " |")
    return "\n".join([*lines, "| all | " + " | ".join(str(total[head]) for head in heads) + " |"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", choices=["", *KINDS])
    parser.add_argument("--keep", default="", help="a folder for what differs")
    arguments = parser.parse_args()
    counts = campaign(arguments.kills, arguments.seed, arguments.only, arguments.keep)
    print(table(counts))
    return int(any(count.torn or count.different or count.leftovers for count in counts.values()))


if __name__ == "__main__":
    sys.exit(main())
