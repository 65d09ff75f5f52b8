"""The training command line: a recipe or a YAML file, then single settings, then go.

Three spellings of a setting are understood and may be mixed:

    --parallel.tensor-model-parallel-size 2     dotted flags (tyro; `--help` lists them all)
    train.seed=7                                key=value
    --learning_rate 5e-6 --chunk_num 8          flags of the published scripts, see `published_flags`

Later layers win: defaults, `--recipe`, `--config`, published flags, key=value, dotted flags.
"""

from __future__ import annotations

import difflib
import sys
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import tyro

from megatron_v2pe.base import config_tree, exit_status, last_words
from megatron_v2pe.base.command import tell
from megatron_v2pe.base.logging import quiet_expected_warnings
from megatron_v2pe.base.suggest import did_you_mean
from megatron_v2pe.device import launch
from megatron_v2pe.errors import ConfigError, V2PEError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import check
from megatron_v2pe.foreign.text import read_json_object
from megatron_v2pe.train import published_flags
from megatron_v2pe.train.config import ExperimentConfig
from megatron_v2pe.train.without_effect import without_effect

DESCRIPTION = """Fine-tune InternVL2 with variable visual position encoding.

example: python -m megatron_v2pe.device.torchrun --nproc-per-node 2 tools/train.py --recipe internvl2_2b_v2pe_32k
--model.model-name-or-path pretrained/InternVL2-2B --parallel.tensor-model-parallel-size 2

--recipe NAME: start from a named run ({recipes}).
--config FILE: YAML with any of the settings below, on top of the recipe.
--dry-run: look at folder, tokenizer, template, layout and data, print the resolved settings as YAML and stop; with
them, as comments, what was found, the memory a rank is estimated to take, packs of a step and an epoch. Ends with
status 2 where the run would be refused. --ranks N: of a run on so many; --card GIB or a card's name: on such cards.
--print-flags: print how the flags of the published scripts (--chunk_num 8 --attn_type ring ...), which are
understood as well, map to these settings."""

OWN_FLAGS = {"recipe": True, "config": True, "dry_run": False, "ranks": True, "card": True, "print_flags": False}
"""Flags that are not settings -> whether they take a value."""


@dataclass
class Arguments:
    """A command line, sorted by the layer each part belongs to."""

    own: dict[str, str] = field(default_factory=dict)
    published: dict[str, str] = field(default_factory=dict)
    assignments: list[tuple[str, str]] = field(default_factory=list)
    dotted: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Command:
    """What a command line asks for."""

    config: ExperimentConfig
    dry_run: bool = False
    ranks: int | None = None
    """With a dry run: ranks of the run."""
    card: str | None = None
    """With a dry run: GiB or name of the cards."""
    published: Mapping[str, str] = field(default_factory=dict)
    """Published flags that were given, by name."""
    recipe: ExperimentConfig | None = None
    """Settings of the recipe that was named, before anything was put on top."""

    def notices(self) -> list[str]:
        """Return what is to be said of flags and settings that are given and not done, a line each."""
        config, save = self.config, self.config.checkpoint.save
        there = bool(save) and any(Path(save).glob("iter_*"))
        in_epochs, indexed = config.train.epochs is not None, bool(config.data.indexed_path)
        published = published_flags.notices(self.published, there, in_epochs, indexed)
        return [*published, *without_effect(config, self.recipe)]


Recipes = Mapping[str, Callable[[], ExperimentConfig]]
"""Named runs: name -> function that returns the settings. Handed in: recipes stand above this module."""


def main(argv: Sequence[str], recipes: Recipes) -> int:
    """Train as the command line says; return the exit status (`exit_status`)."""
    if "--print-flags" in argv:
        print(published_flags.as_markdown(), end="")
        return 0
    rank, running = 0, False
    try:
        world = launch.read_environment()
        rank = world.rank
        command = parse_command(argv, recipes)
        planned = command.dry_run and world.launcher == "single"  # the world to come is not known here
        command.config.validate(None if planned else world.world_size)
        notices = command.notices()
        for notice in notices if rank == 0 else ():
            print(f"note: {printable(notice)}", file=sys.stderr)
        if command.dry_run:
            return _dry_run(command, command.ranks or (None if planned else world.world_size)) if rank == 0 else 0
        quiet_expected_warnings()
        from megatron_v2pe.train.main import (
            run,
        )  # Megatron-Core takes seconds to import; --dry-run need not wait

        running = True
        return run(command.config, notices)
    except (V2PEError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        if rank == 0 or running:  # every rank reads the same command line, one tells
            tell(f"error: {error}" if rank == 0 else f"error: {error} [rank {rank}]")
        else:
            last_words.leave(f"error: {error}")
        return exit_status.of(error)


def _dry_run(command: Command, ranks: int | None) -> int:
    """Print the settings, what was found and what the run would take; return the status of the first problem."""
    from megatron_v2pe.train import dry_run, look

    quiet_expected_warnings()
    found = look.look(command.config, command.recipe, ranks)
    report = dry_run.report(found, ranks, command.card)
    print(command.config.to_yaml() + report, end="", flush=True)
    for problem in found.problems:
        print(f"error: {printable(str(problem))}", file=sys.stderr)
    return exit_status.of(found.problems[0]) if found.problems else 0


def parse(argv: Sequence[str], recipes: Recipes) -> ExperimentConfig:
    """Return the settings a command line asks for, not yet validated; errors as in `parse_command`."""
    return parse_command(argv, recipes).config


def parse_command(argv: Sequence[str], recipes: Recipes) -> Command:
    """Return the settings a command line asks for, not yet validated, and whether it only wants to see them.

    Raises:
        ConfigError: an unknown recipe, flag or key (with the nearest known), or a value of the wrong type.
        SystemExit: `--help` (0), or a dotted flag whose value tyro cannot read (2).
    """
    if "-h" in argv or "--help" in argv:
        _tyro(ExperimentConfig(), ["--help"], recipes)
    arguments = _sort(argv)
    recipe = _recipe(arguments.own, recipes)
    config = _with_file(recipe, arguments.own)
    for key, value in published_flags.apply_published(arguments.published).items():
        config = config_tree.set_path(config, key, value, "published flag")
    config = _in_steps(config, [key for key, _ in arguments.assignments])
    for key, value in arguments.assignments:
        config = config_tree.set_path(config, key, value, "command line")
    if arguments.dotted:
        config = _in_steps(config, [word[2:].replace("-", "_") for word in arguments.dotted])
        config = _tyro(config, arguments.dotted, recipes)
    planned = _planned(arguments.own)
    named = recipe if "recipe" in arguments.own else None
    return Command(config, "dry_run" in arguments.own, *planned, published=arguments.published, recipe=named)


def _in_steps(config: ExperimentConfig, keys: Collection[str]) -> ExperimentConfig:
    """Let a later layer that gives a number of steps win over an earlier one's epochs."""
    if "train.train_steps" in keys and "train.epochs" not in keys:
        return config_tree.set_path(config, "train.epochs", None, "command line")
    return config


def _planned(own: Mapping[str, str]) -> tuple[int | None, str | None]:
    """Return for how many ranks and which cards a dry run is asked."""
    for name in ("ranks", "card"):
        if name in own and "dry_run" not in own:
            raise ConfigError(f"--{name} is for --dry-run; the launcher says how many ranks and cards a run has")
    ranks = own.get("ranks")
    if ranks is None:
        return None, own.get("card")
    if not (ranks.isascii() and ranks.isdigit() and 1 <= len(ranks) <= 6 and int(ranks) > 0):
        raise ConfigError(f"--ranks {_shown(ranks)}: expected a whole number from 1 to 999999")
    return int(ranks), own.get("card")


def _tyro(config: ExperimentConfig, args: list[str], recipes: Recipes) -> ExperimentConfig:
    description = DESCRIPTION.format(recipes=", ".join(recipes))
    return tyro.cli(ExperimentConfig, prog="tools/train.py", description=description, default=config, args=args)


def _recipe(own: Mapping[str, str], recipes: Recipes) -> ExperimentConfig:
    if "recipe" not in own:
        return ExperimentConfig()
    name = own["recipe"]
    if name not in recipes:
        hint = did_you_mean(name, recipes)
        raise ConfigError(f"unknown recipe {_shown(name)!r}{hint}")
    return recipes[name]()


def _with_file(config: ExperimentConfig, own: Mapping[str, str]) -> ExperimentConfig:
    if "config" not in own:
        return config
    path = _path(own["config"])
    content = config_tree.read_yaml(path)
    train = content.get("train")
    config = _in_steps(config, [f"train.{name}" for name in train] if isinstance(train, Mapping) else ())
    return config.updated(content, path)


def _sort(argv: Sequence[str]) -> Arguments:
    """Deal the words of a command line out to their layers; every flag is known after this."""
    result = Arguments()
    words = deque(argv)
    while words:
        word = words.popleft()
        flag, equals, value = word.partition("=")
        if not word.startswith("--"):
            _sort_word(word, result)
            continue
        if equals:
            words.appendleft(value)
        name = flag[2:].replace("-", "_")
        if name in OWN_FLAGS:
            result.own[name] = _take(words, flag) if OWN_FLAGS[name] else "true"
        elif name in published_flags.FLAGS:
            alone = published_flags.FLAGS[name].boolean and (not words or _is_new(words[0]))
            result.published[name] = "True" if alone else _take(words, flag)
        elif "." in name:
            result.dotted += _dotted(name, words, flag)
        else:
            raise ConfigError(f"unknown flag {_shown(flag)}{_nearest_flag(name)}")
    return result


def _sort_word(word: str, result: Arguments) -> None:
    """A word that is no flag: `section.key=value`, or a JSON file of published flags."""
    key, equals, value = word.partition("=")
    if equals:
        result.assignments.append((key.replace("-", "_"), value))
    elif word.endswith(".json"):
        result.published.update(_read_json(_path(word)))
    else:
        raise ConfigError(f"{_shown(word)!r} is neither a flag (--name) nor an assignment (section.key=value)")


def _read_json(path: str) -> dict[str, str]:
    """Return the flags of a JSON file as the command line would give them."""
    content = read_json_object(path, ConfigError, unique=True)
    return {
        name: _flag_value(name, value, f"{printable(path)}: {printable(name)[:80]}") for name, value in content.items()
    }


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
    kind = config_tree.leaf_type(ExperimentConfig(), flag.key.partition(",")[0])
    parts = (kind,) if get_origin(kind) is Literal else get_args(kind) or (kind,)
    return all(part in (str, NoneType) or get_origin(part) is Literal for part in parts)


def _path(word: str) -> str:
    if len(word) > 4096:
        raise ConfigError(f"{_shown(word)}...: a path of {len(word)} characters")
    return word


def _shown(word: str) -> str:
    """Return a word of the command line as a message shows it."""
    return printable(word[:100])


def _dotted(name: str, words: deque[str], flag: str) -> list[str]:
    """Check a dotted flag and return it as tyro reads it, its values taken off `words`."""
    default = ExperimentConfig()
    section, _, last = name.rpartition(".")
    paths = tuple(config_tree.leaf_paths(default))
    positive = f"{section}.{last[3:]}" if last.startswith("no_") else name
    if name not in paths and positive not in paths:
        raise ConfigError(f"unknown flag {_shown(flag)}{_nearest_flag(name)}")
    path = name if name in paths else positive
    kind = config_tree.leaf_type(default, path)
    spelt = path.replace("_", "-")
    if kind is bool:
        on = path == name
        if words and words[0].lower() in ("true", "false"):
            on = on == (words.popleft().lower() == "true")
        head, _, tail = spelt.rpartition(".")
        return [f"--{head}.{tail}" if on else f"--{head}.no-{tail}"]
    if path != name:
        raise ConfigError(f"unknown flag {flag}: {path} is not a switch; give it the value None to unset it")
    values = [_take(words, flag)]
    while get_origin(kind) is tuple and words and not _is_new(words[0]):
        values.append(words.popleft())
    if get_origin(kind) is tuple:
        values = [part for value in values for part in value.split(",") if part]
    return [f"--{spelt}", *values]


def _take(words: deque[str], flag: str) -> str:
    if not words or words[0].startswith("--"):
        raise ConfigError(f"{flag} needs a value")
    return words.popleft()


def _is_new(word: str) -> bool:
    """Tell whether a word starts something new instead of being the value of the flag before it."""
    return word.startswith("--") or ("=" in word and "." in word.partition("=")[0])


def _nearest_flag(name: str) -> str:
    """Return the hint for an unknown flag: the nearest flags, spelt as they are to be written."""
    name = name[:100]
    paths = {path: f"--{path.replace('_', '-')}" for path in config_tree.leaf_paths(ExperimentConfig())}
    by_last = {path.rpartition(".")[2]: spelt for path, spelt in paths.items()}
    own = {flag: f"--{flag.replace('_', '-')}" for flag in OWN_FLAGS}
    published = {flag: f"--{flag}" for flag in published_flags.FLAGS}
    last = name.rpartition(".")[2]
    if "." in name and last in published and published_flags.FLAGS[last].key in paths:
        near = [paths[published_flags.FLAGS[last].key]]  # the published word in one of our sections
    elif "." in name:
        near = _closest(name, paths) or _closest(last, by_last)
    else:
        near = _closest(name, {**by_last, **published, **own})
    hint = f"did you mean {' or '.join(near)}?" if near else "see --help and --print-flags"
    return f"; {hint}"


def _closest(word: str, spellings: Mapping[str, str]) -> list[str]:
    return [spellings[item] for item in difflib.get_close_matches(word, list(spellings), n=2, cutoff=0.6)]
