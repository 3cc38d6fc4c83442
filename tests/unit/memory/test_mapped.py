"""Weights that are the file's pages: the model gives up its copies and stays what it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from trainer.memory.mapped import is_mapped, map_weights, release_copies


def make(dtype: torch.dtype = torch.float32) -> nn.Module:
    """As a loader node leaves it: inference tensors in memory of their own."""
    torch.manual_seed(3)
    with torch.inference_mode():
        network = nn.Sequential(nn.Linear(64, 128), nn.LayerNorm(128), nn.Linear(128, 64))
        network[0].weight[0, :3] = torch.tensor([float("nan"), -0.0, float("inf")])
        return network.to(dtype)


def write(network: nn.Module, path: Path, prefix: str = "model.diffusion_model.") -> Path:
    save_file({prefix + k: v.clone() for k, v in network.state_dict().items()}, path)
    return path


def bits(network: nn.Module) -> dict[str, bytes]:
    return {k: v.view(torch.uint8).numpy().tobytes() for k, v in network.state_dict().items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_every_copy_is_given_up(tmp_path: Path, dtype: torch.dtype, prefix: str) -> None:
    network = make(dtype)
    file = write(network, tmp_path / "model.safetensors", prefix)
    before = bits(network)
    network[0].weight.noted = "by the host"
    done = release_copies(network, file)
    assert bits(network) == before and not done.kept
    assert done.released == sum(p.numel() * p.element_size() for p in network.parameters())
    assert all(map(is_mapped, network.parameters()))
    assert network[0].weight.noted == "by the host"
    assert "Released 0." in done.sentence() and "model.safetensors" in done.sentence()
    again = release_copies(network, file)
    assert not again.released and not again.sentence() and bits(network) == before


def test_a_change_afterwards_is_the_models_own(tmp_path: Path) -> None:
    network, other = make(), make()
    file = write(network, tmp_path / "model.safetensors")
    raw = file.read_bytes()
    release_copies(network, file)
    release_copies(other, file)
    with torch.inference_mode():  # as the host patches in place
        network[2].weight.data.copy_(torch.full((64, 128), 7.0))
    assert torch.all(network[2].weight == 7)
    assert file.read_bytes() == raw and torch.equal(other[2].weight, make()[2].weight)
    again = release_copies(network, file)
    assert torch.all(network[2].weight == 7), "a changed model is never put back"
    assert not again.released and not again.kept, "what is mapped is not read again"


def test_what_is_not_the_file_stays(tmp_path: Path) -> None:
    network = make()
    file = write(network, tmp_path / "model.safetensors")
    with torch.inference_mode():
        network[0].weight[127, 63] += 1e-3  # the last value of all: samples would miss most of them
    before, own = bits(network), network[0].weight
    done = release_copies(network, file)
    assert bits(network) == before and network[0].weight is own and is_mapped(network[2].weight)
    assert done.kept == {"they were changed after loading": 64 * 128 * 4}
    assert done.sentence().endswith("0.03 MiB of the model stay in RAM: they were changed after loading.")

    half = make(torch.float16)
    done = release_copies(half, file)
    assert not done.released and not any(map(is_mapped, half.parameters()))
    assert "they are float16 there and float32 in model.safetensors" in done.sentence()
    done = release_copies(nn.Sequential(nn.Linear(5, 5)), file)
    assert "in another order" in done.sentence()
    done = release_copies(nn.ModuleDict({"other": nn.Linear(64, 128)}), file)
    assert "does not hold them under the model's names" in done.sentence()
    done = release_copies(half, tmp_path / "gone.safetensors")
    assert "gone.safetensors cannot be mapped (There is no file" in done.sentence()


def test_a_tensor_in_two_places_stays_one(tmp_path: Path) -> None:
    network = nn.ModuleDict({"a": nn.Linear(8, 8, bias=False), "b": nn.Linear(8, 8, bias=False)})
    network["b"].weight = network["a"].weight
    save_file({"b.weight": network["b"].weight.detach()}, tmp_path / "model.safetensors")
    assert release_copies(network, tmp_path / "model.safetensors").released == 8 * 8 * 4
    assert network["a"].weight is network["b"].weight and is_mapped(network["a"].weight)


def test_a_file_that_is_replaced_or_deleted_stays_readable(tmp_path: Path) -> None:
    network = make()
    before = bits(network)
    file = write(network, tmp_path / "model.safetensors")
    release_copies(network, file)
    os.replace(write(make(torch.float16), tmp_path / "new.safetensors"), file)
    assert bits(network) == before
    file.unlink()
    assert bits(network) == before


def test_a_file_larger_than_all_memory_is_mapped(tmp_path: Path) -> None:
    network = make()
    file = write(network, tmp_path / "model.safetensors")
    memory = sum(
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith(("MemTotal", "SwapTotal"))
    )
    os.truncate(file, memory + (1 << 30))  # a hole: it takes no room on the disk
    own = network[2].weight.detach()
    assert torch.equal(map_weights(file, {"2.weight": own})["2.weight"], own)
    assert not release_copies(network, file).kept


def test_samples_of_a_large_tensor_lie_inside_it(tmp_path: Path) -> None:
    size = (
        5120 * 13824
    )  # of the 14B's prefetcher-forward: as a single-precision number its last place is one too many
    save_file({"weight": torch.zeros(size, dtype=torch.uint8)}, tmp_path / "large.safetensors")
    own = torch.zeros(1, dtype=torch.uint8).expand(size)
    assert map_weights(tmp_path / "large.safetensors", {"weight": own})["weight"].shape == (size,)


def test_mapped_weights_can_be_saved(tmp_path: Path) -> None:
    network = make()
    file = write(network, tmp_path / "model.safetensors", "")
    release_copies(network, file)
    save_file(network.state_dict(), tmp_path / "copy.safetensors")
    assert {k: v.numpy().tobytes() for k, v in load_file(tmp_path / "copy.safetensors").items()} == {
        k: v.numpy().tobytes() for k, v in network.state_dict().items()
    }
