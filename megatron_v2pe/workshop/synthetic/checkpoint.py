"""HF InternVL folders with made-up weights, of any size, for tests and measurements of conversion.

The values are cheap (one block of seeded noise, read from another place for every tensor), the layout is that of a
real checkpoint: sharded safetensors with an index, `config.json`, `generation_config.json`.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_v2pe.checkpoint.hf.safetensors_io import TensorPlace, build_header, write_file
from megatron_v2pe.checkpoint.hf.table import mapping_table
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.presets import preset_config

INTERNVL2_2B_PARAMETERS = 2_205_754_368
_BLOCK = (1 << 20) - 3  # a prime, so that rows of no matrix repeat each other


def internvl2_2b_config() -> dict[str, Any]:
    """Return a `config.json` with the sizes of the published InternVL2-2B."""
    return preset_config("InternVL2-2B")


def write_hf_folder(
    folder: Path, config: dict[str, Any], *, dtype: torch.dtype = torch.bfloat16, shards: int = 2, seed: int = 0
) -> int:
    """Write an HF folder of this architecture and return its number of parameters; never more than a tensor in memory.

    Args:
        folder: created, parents included.
        config: the `config.json`.
        dtype: type of all weights.
        shards: files to cut the weights into, about equal in size; one file has no index.
        seed: of the values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = mapping_table(InternVLConfig.from_hf(config))
    tensors = [(mapping.name, mapping.shape) for mapping in table.tensors]
    noise = torch.randn(_BLOCK, generator=torch.Generator().manual_seed(seed)).mul_(0.02).to(dtype)

    def tensor(place: TensorPlace) -> Tensor:
        return _values(place, noise)

    index: dict[str, str] = {}
    for number, part in enumerate(_cut(tensors, shards), 1):
        name = f"model-{number:05d}-of-{shards:05d}.safetensors" if shards > 1 else "model.safetensors"
        write_file(folder / name, build_header(part, dtype), tensor)
        index.update(dict.fromkeys((tensor_name for tensor_name, _ in part), name))
    parameters = sum(math.prod(shape) for _, shape in tensors)
    if shards > 1:
        metadata = {"total_size": parameters * dtype.itemsize}
        content = {"metadata": metadata, "weight_map": dict(sorted(index.items()))}
        _write_json(folder / "model.safetensors.index.json", content)
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", {"_from_model_config": True, "eos_token_id": [2, 92542]})
    return parameters


def _cut(tensors: Sequence[tuple[str, tuple[int, ...]]], parts: int) -> list[list[tuple[str, tuple[int, ...]]]]:
    """Cut a list of tensors into runs of about the same size."""
    total, done = sum(math.prod(shape) for _, shape in tensors), 0
    result: list[list[tuple[str, tuple[int, ...]]]] = [[] for _ in range(parts)]
    for name, shape in tensors:
        result[min(done * parts // total, parts - 1)].append((name, shape))
        done += math.prod(shape)
    return result


def _values(place: TensorPlace, noise: Tensor) -> Tensor:
    """Noise read from a place of its own; norms and layer scales lie around one."""
    start = zlib.crc32(place.name.encode()) % _BLOCK
    count = math.prod(place.shape)
    rolled = torch.cat([noise[start:], noise[:start]])
    values = rolled.repeat(-(-count // _BLOCK))[:count].view(place.shape)
    one = "norm" in place.name or place.name.endswith((".ls1", ".ls2", "mlp1.0.weight"))
    return values + 1 if one and not place.name.endswith("bias") else values


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
