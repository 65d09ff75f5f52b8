"""An HF checkpoint with random weights for any architecture the converter knows: to train small models from nothing.

Names and shapes are those of the conversion table, so a further architecture needs nothing here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from megatron_v2pe.checkpoint.hf.mappings import TensorMapping
from megatron_v2pe.checkpoint.hf.table import mapping_table
from megatron_v2pe.models.config import InternVLConfig

DEVIATIONS: dict[str, float] = {
    "class_token": 0.1,
    "position_embedding": 0.3,
    "word_embeddings.weight": 0.5,
    "output_layer.weight": 0.02,
}
"""Ending of a tensor's name in Megatron-Core -> standard deviation; other matrices take 1 / sqrt(inputs)."""


def random_weights(
    config: Mapping[str, Any], seed: int, deviations: Mapping[str, float] | None = None
) -> dict[str, Tensor]:
    """Draw every tensor of a checkpoint: matrices normal, biases 0, norms and layer scales 1.

    Args:
        config: content of `config.json`.
        seed: of the draws; a tensor's values depend on nothing but it, the order and shapes of the tensors before.
        deviations: ending of an HF name -> standard deviation, for what `DEVIATIONS` does not say or says otherwise.

    Returns:
        HF name -> float32 tensor, in the order of the conversion table.

    Raises:
        ConfigError: see `InternVLConfig.from_hf` and `mapping_table`.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = mapping_table(InternVLConfig.from_hf(config)).tensors
    return {mapping.name: _drawn(mapping, generator, deviations or {}) for mapping in tensors}


def _drawn(mapping: TensorMapping, generator: torch.Generator, deviations: Mapping[str, float]) -> Tensor:
    name, shape = mapping.name, mapping.shape
    if name.endswith(".bias"):
        return torch.zeros(shape)
    if len(shape) == 1:  # norms and layer scales
        return torch.ones(shape)
    stated = [value for ending, value in deviations.items() if name.endswith(ending)]
    stated += [value for ending, value in DEVIATIONS.items() if mapping.key.endswith(ending)]
    return torch.randn(shape, generator=generator) * (stated[0] if stated else torch.Size(shape[1:]).numel() ** -0.5)


def write_checkpoint(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], shards: int = 1) -> int:
    """Write weights and `config.json` as an HF folder in place of earlier ones; other files, a tokenizer, stay.

    Args:
        folder: made if it is not there.
        config: content of `config.json`, written last: its presence says that the rest is there.
        weights: HF name -> tensor.
        shards: files to spread the weights over.

    Returns:
        Number of parameters.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    for stale in (*folder.glob("model*.safetensors"), *folder.glob("model*.safetensors.index.json")):
        stale.unlink()  # two sets of weights in one folder are refused by whoever reads it
    total = sum(tensor.numel() for tensor in weights.values())
    parts: list[dict[str, Tensor]] = [{} for _ in range(shards)]
    seen = 0
    for name, tensor in weights.items():
        parts[seen * shards // total][name] = tensor
        seen += tensor.numel()
    weight_map: dict[str, str] = {}
    for number, part in enumerate(parts, 1):
        file = "model.safetensors" if shards == 1 else f"model-{number:05d}-of-{shards:05d}.safetensors"
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    if shards > 1:
        size = sum(tensor.nbytes for tensor in weights.values())
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(folder / "model.safetensors.index.json", index)
    write_json(folder / "config.json", config)
    return total


def write_json(path: Path, content: Any) -> None:
    """Write JSON as HF folders have it."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
