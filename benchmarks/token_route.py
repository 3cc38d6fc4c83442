"""Token routing while training, for benchmarks: TREAD, Krause et al. 2025 (arXiv 2501.04765).

A share of the tokens, drawn anew for each item and forward, goes past the middle blocks as it is and joins the others
behind them. The route is a patch that the host's own forward looks for in place of a block ("patches_replace"), so it
holds at every memory level. `python -m benchmarks.token_routing` says whether it pays.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def route_middle(model: Any, share: float, seed: int = 0) -> Any:
    """A Wan MODEL whose forwards with a gradient route `share` (0..1) of the tokens past all blocks but the first and
    the last."""
    return TokenRoute(share, 1, len(model.model.diffusion_model.blocks) - 2, seed).on(model)


class TokenRoute:
    """The blocks' patches, and the draw of the forward in progress."""

    def __init__(self, share: float, first: int, last: int, seed: int) -> None:
        """first, last: the blocks that are gone past, both included."""
        self.share, self.first, self.last = share, first, last
        self._generator = torch.Generator().manual_seed(seed)

    def on(self, model: Any) -> Any:
        """The MODEL with the route."""
        routed = model.clone()
        for block in range(self.first, self.last + 1):
            routed.set_model_patch_replace(self._patch(block), "dit", "double_block", block)
        return routed

    def _patch(self, block: int) -> Any:
        def replace(values: dict[str, Any], original: dict[str, Any]) -> dict[str, Any]:
            if not torch.is_grad_enabled():
                return original["original_block"](values)
            if block == self.first:
                self._draw(values["img"], values["pe"])
                values["img"] = values["img"].gather(1, self._places(values["img"]))
            values["pe"] = self._rope
            out = original["original_block"](values)
            if block == self.last:
                out["img"] = self._whole.scatter(1, self._places(out["img"]), out["img"])
            return out

        return replace

    def _draw(self, tokens: Tensor, rope: Tensor) -> None:
        """tokens (B, N, D), rope (1, N, ...)."""
        batch, count = tokens.shape[:2]
        kept = max(1, round(count * (1 - self.share)))
        draws = torch.rand(batch, count, generator=self._generator)
        self._kept = draws.argsort(dim=1)[:, :kept].sort(dim=1).values.to(tokens.device)
        self._whole = tokens
        self._rope = torch.stack([rope[0].index_select(0, places) for places in self._kept])

    def _places(self, tokens: Tensor) -> Tensor:
        return self._kept[..., None].expand(-1, -1, tokens.shape[2])
