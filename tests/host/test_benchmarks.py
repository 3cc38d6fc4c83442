"""Benchmarks run, small and with few steps; their figures are not looked at."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from benchmarks import dataset_scan
from benchmarks.host_process import Task
from benchmarks.small_card import case_of, is_of, simulate
from benchmarks.small_card import table as table_of_cards
from benchmarks.step_time import adapter_bound, measure, summary, table
from benchmarks.wan_shape import WanShape, write_wan


def test_contestants_take_turns_and_are_compared(tmp_path: Path) -> None:
    shape, model = WanShape(256, 512, 2), tmp_path / "wan.safetensors"
    write_wan(model, shape)
    task = Task(str(model), height=16, width=16, text=8, rank=4)
    figures = measure(task, ["floor", "ours", "host_weight"], rounds=2, steps=2, warm_up=1)
    assert {name: len(f.seconds) for name, f in figures.items()} == {"floor": 4, "ours": 4, "host_weight": 4}
    assert figures["ours"].peak_bytes > 0
    found = summary(task, shape, figures, "some host")
    for name in ("ratio_to_floor", "speedup_vs_host_best", "memory_vs_host_best"):
        assert found[name] > 0
    assert "| LoRA Kiln |" in table(found)


def test_the_bound_counts_the_adapters() -> None:
    shape = WanShape(768, 3072, 6)
    low, high = (adapter_bound(shape, 256, 128, rank) - 1 for rank in (16, 64))
    assert 0.04 < low < 0.05 and abs(high - 4 * low) < 1e-9


def test_looking_and_decoding_take_turns(tmp_path: Path) -> None:
    rows = dataset_scan.by_kind(tmp_path, files=2)
    assert len(rows) == 4 and all(one > 0 and other > 0 for _, one, other in rows)
    assert "| ratio |" in dataset_scan.table(rows, ("file", "decoding", "looking at it"), "ratio")
    assert len(dataset_scan.known(tmp_path, 3)) == 3


def test_the_memory_plan_agrees_with_the_simulation() -> None:
    case = case_of("wan-1.3b", "fp8-scaled", "480x832x33", card_gb=3)
    (found,) = simulate([case])
    assert abs(found["planned_device_bytes"] / found["peak_device_bytes"] - 1) < 0.1, found
    assert found["level"] != "resident" and found["peak_device_bytes"] < 3e9
    assert "activations" not in found["kept_after_a_step"], found
    assert "| wan-1.3b | fp8-scaled | 480x832x33 | 3 | auto:" in table_of_cards([found])
    assert is_of(found, case) and not is_of(found, dataclasses.replace(case, frames=81))
