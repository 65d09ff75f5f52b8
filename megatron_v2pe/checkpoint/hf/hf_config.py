"""Changes an export makes to a `config.json` on request, and the form it is written in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.foreign.tokenizer_files import special_tokens
from megatron_v2pe.foreign.tokenizer_settings import IMG_CONTEXT
from megatron_v2pe.models.native_config import in_layout


def with_dtype(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a `config.json` that states another type of the weights, `float32` or `bfloat16`, under both its names.

    The published code reads `torch_dtype`; transformers 5 writes `dtype`, which is changed where it stands.
    """

    def stated(section: dict[str, Any]) -> dict[str, Any]:
        names = ("torch_dtype", *(["dtype"] if "dtype" in section else []))
        return {**section, **dict.fromkeys(names, name)}

    result = stated(config)
    for section in ("llm_config", "vision_config"):
        result[section] = stated(config[section])
    return result


def for_folder(config: Mapping[str, Any], layout: str, tokenizer: Path) -> dict[str, Any]:
    """Return a `config.json` in a layout, the id of the image token taken from a folder's tokenizer.

    Args:
        config: the original form.
        layout: `original` or `native`.
        tokenizer: folder with the files of the tokenizer; where there are none, `config` has to state the id.

    Raises:
        ConfigError: see `native_config.to_native`.
        CheckpointError: a damaged file of the tokenizer.
    """
    return in_layout(config, layout, special_tokens(tokenizer, CheckpointError).get(IMG_CONTEXT))


def to_text(config: dict[str, Any]) -> str:
    """Return a `config.json` as HF writes it."""
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"
