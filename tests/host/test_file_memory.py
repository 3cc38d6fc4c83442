"""Stream from file gives back the RAM of the host's own copy, and the model stays what it is for every other node."""

from __future__ import annotations

from .in_host import run_in_host


def test_the_model_gives_up_its_copy_and_nothing_else() -> None:
    found = run_in_host("file_memory.py")
    size = found["size"]
    assert size > 80e6
    assert found["in ram before"] == size and found["in ram after"] == 0
    assert 0.95 * size < found["given back"] < 1.05 * size, "bytes of this process that are no file's"
    assert found["note"].startswith("Released ") and "MiB of RAM" in found["note"]
    assert "are read from wan.safetensors from now on" in found["note"]
    assert found["note again"] == "", "nothing more to give back"
    assert found["note of a patched one"] == found["note"]
    assert "they are float16 there and float32 in wan.safetensors" in found["note in half"]
    assert found["pinned for blocks"] > 50 and found["pinned for the file"] == 0
    untouched = {name: value for name, value in found.items() if isinstance(value, bool)}
    assert len(untouched) == 13 and all(untouched.values()), untouched
