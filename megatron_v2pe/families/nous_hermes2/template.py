"""The conversation template of Nous-Hermes-2, which InternVL2-1B with Qwen2 uses too."""

from __future__ import annotations

from megatron_v2pe.data.conversation import add_template, chatml_template

add_template(chatml_template("Hermes-2"))
