"""A conversation template with Phi-3's marks under the name that some checkpoints with Llama-3 give it."""

from __future__ import annotations

from megatron_v2pe.data.conversation import INTERNVL_SYSTEM, Template, add_template

add_template(
    Template(
        "llama3-chat",
        system=f"<|system|>\n{INTERNVL_SYSTEM}<|end|>",
        user="<|user|>\n",
        assistant="<|assistant|>\n",
        end="<|end|>",
    )
)
