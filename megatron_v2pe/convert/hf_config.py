"""Changes an export makes to a `config.json` on request, and the form it is written in."""

from __future__ import annotations

import json
from typing import Any


def with_dtype(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a `config.json` that states another type of the weights, `float32` or `bfloat16`."""
    result = {**config, "torch_dtype": name}
    for section in ("llm_config", "vision_config"):
        result[section] = {**config[section], "torch_dtype": name}
    return result


def to_text(config: dict[str, Any]) -> str:
    """Return a `config.json` as HF writes it."""
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"
