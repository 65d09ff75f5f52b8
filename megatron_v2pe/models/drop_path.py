"""Stochastic depth whose draws depend on the tile and the layer only, not on ranks, workers or recompute.

Rates grow linearly from 0 in the first layer to the configured rate in the last; a kept path is divided by its
probability of being kept (behaviour of InternViT).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megatron_v2pe.base.keyed_random import seed_of
from megatron_v2pe.device.transfer import to_device
from megatron_v2pe.parallel.token_draws import TokenDraws


@dataclass(frozen=True)
class DropPathKey:
    """Names the draws of one micro-batch."""

    seed: int
    pack: int
    """Number of the pack in the run's order: the same whatever the parallel layout."""
    num_tiles: int | None = None
    """Tiles of the whole pack; draws are made for all of them. None: this rank encodes them all."""
    first_tile: int = 0
    """The first of them that this rank encodes."""

    def from_tile(self, tile: int, tiles: int) -> DropPathKey:
        """Return the same draws from a later tile on, the `tile`-th of the `tiles` this rank encodes."""
        total = tiles if self.num_tiles is None else self.num_tiles
        return replace(self, first_tile=self.first_tile + tile, num_tiles=total)

    def generator(self, layer: int) -> torch.Generator:
        """Return the generator of one layer's draws."""
        return torch.Generator().manual_seed(seed_of(self.seed, self.pack, layer, purpose="drop path"))

    def token_draws(self, tiles: int, tokens: int, device: torch.device) -> TokenDraws:
        """Return the names of draws for the tokens of the tiles from `first_tile` on, tile after tile."""
        return TokenDraws(self.seed, self.pack, torch.arange(tiles * tokens, device=device) + self.first_tile * tokens)


def layer_rates(drop_path_rate: float, num_layers: int) -> list[float]:
    """Return the drop rate of every layer."""
    return torch.linspace(0, drop_path_rate, num_layers).tolist()


def keep_factors(key: DropPathKey, layer: int, rate: float, num_tiles: int, like: Tensor) -> Tensor:
    """Return [2, num_tiles]: 0 where a tile's attention (row 0) or MLP (row 1) path is dropped, else 1 / (1 - rate).

    The tiles are those from `key.first_tile` on; every rank draws for the whole pack and takes its own.
    """
    total = num_tiles if key.num_tiles is None else key.num_tiles
    assert key.first_tile + num_tiles <= total, f"{num_tiles} tiles from {key.first_tile} on, of {total}"
    draws = torch.rand(2, total, generator=key.generator(layer), dtype=torch.float64)
    draws = draws[:, key.first_tile : key.first_tile + num_tiles]
    factors = (draws >= rate).to(torch.float64) / (1.0 - rate)
    return to_device(factors.to(like.dtype), like.device)
