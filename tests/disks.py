"""Small disks for tests, full and read-only; mounted in memory where that is allowed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

USER = os.geteuid() if hasattr(os, "geteuid") else 0
SUDO = ["sudo", "-n"] if USER else []


def mount(*arguments: str) -> bool:
    """Run `mount` or `umount`; whether it is there and went well."""
    if shutil.which("mount") is None:
        return False
    return subprocess.run([*SUDO, *arguments], capture_output=True, check=False).returncode == 0


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A folder is a disk of its own meanwhile, of a size such as "2m"; the test is skipped where there can be none."""
    folder.mkdir(exist_ok=True)
    if not mount("mount", "-t", "tmpfs", "-o", f"size={size},uid={USER}", "tmpfs", str(folder)):
        pytest.skip("no disk can be mounted here")
    yield folder
    assert mount("umount", "-l", str(folder))


def make_read_only(disk: Path) -> None:
    """Nothing can be written to it any more."""
    assert mount("mount", "-o", "remount,ro", str(disk))


def fill(disk: Path) -> Path:
    """Not a byte is free any more; the file that takes them."""
    ballast = disk / "ballast"
    with open(ballast, "ab", buffering=0) as file:
        for size in (1 << 16, 1 << 8, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:
                continue
    return ballast
