"""Image features are encoded once, found again by content, and bounded by bytes."""

from __future__ import annotations

import torch

from megatron_v2pe.generate import vision_cache
from megatron_v2pe.generate.vision_cache import VisionCache


class Tower:
    """Notes what it encodes; a tile's features are its sum."""

    def __init__(self):
        self.calls = []

    def __call__(self, tiles):
        self.calls.append(len(tiles))
        return tiles.flatten(1).sum(1, dtype=torch.float32).view(-1, 1, 1).expand(-1, 2, 3)


def tiles(*values):
    return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 4, 4, 3).contiguous()


def sums(features):
    return [int(value) // 48 for value in features[:, 0, 0]]


def test_only_what_is_new_is_encoded():
    cache, tower = VisionCache(), Tower()
    assert sums(cache.encode(tiles(1, 2, 1), 3, tower)) == [1, 2, 1]
    assert sums(cache.encode(tiles(3, 2), 2, tower)) == [3, 2]
    assert sums(cache.encode(tiles(2, 1, 3), 3, tower)) == [2, 1, 3]
    assert tower.calls == [2, 1]
    assert (cache.hits, cache.misses) == (5, 3)


def test_the_least_recently_used_goes_first():
    cache, tower = VisionCache(max_bytes=2 * 24), Tower()  # 2 tokens x 3 features x 4 bytes a tile
    cache.encode(tiles(1), 1, tower)
    cache.encode(tiles(2), 1, tower)
    cache.encode(tiles(1), 1, tower)
    cache.encode(tiles(3), 1, tower)
    assert cache.num_bytes == 48 and len(tower.calls) == 3
    cache.encode(tiles(1), 1, tower)
    assert len(tower.calls) == 3
    cache.encode(tiles(2), 1, tower)
    assert len(tower.calls) == 4


def test_more_than_fits_is_still_encoded():
    for limit in (0, 24):
        cache = VisionCache(limit)
        assert sums(cache.encode(tiles(1, 2, 3), 3, Tower())) == [1, 2, 3]
        assert cache.num_bytes == limit


def test_the_tower_sees_a_few_tiles_at_a_time(monkeypatch):
    monkeypatch.setattr(vision_cache, "TILES_AT_ONCE", 2)
    tower = Tower()
    assert sums(VisionCache().encode(tiles(1, 2, 3, 4, 5), 5, tower)) == [1, 2, 3, 4, 5]
    assert tower.calls == [2, 2, 1]


def test_types_and_shapes_do_not_meet():
    """A normalised tile is another key than the bytes it was made of."""
    cache, tower = VisionCache(), Tower()
    cache.encode(tiles(0), 1, tower)
    cache.encode(tiles(0).float(), 1, tower)
    assert tower.calls == [1, 1]
