"""The conversation template of InternVL2 with Phi-3."""

from __future__ import annotations

from megatron_v2pe.data.conversation import INTERNVL_SYSTEM, Template, add_template

add_template(
    Template(
        "phi3-chat",
        system=f"<|system|>\n{INTERNVL_SYSTEM}<|end|>",
        user="<|user|>\n",
        assistant="<|assistant|>\n",
        end="<|end|>",
    )
)
