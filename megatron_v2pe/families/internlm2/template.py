"""The conversation template of InternVL2 with InternLM2."""

from __future__ import annotations

from megatron_v2pe.data.conversation import add_template, chatml_template

add_template(chatml_template("internlm2-chat"))
