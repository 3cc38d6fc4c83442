"""A network's weights as its safetensors file has them, mapped into memory: a page is read when it is looked at, and
the system may drop it again at any time. Such memory is the page cache's; it takes no room of this process.

Two kinds of mapping. Streaming reads through one that cannot be written. The network's own parameters get one that may
be (a page that somebody changes becomes private memory, the file stays as it is), without a reservation of swap space:
safetensors' own mapping asks for one, and fails where a file is larger than RAM and swap together.
"""

from __future__ import annotations

import mmap
import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import KilnError
from ..model_files.safetensors_file import DTYPES, SafetensorsFile
from .cpu_tuning import trim_heap
from .ledger import size_of

# What model files put before the network's own names
PREFIXES = ("", "model.diffusion_model.", "diffusion_model.")
SAMPLES = 64  # values compared per tensor, spread over it
_NO_RESERVE = 0x4000  # MAP_NORESERVE of <sys/mman.h>; Python names it from 3.13 on
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by size of a value
_MARK = "_lora_kiln_mapped"


def map_weights(path: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file by the network's names, to be read only: writing to one ends the process.

    Args:
        path: a safetensors file.
        wanted: the network's own tensors by name; the file's must be the same, whatever their precision. They are
            compared at SAMPLES places each.

    Raises:
        KilnError: the file cannot be read, lacks a tensor, or holds other values (the model was changed after loading).
    """
    cure = "choose stream blocks, or connect the model as its loader gives it."
    try:
        found = _map(path, wanted, writable=False)
    except (OSError, KilnError) as error:
        why = str(error).rstrip(".")
        raise KilnError(f"The file {path.name} cannot be streamed ({why}); {cure}") from error
    for name, own in wanted.items():
        if name not in found:
            raise KilnError(f"The file {path.name} cannot be streamed: it holds no {name}; {cure}")
        if not _same(found[name], own):
            raise KilnError(
                f"The file {path.name} cannot be streamed: its {name} is not the model's, which was changed after "
                f"loading; {cure}"
            )
    return found


@dataclass
class Released:
    """How much of a network's weights was replaced by mappings of its file, in bytes."""

    file: str
    released: int = 0
    kept: dict[str, int] = field(default_factory=dict)  # by the reason, a clause

    def sentence(self) -> str:
        """For the user; nothing where nothing changed."""
        parts = []
        if self.released:
            parts.append(
                f"Released {_size(self.released)} of RAM: the model's weights are read from {self.file} from now on; "
                "do not write over that file while the model is loaded."
            )
        if self.kept and max(self.kept.values()) > 0.01 * (self.released + sum(self.kept.values())):
            reason = max(self.kept, key=lambda r: self.kept[r])
            parts.append(f"{_size(sum(self.kept.values()))} of the model stay in RAM: {reason}.")
        return " ".join(parts)


def release_copies(module: nn.Module, path: Path) -> Released:
    """Replace a network's parameters by mappings of the file's tensors, and free their copies in RAM.

    Only where a parameter lies in ordinary CPU memory and is bit for bit what the file holds: the whole of every such
    tensor is read once for this. All others stay what they are, be it that the file cannot be read at all, and so do
    those that an earlier call has mapped. The network's values never change, and it may be used and changed
    afterwards as before.
    """
    done = Released(path.name)
    places: dict[nn.Parameter, list[tuple[str, nn.Module, str]]] = {}  # a parameter may be in several
    for name, owner in module.named_modules():
        for key, parameter in owner._parameters.items():
            if parameter is not None and _in_ram(parameter):
                places.setdefault(parameter, []).append((f"{name}.{key}".lstrip("."), owner, key))
    if not places:  # all done by an earlier session of the run
        return done
    names = [name for each in places.values() for name, *_ in each]
    with torch.inference_mode(False):
        try:
            # Compared through another mapping, which then goes: the pages of the model's own are not this process's
            # before somebody looks at them
            compared, mapped = _map(path, names, writable=False), _map(path, names, writable=True)
        except (OSError, KilnError) as error:
            # For one, a system that reserves memory for such a mapping, or counts it against a limit
            why = str(error).rstrip(".")
            done.kept[f"{path.name} cannot be mapped ({why})"] = sum(map(size_of, places))
            return done
        while places:  # one by one, so that each copy is gone before the next is compared
            parameter, found = places.popitem()
            theirs = next((name for name, *_ in found if name in mapped), "")
            size = size_of(parameter)
            if reason := _why_kept(parameter, compared.get(theirs), path):
                done.kept[reason] = done.kept.get(reason, 0) + size
                continue
            fresh = nn.Parameter(mapped[theirs], requires_grad=parameter.requires_grad)
            fresh.__dict__.update(parameter.__dict__)  # what the host notes on it
            for _, owner, key in found:
                if owner._parameters.get(key) is parameter:  # nobody has patched it meanwhile
                    owner._parameters[key] = fresh
            done.released += size
            del parameter
    trim_heap()
    return done


def is_mapped(tensor: Tensor) -> bool:
    """Whether its memory is a file that this module mapped."""
    return type(tensor) in (Tensor, nn.Parameter) and hasattr(tensor.untyped_storage(), _MARK)


def _map(path: Path, wanted: Iterable[str], writable: bool) -> dict[str, Tensor]:
    """Those of the file's tensors that are wanted. Each has a storage of its own; the mapping lasts as long as one."""
    found = {}
    wanted = list(wanted)
    with SafetensorsFile(path) as file:
        prefix = next((p for p in PREFIXES if any(p + name in file.entries for name in wanted)), "")
        memory = _memory(path, writable)
        for name in wanted:
            entry = file.entries.get(prefix + name)
            if entry is None or entry.dtype not in DTYPES:
                continue
            dtype = DTYPES[entry.dtype]
            if entry.start == entry.end:
                found[name] = torch.empty(entry.shape, dtype=dtype)
                continue
            count, offset = (entry.end - entry.start) // dtype.itemsize, file.data_start + entry.start
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The given buffer is not writable")
                flat = torch.frombuffer(memory, dtype=dtype, count=count, offset=offset)
            setattr(flat.untyped_storage(), _MARK, True)
            found[name] = flat.view(entry.shape)
    return found


def _memory(path: Path, writable: bool) -> mmap.mmap:
    with path.open("rb") as file:
        if not writable:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if sys.platform != "linux":
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return mmap.mmap(
            file.fileno(), 0, mmap.MAP_PRIVATE | _NO_RESERVE, prot=mmap.PROT_READ | mmap.PROT_WRITE
        )


def _in_ram(parameter: nn.Parameter) -> bool:
    """A quantised weight is a subclass and knows itself where its parts are; what is mapped already stays so."""
    plain = type(parameter) is nn.Parameter and parameter.device.type == "cpu" and parameter.numel() > 0
    return plain and not is_mapped(parameter)


def _why_kept(own: Tensor, mapped: Tensor | None, path: Path) -> str:
    """Why a parameter cannot be the file's tensor: a clause, or nothing."""
    if mapped is None:
        return f"{path.name} does not hold them under the model's names"
    if own.dtype != mapped.dtype:
        names = (str(t.dtype).removeprefix("torch.") for t in (own, mapped))
        return "they are {} there and {} in {}".format(*names, path.name)
    if own.shape != mapped.shape or not own.is_contiguous() or mapped.data_ptr() % mapped.element_size():
        return f"they lie there in another order than in {path.name}"
    if own.is_pinned():
        return "the device copies straight from there"
    first, second = (t.detach().view(-1).view(_BITS[t.element_size()]) for t in (own, mapped))
    return "" if torch.equal(first, second) else "they were changed after loading"


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether `a`, in the type of `b`, is `b`: the host may have loaded the file in another precision."""
    if a.shape != b.shape:
        return False
    if b.is_meta or not b.numel():
        return True
    places = places_in(b.numel(), SAMPLES)
    first, second = (t.detach().flatten()[places.to(t.device)].cpu() for t in (a, b))
    return torch.equal(first.to(b.dtype).float(), second.float())


def places_in(count: int, most: int) -> Tensor:
    """Up to `most` indices of `count` values, int64, spread from the first to the last."""
    # In double precision: in single the last place of a large tensor is rounded to one behind its end
    return torch.linspace(0, count - 1, min(most, count), dtype=torch.float64).long()


def _size(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**28 else f"{size / 2**20:.2f} MiB"
