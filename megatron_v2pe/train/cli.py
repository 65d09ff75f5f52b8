"""The training command line: a recipe or a YAML file, then single settings, then go.

One way leads from a word to a setting: `arguments.read_arguments` finds what every word sets, `published_flags` says
which setting a published flag stands for, `config_tree.set_path` reads the value as the setting's type, and
`read_command` has the whole checked, once. Layers follow one another, a later one wins: defaults, `--recipe`,
`--config`, published flags, `section.key=value`, `--section.key value`.

tyro prints `--help`, every setting with its type and docstring, and reads nothing: it knows neither assignments nor
published flags nor layers, and would be a second reader of values with messages of its own. Without it a command line
takes 1 ms in place of 80.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from megatron_v2pe.base import config_tree, exit_status, last_words
from megatron_v2pe.base.command import print_end
from megatron_v2pe.base.logging import quiet_expected_warnings
from megatron_v2pe.base.suggest import did_you_mean
from megatron_v2pe.base.whole_numbers import is_whole_number
from megatron_v2pe.device import launch
from megatron_v2pe.errors import ConfigError, V2PEError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.train import notices, published_flags
from megatron_v2pe.train.arguments import Assignment, checked_path, read_arguments, shown
from megatron_v2pe.train.config import ExperimentConfig

DESCRIPTION = """Fine-tune InternVL2, 2.5, 3 and 3.5 with variable visual position encoding.

example: python -m megatron_v2pe.device.torchrun --nproc-per-node 2 tools/train.py --recipe internvl2_2b_v2pe_32k
--model.model-name-or-path pretrained/InternVL2-2B --parallel.tensor-model-parallel-size 2

--recipe NAME: start from a named run ({recipes}).
--config FILE: YAML with any of the settings below, on top of the recipe.
--dry-run: look at folder, tokenizer, template, layout and data, print the resolved settings as YAML and stop; with
them, as comments, what was found, the memory a rank is estimated to take, packs of a step and an epoch. Ends with
status 2 where the run would be refused. --ranks N: of a run on so many; --card GIB or a card's name: on such cards.
--print-flags: print how the flags of the published scripts (--chunk_num 8 --attn_type ring ...), which are
understood as well, map to these settings."""

Recipes = Mapping[str, Callable[[], ExperimentConfig]]
"""Named runs: name -> function that returns the settings. Handed in: recipes stand above this module."""


@dataclass(frozen=True)
class TrainCommand:
    """What the command line of `tools/train.py` asks for."""

    config: ExperimentConfig
    dry_run: bool = False
    ranks: int | None = None
    """Ranks of the run that a dry run is about; None where none are named."""
    card: str | None = None
    """GiB or name of the cards that a dry run is about."""
    published: Mapping[str, str] = field(default_factory=dict)
    """Published flags that were given, by name."""
    recipe: ExperimentConfig | None = None
    """Settings of the recipe that was named, before anything was put on top."""

    def notices(self) -> list[str]:
        """Return a line for each flag and each setting that is given and changes nothing."""
        config, save = self.config, self.config.checkpoint.save
        has_saved = bool(save) and any(Path(save).glob("iter_*"))
        in_epochs, indexed = config.train.epochs is not None, bool(config.data.indexed_path)
        flags = notices.of_published_flags(self.published, has_saved, in_epochs, indexed, config.validation.is_on)
        return [*flags, *notices.of_settings(config, self.recipe)]


def main(argv: Sequence[str], recipes: Recipes) -> int:
    """Train as the command line says; return the exit status (`exit_status`)."""
    if "--print-flags" in argv:
        print(published_flags.as_markdown(), end="")
        return 0
    rank, running = 0, False
    try:
        world = launch.read_environment()
        rank, launched = world.rank, world.launcher != "single"
        command = read_command(argv, recipes, world.world_size, launched)
        lines = command.notices()
        for line in lines if rank == 0 else ():
            print(f"note: {printable(line)}", file=sys.stderr)
        if command.dry_run:
            return _dry_run(command, command.ranks or (world.world_size if launched else None)) if rank == 0 else 0
        quiet_expected_warnings()
        from megatron_v2pe.train.main import run  # Megatron-Core takes seconds to import; --dry-run need not wait

        running = True
        return run(command.config, lines)
    except BrokenPipeError:
        raise
    except (V2PEError, OSError) as error:
        if rank == 0 or running:  # every rank reads the same command line, one speaks of it
            print_end(f"error: {error}" if rank == 0 else f"error: {error} [rank {rank}]")
        else:
            last_words.leave(f"error: {error}")
        return exit_status.of(error)


def _dry_run(command: TrainCommand, ranks: int | None) -> int:
    """Print the settings, what was found and what the run would take; return the status of the first problem."""
    from megatron_v2pe.train.preflight import dry_run
    from megatron_v2pe.train.preflight.run import inspect_run

    quiet_expected_warnings()
    found = inspect_run(command.config, command.recipe, ranks)
    report = dry_run.report(found, ranks, command.card)
    print(command.config.to_yaml() + report, end="", flush=True)
    for problem in found.problems:
        print(f"error: {printable(str(problem), lines=True)}", file=sys.stderr)
    return exit_status.of(found.problems[0]) if found.problems else 0


def check(argv: Sequence[str], recipes: Recipes, processes: int) -> None:
    """Refuse what a run would refuse, in one process and one message, before a launcher starts so many.

    Args:
        argv: words after the program's name.
        recipes: named runs.
        processes: number of processes of the whole run, on all machines.

    Raises:
        V2PEError: what the run would refuse.
        SystemExit: the command line asks for something that is answered here, such as `--help` (0).
    """
    if "--print-flags" in argv:
        print(published_flags.as_markdown(), end="")
        raise SystemExit(0)
    command = read_command(argv, recipes, processes)
    if not command.dry_run:
        from megatron_v2pe.train.preflight.run import check_run

        check_run(command.config, processes)


def read_command(argv: Sequence[str], recipes: Recipes, world_size: int, launched: bool = True) -> TrainCommand:
    """Return what a command line asks for, its settings checked; nothing checks them again after this.

    Args:
        argv: words after the program's name.
        recipes: named runs.
        world_size: number of ranks of the run.
        launched: a launcher has said how many; without one a dry run is of `--ranks`, or of as few as the layout takes.

    Raises:
        ConfigError: what `parse_command` raises; or settings that cannot be, or do not go together.
        SystemExit: `--help` (0).
    """
    command = parse_command(argv, recipes)
    if command.dry_run and not launched:
        world_size = command.config.parallel.model_parallel_size
    command.config.validate(command.ranks or world_size)
    return command


def parse(argv: Sequence[str], recipes: Recipes) -> ExperimentConfig:
    """Return the settings alone of what `parse_command` returns; errors as there."""
    return parse_command(argv, recipes).config


def parse_command(argv: Sequence[str], recipes: Recipes) -> TrainCommand:
    """Return what a command line asks for, its settings not yet checked against one another.

    Raises:
        ConfigError: an unknown recipe, flag or key (with the nearest known), or a value of the wrong type.
        SystemExit: `--help` (0).
    """
    if "-h" in argv or "--help" in argv:
        _print_help(recipes)
    arguments = read_arguments(argv)
    recipe = _recipe(arguments.own, recipes)
    config = _with_file(recipe, arguments.own)
    published = published_flags.apply_published(arguments.published)
    flags = published_flags.stated_by(arguments.published)
    for layer in (
        [Assignment(path, value, flags.get(path, "published flag")) for path, value in published.items()],
        arguments.assignments,
        arguments.flags,
    ):
        config = _with_layer(config, layer)
    ranks, card = _of_a_dry_run(arguments.own)
    named = recipe if "recipe" in arguments.own else None
    return TrainCommand(config, "dry_run" in arguments.own, ranks, card, arguments.published, named)


def _print_help(recipes: Recipes) -> None:
    import tyro

    description = DESCRIPTION.format(recipes=", ".join(recipes))
    tyro.cli(_with_choices(ExperimentConfig()), prog="tools/train.py", description=description, args=["--help"])


def _with_choices(section: Any) -> type:
    """Return a section's class with the names that settings take from a registry spelled out, for tyro to list."""
    changed: list[tuple[str, Any, Any]] = []
    for name, kind in config_tree.field_types(type(section)).items():
        value = getattr(section, name)
        if is_dataclass(value):
            inner = _with_choices(value)
            changed.append((name, inner, field(default_factory=inner)))
        for mark in get_args(kind) if get_origin(kind) is Annotated else ():
            if isinstance(mark, config_tree.OneOf):
                changed.append((name, Literal[tuple(mark.names())], field(default=value)))
    return make_dataclass(type(section).__name__, changed, bases=(type(section),), frozen=True)


def _recipe(own: Mapping[str, str], recipes: Recipes) -> ExperimentConfig:
    if "recipe" not in own:
        return ExperimentConfig()
    name = own["recipe"]
    if name not in recipes:
        raise ConfigError(f"unknown recipe {shown(name)!r}{did_you_mean(name, recipes)}")
    return recipes[name]()


def _with_file(config: ExperimentConfig, own: Mapping[str, str]) -> ExperimentConfig:
    if "config" not in own:
        return config
    path = checked_path(own["config"])
    content = config_tree.read_yaml(path)
    train = content.get("train")
    config = _in_steps(config, [f"train.{name}" for name in train] if isinstance(train, Mapping) else ())
    return config.updated(content, path)


def _with_layer(config: ExperimentConfig, layer: Iterable[Assignment]) -> ExperimentConfig:
    """Return the settings with those of a layer in place; names first, which decide what a section holds."""
    config = _in_steps(config, [path for path, _, _ in layer])
    for path, value, source in sorted(layer, key=lambda one: not one.path.endswith(".name")):
        config = config_tree.set_path(config, path, value, source)
    return config


def _in_steps(config: ExperimentConfig, paths: Collection[str]) -> ExperimentConfig:
    """Let a later layer that gives a number of steps win over an earlier one's epochs."""
    if "train.train_steps" in paths and "train.epochs" not in paths:
        return config_tree.set_path(config, "train.epochs", None, "command line")
    return config


def _of_a_dry_run(own: Mapping[str, str]) -> tuple[int | None, str | None]:
    """Return for how many ranks and for which cards a dry run is asked."""
    for name in ("ranks", "card"):
        if name in own and "dry_run" not in own:
            raise ConfigError(f"--{name} is for --dry-run; the launcher says how many ranks and cards a run has")
    ranks = own.get("ranks")
    if ranks is None:
        return None, own.get("card")
    if not (is_whole_number(ranks, digits=6) and int(ranks) > 0):
        raise ConfigError(f"--ranks {shown(ranks)}: expected a whole number from 1 to 999999")
    return int(ranks), own.get("card")
