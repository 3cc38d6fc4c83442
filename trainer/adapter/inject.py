"""Put a LoRA into a model: peft makes the layers, the plain ones become fused.

`LoraAdapter` is what the loop trains: its parameters by layer name, in a fixed order. It changes only the module
it is given, which is a twin (see twin.py), so nothing has to be taken out again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import peft
import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn

from ..config import AdapterConfig
from ..errors import KilnError
from ..rng import generator
from .fused import FrozenWeights, FusedLoraLinear, resident_weights

# diffusers' names for the layers of a Wan block -> the model's own
DIFFUSERS_ENDINGS = {
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "o",
    "ff.net.0.proj": "ffn.0",
    "ffn.net.0.proj": "ffn.0",
    "ff.net.2": "ffn.2",
    "ffn.net.2": "ffn.2",
}
_NOT_BY_DEFAULT = re.compile(r"norm|mod(ulation)?\b|adaln|emb|time|router", re.IGNORECASE)
_REGEX_SIGNS = re.compile(r"[*()\[\]|\\^$+?{}]")


def linear_names(module: nn.Module) -> list[str]:
    """Full names of all linear layers, in model order."""
    return [name for name, m in module.named_modules() if isinstance(m, nn.Linear)]


def choose_targets(module: nn.Module, wanted: str) -> list[str]:
    """Full names of the layers that get a LoRA.

    Args:
        module: the network.
        wanted: AdapterConfig.target_modules.

    Raises:
        KilnError: nothing matches, or the regular expression is malformed.
    """
    names = linear_names(module)
    if not wanted.strip():
        # Blocks are members of a ModuleList, so their layers' names hold a number: "blocks.3.ffn.0"
        chosen = [n for n in names if re.search(r"\.\d+\.", n) and not _NOT_BY_DEFAULT.search(n)]
    elif _REGEX_SIGNS.search(wanted):
        try:
            pattern = re.compile(wanted.strip())
        except re.error as error:
            raise KilnError(
                f"target_modules is not a valid regular expression ({error}): {wanted!r}."
            ) from error
        chosen = [n for n in names if pattern.fullmatch(n)]
    else:
        endings = [_known_ending(e, names) for e in wanted.replace(",", " ").split()]
        chosen = [n for n in names if _ends_with(n, endings)]
    if not chosen:
        raise _no_such_layer(wanted, names)
    return chosen


def _known_ending(ending: str, names: list[str]) -> str:
    """The ending itself or its translation from diffusers, whichever some layer has."""
    for candidate in (ending, DIFFUSERS_ENDINGS.get(ending, ending)):
        if any(_ends_with(n, [candidate]) for n in names):
            return candidate
    raise _no_such_layer(ending, names)


def _no_such_layer(wanted: str, names: list[str]) -> KilnError:
    known = sorted({re.sub(r"^.*?\.\d+\.", "", n) for n in names})
    return KilnError(
        f"target_modules {wanted!r} matches no linear layer of this model; names that exist end in "
        f"{', '.join(known[:12])}."
    )


def _ends_with(name: str, endings: Iterable[str]) -> bool:
    return any(name == e or name.endswith("." + e) for e in endings)


class LoraAdapter:
    """A LoRA inside a module.

    Attributes:
        config: rank, alpha, dropout.
        layers: the LoRA layers by full layer name, in model order.
    """

    def __init__(
        self,
        module: nn.Module,
        config: AdapterConfig,
        seed: int,
        weights: FrozenWeights = resident_weights,
        device: torch.device | None = None,
    ) -> None:
        """Inject a fresh LoRA: A random (Kaiming uniform, a = sqrt 5, as peft does) from the seed, B zero."""
        self.config = config
        targets = choose_targets(module, config.target_modules)
        with torch.random.fork_rng(devices=[]):  # peft draws its own start values; ours follow below
            peft.inject_adapter_in_model(_peft_config(config, targets), module, "default")
        found = dict(module.named_modules())
        self.layers: dict[str, FusedLoraLinear] = {}
        for index, name in enumerate(targets):
            layer = found[name]
            assert isinstance(layer, PeftLinear), f"peft made {type(layer).__name__} of {name}"
            fused = FusedLoraLinear.fuse(layer, weights, index)
            a, b = fused.lora_A["default"].weight, fused.lora_B["default"].weight
            # Drawn on the CPU, whatever the device, so that a seed means the same start everywhere
            start = nn.init.kaiming_uniform_(
                torch.empty(a.shape), a=math.sqrt(5), generator=generator(seed, "init", index)
            )
            a.data, b.data = start.to(device), torch.zeros(b.shape, device=device)
            self.layers[name] = fused

    def set_step(self, seed: int, micro_step: int) -> None:
        """Switch training on for one forward and backward: chooses the dropout masks."""
        for layer in self.layers.values():
            layer.set_step(seed, micro_step)

    def parameters(self) -> list[nn.Parameter]:
        """A and B of every layer, in model order."""
        return [p for a, b in self._pairs() for p in (a, b)]

    def _pairs(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        return [(m.lora_A["default"].weight, m.lora_B["default"].weight) for m in self.layers.values()]

    def state_dict(self) -> dict[str, Tensor]:
        """ "<layer>.lora_A.weight" (r, in) and "<layer>.lora_B.weight" (out, r): copies on the CPU, fp32."""
        state = {}
        for name, (a, b) in zip(self.layers, self._pairs(), strict=True):
            state[f"{name}.lora_A.weight"] = a.detach().to("cpu", torch.float32, copy=True)
            state[f"{name}.lora_B.weight"] = b.detach().to("cpu", torch.float32, copy=True)
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse of state_dict.

        Raises:
            KilnError: other layers or another rank.
        """
        for name, (a, b) in zip(self.layers, self._pairs(), strict=True):
            for parameter, key in ((a, f"{name}.lora_A.weight"), (b, f"{name}.lora_B.weight")):
                if key not in state or state[key].shape != parameter.shape:
                    found = tuple(state[key].shape) if key in state else "nothing"
                    raise KilnError(
                        f"The saved adapter does not fit: {key} has {found}, this run needs {tuple(parameter.shape)}. "
                        "Use the rank and target modules it was made with, or start a new run."
                    )
                parameter.data.copy_(state[key])


def _peft_config(config: AdapterConfig, targets: list[str]) -> peft.LoraConfig:
    # The exact names as one anchored expression: a list would match endings, so that "head" also takes "x.head".
    pattern = "|".join(re.escape(t) for t in targets)
    return peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=rf"^(?:{pattern})$",
        bias="none",
    )
