"""Which patches meet in which token after pixel shuffle, in both versions."""

from __future__ import annotations

import pytest
import torch

from megatron_v2pe.models.projector import pixel_shuffle

GRID = torch.arange(16.0).view(1, 16, 1)
"""A 4 x 4 grid of patches, row-major: patch (row, column) holds `4 row + column`."""
V2 = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
V1 = [[0, 1, 4, 5], [8, 9, 12, 13], [2, 3, 6, 7], [10, 11, 14, 15]]


@pytest.mark.parametrize(("version", "tokens"), [("v1", V1), ("v2", V2)])
def test_a_four_by_four_grid(version, tokens):
    assert pixel_shuffle(GRID, 0.5, version)[0].tolist() == tokens


@pytest.mark.parametrize(("version", "tokens"), [("v1", V1), ("v2", V2)])
def test_each_patch_keeps_its_channels_together_and_tiles_stay_apart(version, tokens):
    channels = torch.stack([GRID[0, :, 0], GRID[0, :, 0] + 100, GRID[0, :, 0] + 200], dim=-1)
    features = torch.stack([channels, channels + 1000])  # two tiles, three channels
    expected = [[patch + 100 * channel for patch in token for channel in range(3)] for token in tokens]
    shuffled = pixel_shuffle(features, 0.5, version)
    assert shuffled[0].tolist() == expected
    assert (shuffled[1] - 1000).tolist() == expected


def test_versions_are_transposed_grids_of_one_another():
    features = torch.randn(3, 64, 5, generator=torch.Generator().manual_seed(0))
    v1, v2 = (pixel_shuffle(features, 0.5, version).unflatten(1, (4, 4)) for version in ("v1", "v2"))
    assert torch.equal(v1, v2.transpose(1, 2))
    assert not torch.equal(v1, v2)


@pytest.mark.parametrize(("ratio", "block"), [(0.5, 2), (0.25, 4), (1.0, 1)])
def test_every_token_is_the_formula(ratio, block):
    side, width = 8, 3
    features = torch.randn(2, side * side, width, generator=torch.Generator().manual_seed(1))
    shuffled = pixel_shuffle(features, ratio, "v2")
    assert shuffled.shape == (2, (side // block) ** 2, width * block**2)
    for i in range(side // block):
        for j in range(side // block):
            token = shuffled[:, i * (side // block) + j].unflatten(1, (block, block, width))
            for row in range(block):
                for column in range(block):
                    patch = features[:, (block * i + row) * side + block * j + column]
                    assert torch.equal(token[:, row, column], patch)


def test_internvl2_turns_1024_patches_into_256_tokens():
    assert pixel_shuffle(torch.zeros(2, 1024, 8), 0.5, "v2").shape == (2, 256, 32)
