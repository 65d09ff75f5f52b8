"""Changes an export makes to a `config.json` on request, and the form it is written in."""

from __future__ import annotations

import json
from typing import Any


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


def to_text(config: dict[str, Any]) -> str:
    """Return a `config.json` as HF writes it."""
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"
