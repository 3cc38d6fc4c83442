"""Right by an independent check: diffusers' Wan with plain peft, and both ecosystems' LoRA loaders."""

from __future__ import annotations

from .in_host import run_in_host


def test_step_and_file_equal_diffusers_and_peft() -> None:
    figures = run_in_host("parity.py")
    assert figures["layers"] == 40
    for name in ("output", "loss", "worst_gradient", "file_host_vs_diffusers", "file_host_vs_training"):
        assert figures[name] < 1e-4, figures
    assert figures["effect_of_lora"] > 0.01, "a LoRA without effect would prove nothing"
