"""Chat templates: a conversation as messages, each with the part a model is to learn.

The templates themselves lie with the families (`families/*/template.py`). Every message begins with a special token, so
that messages can be tokenised one by one with the result of tokenising the whole.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from megatron_v2pe.base.plugins import FAMILIES, Registry
from megatron_v2pe.errors import ConfigError, DataError

BEGUN = "begun"
"""Role of a turn behind the last question of a prompt: how its answer begins; the model goes on from there."""
SYSTEM = "system"
"""Role of a turn before all others that stands in place of the template's own system prompt."""
INTERNVL_SYSTEM = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
"""System prompt of the published InternVL2 checkpoints."""
USUAL_TEMPLATE = "internlm2-chat"
"""Conversation template where neither a run nor a checkpoint names one."""
_MARK = re.compile(r"<\|[^|\s]{1,80}\|>")


@dataclass(frozen=True)
class Message:
    """One rendered turn."""

    text: str
    learned_from: int | None
    """Index of the first character a model learns to write, None where it learns nothing."""
    fixed: bool = False
    """Whether it is the same in every conversation."""
    ends: bool = False
    """Whether what is learned ends with the template's end; text behind that is not learned. Else all is learned."""


@dataclass(frozen=True, repr=False)
class Template:
    """How turns are written. `end` closes a turn and is learned with an answer."""

    name: str
    system: str
    """The whole system turn, its end included."""
    user: str
    assistant: str
    end: str
    system_prompt: str = INTERNVL_SYSTEM
    """The part of `system` that a conversation's own system turn replaces; no part of it: there is none to replace."""
    separator: str = ""
    """What stands behind `end` of every turn and is not learned; that of the system turn stands in `system`."""
    strips: bool = True
    """Whether white space around a turn's text is left out."""

    def __repr__(self) -> str:
        """Return what indexed data sets know a template by: all that decides over tokens of a plain conversation.

        The system prompt is left out: it changes nothing without a system turn. Of what later versions added, only
        what a template makes use of is named, so that the others are known by what they always were.
        """
        named = [f"{name}={getattr(self, name)!r}" for name in ("name", "system", "user", "assistant", "end")]
        later = {"separator": "", "strips": True}
        named += [f"{name}={getattr(self, name)!r}" for name, usual in later.items() if getattr(self, name) != usual]
        return f"Template({', '.join(named)})"

    @property
    def marks(self) -> tuple[str, ...]:
        """Tokens a tokenizer must have: the end of a turn, and every `<|NAME|>` that begins one."""
        return tuple(dict.fromkeys([self.end, *_MARK.findall(self.system + self.user + self.assistant)]))

    def render(self, turns: Sequence[tuple[str, str]], *, prompt: bool = False) -> list[Message]:
        """Render turns of a conversation.

        Args:
            turns: (role, text) with roles `human` and `gpt` in turn, a human first; before them perhaps one of the
                role `system`, which takes the place of the template's own system prompt. White space around a text is
                left out if the template says so, and always around the beginning of an answer.
            prompt: end with an opened answer, for generation; the last turn is then a human's, or behind it one that
                says how the answer begins (`BEGUN`).

        Raises:
            DataError: roles out of turn, or a system turn where the template has none.
        """
        begun = ""
        if prompt and turns and turns[-1][0] == BEGUN:
            begun, turns = turns[-1][1].strip(), turns[:-1]
        said, turns = (turns[0][1], turns[1:]) if turns and turns[0][0] == SYSTEM else (None, turns)
        messages = [self._opening(said)]
        for number, (role, text) in enumerate(turns):
            expected = ("human", "gpt")[number % 2]
            if role != expected:
                raise DataError(f"turn {number + 1} is from {role!r}, expected {expected!r}: turns must alternate")
            if role == "human":
                messages.append(Message(self.user + self.said(text) + self.end + self.separator, None))
            else:
                whole = self.assistant + self.said(text) + self.end + self.separator
                messages.append(Message(whole, len(self.assistant), ends=bool(self.separator)))
        answered = len(turns) % 2 == 0
        if answered == prompt or not turns:
            raise DataError(f"{len(turns)} turns: the last must be {'a question' if prompt else 'an answer'}")
        return messages + ([Message(self.assistant + begun, None)] if prompt else [])

    def said(self, text: str) -> str:
        """Return a turn's text as it is written."""
        return text.strip() if self.strips else text

    def _opening(self, system: str | None) -> Message:
        """Return the system turn: the template's own, or one that says `system` in its place."""
        if system is None:
            return Message(self.system, None, fixed=True)
        if not self.system_prompt or self.system_prompt not in self.system:
            raise DataError(f"a system turn, but the template {self.name!r} has none; leave it out")
        return Message(self.system.replace(self.system_prompt, self.said(system)), None)


def chatml_template(
    name: str, system_prompt: str = INTERNVL_SYSTEM, separator: str = "", *, strips: bool = True
) -> Template:
    """Return a template whose turns stand between `<|im_start|>` and `<|im_end|>`, as those of many families do.

    Args:
        name: of the template.
        system_prompt: what the system turn says.
        separator: see `Template`.
        strips: see `Template`.
    """
    return Template(
        name,
        system=f"<|im_start|>system\n{system_prompt}<|im_end|>{separator}",
        user="<|im_start|>user\n",
        assistant="<|im_start|>assistant\n",
        end="<|im_end|>",
        system_prompt=system_prompt,
        separator=separator,
        strips=strips,
    )


TEMPLATES: Registry[Template] = Registry("conversation template", FAMILIES, "template")
"""Templates by the name a checkpoint or a recipe gives them."""


def add_template(template: Template) -> None:
    """Register a family's template under its name.

    Raises:
        ConfigError: another one has this name.
    """
    TEMPLATES.add(template.name, template)


def get_template(name: str | None) -> Template:
    """Return a template; None stands for `USUAL_TEMPLATE`.

    Raises:
        ConfigError: unknown name; lists the known ones.
    """
    name = USUAL_TEMPLATE if name is None else name
    if name not in TEMPLATES:
        raise ConfigError(f"conversation template {name!r} is none of {', '.join(TEMPLATES)}")
    return TEMPLATES.get(name)


def fitting_templates(tokens: Collection[str]) -> list[str]:
    """Return the names of the templates all of whose marks are among `tokens`, in the order of the registry."""
    return [name for name in TEMPLATES if all(mark in tokens for mark in TEMPLATES.get(name).marks)]
