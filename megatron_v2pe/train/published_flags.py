"""What the flags of the published V2PE training scripts become here: settings of ours, in the order given.

The flags stand in `published_table`, those of validation in `published_validation`. A value that is ignored and asks
for something else than what is done is named in a line at the start (`notices`).
"""

from __future__ import annotations

from collections.abc import Mapping

from megatron_v2pe.base.suggest import did_you_mean
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.train.published_table import EPOCHS, ROWS, PublishedFlag, Settings, shown_value
from megatron_v2pe.train.published_validation import VALIDATION_ROWS

FLAGS: dict[str, PublishedFlag] = {row.name: row for row in (*ROWS, *VALIDATION_ROWS)}
"""Every published flag by name."""


def apply_published(values: Mapping[str, str]) -> Settings:
    """Return our settings for published flags, in the order given; a later flag wins.

    Args:
        values: flag name without dashes -> value as text.

    Raises:
        ConfigError: an unknown flag, a refused one, or two that contradict each other.
    """
    chunks, attention = values.get("chunk_num", "1"), values.get("attn_type", "ring")
    if attention == "packed" and chunks not in ("", "1"):
        raise ConfigError(f"--chunk_num {shown_value(chunks)} needs --attn_type ring, it is {attention}")
    if _is_given(values, "warmup_steps") and _is_given(values, "warmup_ratio"):
        raise ConfigError(
            f"--warmup_steps {shown_value(values['warmup_steps'])} and --warmup_ratio "
            f"{shown_value(values['warmup_ratio'])} both say how long warm-up is: leave one out"
        )
    settings: Settings = {}
    if values.get("save_strategy") == "no":
        values = {name: value for name, value in values.items() if name != "save_steps"}
    for name, value in values.items():
        if name not in FLAGS:
            raise ConfigError(f"unknown flag --{shown_value(name)}{did_you_mean(name[:100], tuple(FLAGS))}")
        settings.update(FLAGS[name].settings(value))
    if values.get("lr_scheduler_type") == "constant":  # constant_with_warmup is the one that warms up
        settings |= {"optimizer.warmup_ratio": 0.0, "optimizer.warmup_steps": None}
    return {**settings, **_length(values)}


def stated_by(values: Mapping[str, str]) -> dict[str, str]:
    """Return for each setting that `apply_published` returns the flag it comes from, as it was typed with its value.

    Args:
        values: as `apply_published` has taken them.
    """
    typed = {name: f"--{name} {shown_value(value)}".rstrip() for name, value in values.items()}
    found = {path: typed[name] for name, value in values.items() for path in FLAGS[name].settings(value)}
    for path in _length(values):
        name = "max_steps" if path == "train.train_steps" or "num_train_epochs" not in values else "num_train_epochs"
        found[path] = typed[name]
    return found


def _is_given(values: Mapping[str, str], name: str) -> bool:
    """Tell whether a flag is given with another value than nothing or 0."""
    return values.get(name, "").strip() not in ("", "0", "0.0")


def no_number_of_steps(values: Mapping[str, str]) -> bool:
    """Tell whether `--max_steps` says, as 0 and -1 do, that epochs are meant."""
    try:
        return float(values["max_steps"]) <= 0
    except (KeyError, ValueError):  # not given; not a number, which the setting refuses by its name
        return False


def _length(values: Mapping[str, str]) -> Settings:
    """Return how long the run is: steps where a number of them is given, else epochs, as the published scripts do."""
    if "max_steps" in values and not no_number_of_steps(values):
        return {"train.train_steps": values["max_steps"], "train.epochs": None}
    if "num_train_epochs" in values or "max_steps" in values:
        return {"train.epochs": values.get("num_train_epochs", EPOCHS)}
    return {}


def as_markdown() -> str:
    """Return the table of all flags as Markdown, the content of `docs/flags.md`."""
    lines = [
        "# Flags of the published training scripts",
        "",
        "`tools/train.py` understands the flags of the published scripts (`--chunk_num 8 --attn_type ring`),",
        "next to its own dotted ones (`--parallel.context-parallel-size 8`). A published flag not given",
        "keeps the recipe's value; the published default is not imposed. This table is written by",
        "`python tools/train.py --print-flags > docs/flags.md`, and a test compares the two.",
        "",
        "`as X`: this is done whatever the value is; another one is named at the start of a run and of a dry run,",
        "a line each, on standard error. `ignored`: no value changes a run, here or as published; those given are",
        "named in one line. `refused`: the run does not start. Epochs are counted in steps before the first one, see",
        "[launching.md](launching.md#how-long).",
    ]
    group = ""
    for row in FLAGS.values():
        if row.group != group:
            group = row.group
            lines += [
                "",
                f"## {group[:1].upper() + group[1:]}",
                "",
                "| flag | default | here | remark |",
                "|---|---|---|---|",
            ]
        here = ", ".join(f"`{key.strip()}`" for key in row.key.split(",")) if row.kind == "mapped" else row.kind
        note = row.note
        if row.kind == "refused":
            allowed = ", ".join(f"`{value}`" for value in (row.neutral[:1]))
            note = f"unless {allowed}: {note}"
        if row.kind == "ignored" and row.done is not None:
            here = f"as `{row.done[0]}`"
        lines.append(f"| `--{row.name}` | {'none' if row.default == '-' else f'`{row.default}`'} | {here} | {note} |")
    return "\n".join(lines) + "\n"
