"""A conversation template as the text of a Jinja template, as `chat_template` of transformers takes it.

What `apply_chat_template` makes of messages with it has the ids that `data.tokenize` gives the same conversation.
Content is text, or a list of parts: `{"type": "text", "text": ...}`, `{"type": "image"}`, `{"type": "video"}`. The text
is one line, so that no setting of Jinja's about blanks around tags changes what comes out.
"""

from __future__ import annotations

import json

from megatron_v2pe.data.conversation import Template
from megatron_v2pe.data.special_tokens import IMG_CONTEXT
from megatron_v2pe.data.tokenizer import Tokenizer

IMAGE, VIDEO = f"{IMG_CONTEXT}\n", "<video>\n"
"""How an image and a video stand in the text, for the processor of transformers to put their tokens there."""


def chat_template(template: Template, tokenizer: Tokenizer, image: str = IMAGE, video: str = VIDEO) -> str:
    """Return the Jinja text of a template.

    Args:
        template: whose turns are written.
        tokenizer: whose tokens before every text are written first.
        image: what stands for an image.
        video: what stands for a video.
    """
    names = {number: name for name, number in tokenizer.special.items()}
    first = "".join(names[number] for number in tokenizer.before)
    part = (
        "{%- if part.type == 'image' -%}{{- " + _quoted(image) + " -}}"
        "{%- elif part.type == 'video' -%}{{- " + _quoted(video) + " -}}"
        "{%- else -%}{{- part.text -}}{%- endif -%}"
    )
    said = (
        "{%- macro said(content) -%}"
        "{%- if content is string -%}{{- content -}}"
        "{%- else -%}{%- for part in content -%}" + part + "{%- endfor -%}{%- endif -%}{%- endmacro -%}"
    )
    trim = " | trim" if template.strips else ""
    turn = "{%- if message.role == 'user' -%}{{- " + _quoted(template.user) + " -}}"
    turn += "{%- else -%}{{- " + _quoted(template.assistant) + " -}}{%- endif -%}"
    turn += "{{- said(message.content)" + trim + " -}}{{- " + _quoted(template.end + template.separator) + " -}}"
    order = (
        "{%- if message.role != ['user', 'assistant'][loop.index0 % 2] -%}"
        "{{- raise_exception('turns must alternate: user, assistant, user, ...') -}}{%- endif -%}"
    )
    return (
        said
        + _written(first)
        + _opening(template, trim)
        + "{%- for message in turns -%}"
        + order
        + turn
        + "{%- endfor -%}{%- if add_generation_prompt -%}"
        + _written(template.assistant)
        + "{%- endif -%}"
    )


def _opening(template: Template, trim: str) -> str:
    """Return what writes the system turn and sets `turns` to the messages behind it."""
    if template.system_prompt and template.system_prompt in template.system:
        before, _, behind = template.system.partition(template.system_prompt)
        own = _written(before) + "{{- said(messages[0].content)" + trim + " -}}" + _written(behind)
    else:
        own = "{{- raise_exception('a system turn, but the conversation template has none') -}}"
    return (
        "{%- if messages and messages[0].role == 'system' -%}{%- set turns = messages[1:] -%}"
        + own
        + "{%- else -%}{%- set turns = messages -%}"
        + _written(template.system)
        + "{%- endif -%}"
    )


def _written(text: str) -> str:
    return "{{- " + _quoted(text) + " -}}" if text else ""


def _quoted(text: str) -> str:
    """Return text as a literal of Jinja, which knows the escapes of JSON."""
    return json.dumps(text, ensure_ascii=False)
