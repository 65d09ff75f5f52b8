"""The conversation template of InternVL2.5, InternVL3 and InternVL3.5, whichever their language model."""

from __future__ import annotations

from megatron_v2pe.data.conversation import add_template, chatml_template

SYSTEM_PROMPT = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
"""System prompt of the published InternVL2.5 checkpoints and later ones."""

add_template(chatml_template("internvl2_5", SYSTEM_PROMPT, separator="\n", strips=False))
