"""Our application of a LoRA equals the formula and the host's own loader, for every family and format."""

from __future__ import annotations

from .in_host import run_in_host


def test_every_family_and_format() -> None:
    figures = run_in_host("applying.py")
    assert len(figures["formula"]) == 10 and len(figures["loader"]) == 8
    assert figures["smallest_effect"] > 0.05, "a LoRA without effect would prove nothing"
    for name, errors in figures.items():
        for kind, error in errors.items() if isinstance(errors, dict) else []:
            assert error < 1e-6, (name, kind, error)
    assert figures["merge"] < 1e-6
