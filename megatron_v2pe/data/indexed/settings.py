"""What the tokens and tiles of an indexed data set depend on: recorded by a build, compared by a run."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any

from megatron_v2pe.data.config import DataConfig
from megatron_v2pe.data.conversation import get_template
from megatron_v2pe.data.encode import ModelFacts
from megatron_v2pe.data.tokenizer import Tokenizer

SETTINGS = (
    "template",
    "pad2square",
    "dynamic_image_size",
    "dynamic_max_patch",
    "use_thumbnail",
    "min_dynamic_patch",
    "max_dynamic_patch",
    "min_num_frame",
    "max_num_frame",
)
"""Settings of the data pipeline."""


def settings_of(config: DataConfig, tokenizer: Tokenizer, facts: ModelFacts) -> dict[str, Any]:
    """Return all settings that must be equal, by name."""
    settings = {name: getattr(config, name) for name in SETTINGS}
    return settings | asdict(facts) | {"image_token": tokenizer.img_context_id}


def template_digest(name: str) -> str:
    """Return a fingerprint of a conversation template."""
    return hashlib.sha256(repr(get_template(name)).encode()).hexdigest()
