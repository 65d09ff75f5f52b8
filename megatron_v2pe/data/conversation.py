"""Chat templates: a conversation as messages, each with the part a model is to learn.

The templates themselves lie with the families (`families/*/template.py`). Every message begins with a special token, so
that messages can be tokenised one by one with the result of tokenising the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

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


@dataclass(frozen=True)
class Message:
    """One rendered turn."""

    text: str
    learned_from: int | None
    """Index of the first character a model learns to write, None where it learns nothing."""
    fixed: bool = False
    """Whether it is the same in every conversation."""


@dataclass(frozen=True)
class Template:
    """How turns are written. `end` closes a turn and is learned with an answer."""

    name: str
    system: str
    """The whole system turn, its end included."""
    user: str
    assistant: str
    end: str
    system_prompt: str = field(default=INTERNVL_SYSTEM, repr=False)
    """The part of `system` that a conversation's own system turn replaces; no part of it: there is none to replace.
    Indexed data sets know a template by its `repr`, in which this does not stand: it changes nothing without such a
    turn."""

    def render(self, turns: Sequence[tuple[str, str]], *, prompt: bool = False) -> list[Message]:
        """Render turns of a conversation.

        Args:
            turns: (role, text) with roles `human` and `gpt` in turn, a human first; before them perhaps one of the
                role `system`, which takes the place of the template's own system prompt. Text is stripped.
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
                messages.append(Message(self.user + text.strip() + self.end, None))
            else:
                messages.append(Message(self.assistant + text.strip() + self.end, len(self.assistant)))
        answered = len(turns) % 2 == 0
        if answered == prompt or not turns:
            raise DataError(f"{len(turns)} turns: the last must be {'a question' if prompt else 'an answer'}")
        return messages + ([Message(self.assistant + begun, None)] if prompt else [])

    def _opening(self, system: str | None) -> Message:
        """Return the system turn: the template's own, or one that says `system` in its place."""
        if system is None:
            return Message(self.system, None, fixed=True)
        if not self.system_prompt or self.system_prompt not in self.system:
            raise DataError(f"a system turn, but the template {self.name!r} has none; leave it out")
        return Message(self.system.replace(self.system_prompt, system.strip()), None)


def chatml_template(name: str, system_prompt: str = INTERNVL_SYSTEM) -> Template:
    """Return a template whose turns stand between `<|im_start|>` and `<|im_end|>`, as those of many families do."""
    return Template(
        name,
        system=f"<|im_start|>system\n{system_prompt}<|im_end|>",
        user="<|im_start|>user\n",
        assistant="<|im_start|>assistant\n",
        end="<|im_end|>",
        system_prompt=system_prompt,
    )


TEMPLATES: Registry[Template] = Registry("conversation template", FAMILIES, "template")
"""Templates by the name a checkpoint or a recipe gives them."""


def add_template(template: Template) -> None:
    """Register a family's template under its name.

    Raises:
        ConfigError: another one has this name.
    """
    TEMPLATES.add(template.name, template)


def get_template(name: str) -> Template:
    """Return a template.

    Raises:
        ConfigError: unknown name; lists the known ones.
    """
    if name not in TEMPLATES:
        raise ConfigError(f"conversation template {name!r} is none of {', '.join(TEMPLATES)}")
    return TEMPLATES.get(name)
