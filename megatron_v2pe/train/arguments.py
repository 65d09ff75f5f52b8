"""The words of a training command line, dealt out by what they set. Values are not read here, only found.

Every word belongs to one of four kinds; a flag that is none of them is refused with the nearest that is known:

    --recipe NAME, --dry-run ...                flags of the command itself (`OWN_FLAGS`)
    --learning_rate 5e-6, a file NAME.json      flags of the published scripts (`published_flags`)
    train.seed=7                                a setting, as an assignment
    --parallel.tensor-model-parallel-size 2     a setting, as a flag; `--data.no-pad2square` switches one off

Dashes and underscores in names are alike, and so are `--flag value` and `--flag=value`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin

from megatron_v2pe.base import config_tree
from megatron_v2pe.base.suggest import did_you_mean, nearest
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import check
from megatron_v2pe.foreign.text import read_json_object
from megatron_v2pe.train import published_flags
from megatron_v2pe.train.config import ExperimentConfig

OWN_FLAGS = {"recipe": True, "config": True, "dry_run": False, "ranks": True, "card": True, "print_flags": False}
"""Flags that are not settings -> whether they take a value."""
_LONGEST_PATH = 4096


class Assignment(NamedTuple):
    """A setting and the value it is given."""

    path: str
    """Dotted, with underscores; that it exists is checked when it is set."""
    value: Any
    """Text, or a list of texts for a setting that is a list."""
    source: str
    """Where it stands, for messages."""


@dataclass
class Arguments:
    """A command line, by kinds of words."""

    own: dict[str, str] = field(default_factory=dict)
    """Flags of the command itself: name with underscores -> value, `true` for one that takes none."""
    published: dict[str, str] = field(default_factory=dict)
    """Flags of the published scripts: name -> value."""
    assignments: list[Assignment] = field(default_factory=list)
    """Settings given as `section.key=value`."""
    flags: list[Assignment] = field(default_factory=list)
    """Settings given as `--section.key value`."""


def _settings() -> dict[str, Any]:
    """Return the type of every setting by its dotted path; those of further optimizers among them."""
    return config_tree.leaf_types(ExperimentConfig())


def read_arguments(argv: Sequence[str]) -> Arguments:
    """Deal out the words of a command line.

    Raises:
        ConfigError: an unknown flag (with the nearest known), a flag without its value, a word that is no argument, or
            a JSON file that cannot be read.
    """
    result, words = Arguments(), deque(argv)
    while words:
        word = words.popleft()
        if not word.startswith("--"):
            _read_word(word, result)
            continue
        flag, equals, value = word.partition("=")
        if equals:
            words.appendleft(value)
        name = flag[2:].replace("-", "_")
        if name in OWN_FLAGS:
            result.own[name] = _take(words, flag) if OWN_FLAGS[name] else "true"
        elif name in published_flags.FLAGS:
            alone = published_flags.FLAGS[name].boolean and (not words or _begins_anew(words[0]))
            result.published[name] = "True" if alone else _take(words, flag)
        else:
            result.flags.append(_read_setting(name, flag, words))
    return result


def _read_word(word: str, result: Arguments) -> None:
    """Read a word that is no flag: `section.key=value`, or a JSON file of published flags."""
    key, equals, value = word.partition("=")
    if equals:
        result.assignments.append(Assignment(key.replace("-", "_"), value, "command line"))
    elif word.endswith(".json"):
        result.published.update(_read_json(checked_path(word)))
    else:
        raise ConfigError(f"{shown(word)!r} is neither a flag (--name) nor an assignment (section.key=value)")


def _read_setting(name: str, flag: str, words: deque[str]) -> Assignment:
    """Read the flag of a setting; its values are taken off `words`, as many as its type asks for."""
    settings = _settings()
    section, _, last = name.rpartition(".")
    path, switched_off = name, False
    if name not in settings and last.startswith("no_"):
        path, switched_off = f"{section}.{last.removeprefix('no_')}", True
    if path not in settings:
        raise ConfigError(f"unknown flag {shown(flag)}{_nearest_flag(name)}")
    kind = settings[path]
    if kind is bool:
        given = words.popleft() if words and words[0].lower() in ("true", "false") else "true"
        return Assignment(path, str((given.lower() == "true") != switched_off), flag)
    if switched_off:
        raise ConfigError(f"unknown flag {flag}: {path} is not a switch; give it the value None to unset it")
    if get_origin(kind) is not tuple:
        return Assignment(path, _take(words, flag), flag)
    values = [_take(words, flag)]
    while words and not _begins_anew(words[0]):
        values.append(words.popleft())
    return Assignment(path, [part for value in values for part in value.split(",") if part], flag)


def _take(words: deque[str], flag: str) -> str:
    if not words or words[0].startswith("--"):
        raise ConfigError(f"{flag} needs a value")
    return words.popleft()


def _begins_anew(word: str) -> bool:
    """Tell whether a word begins something new instead of being a value of the flag before it."""
    return word.startswith("--") or ("=" in word and "." in word.partition("=")[0])


def _read_json(path: str) -> dict[str, str]:
    """Return the published flags of a JSON file with values as the command line would give them."""
    content = read_json_object(path, ConfigError, unique=True)
    where = printable(path)
    return {name: _flag_value(name, value, f"{where}: {printable(name)[:80]}") for name, value in content.items()}


def _flag_value(name: str, value: Any, where: str) -> str:
    """Return a value of JSON as text, if it is of the type the flag's setting has."""
    if name == "report_to" and isinstance(value, list):  # as published training scripts save their arguments
        return " ".join(check(list[str], value, where, ConfigError)) or "none"
    kinds = str | None if _takes_text_only(name) else str | bool | int | float | None
    return str(check(kinds, value, where, ConfigError))


def _takes_text_only(name: str) -> bool:
    flag = published_flags.FLAGS.get(name)
    if flag is None or flag.kind != "mapped" or flag.boolean or name == "rope_pos_id_stride":
        return False
    kind = _settings()[flag.key.partition(",")[0]]
    parts = (kind,) if get_origin(kind) is Literal else get_args(kind) or (kind,)
    return all(part in (str, NoneType) or get_origin(part) is Literal for part in parts)


def _nearest_flag(name: str) -> str:
    """Return the end of the message about an unknown flag: the nearest known ones, as they are to be written."""
    otherwise = "see --help and --print-flags"
    paths = {path: f"--{path.replace('_', '-')}" for path in _settings()}
    by_last = {path.rpartition(".")[2]: spelt for path, spelt in paths.items()}
    last = name.rpartition(".")[2]
    if "." not in name:
        published = {flag: f"--{flag}" for flag in published_flags.FLAGS}
        own = {flag: f"--{flag.replace('_', '-')}" for flag in OWN_FLAGS}
        known = {**by_last, **published, **own}
        return did_you_mean(name, known, otherwise=otherwise, spelt=known.__getitem__)
    row = published_flags.FLAGS.get(last)
    if row is not None and row.key in paths:  # the published word in one of our sections
        return f"; did you mean {paths[row.key]}?"
    if nearest(name, paths):
        return did_you_mean(name, paths, spelt=paths.__getitem__)
    return did_you_mean(last, by_last, otherwise=otherwise, spelt=by_last.__getitem__)


def checked_path(word: str) -> str:
    """Return a path of the command line that is not absurdly long.

    Raises:
        ConfigError: it is.
    """
    if len(word) > _LONGEST_PATH:
        raise ConfigError(f"{shown(word)}...: a path of {len(word)} characters")
    return word


def shown(word: str) -> str:
    """Return a word of the command line as a message shows it: its first 100 characters, none a control character."""
    return printable(word[:100])
