"""PEFT's `adapter_config.json`: what of it is understood, what is refused, and what is written.

Of LoRA's variants those are understood whose product is `scaling * up @ down` on a linear and nothing else. A field
that would change the product is refused where it is set; one that only says how training began or went is passed over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Fields, Range
from megatron_v2pe.foreign.text import read_json_object
from megatron_v2pe.foreign.tokenizer_files import LARGEST_ID

CONFIG_FILE = "adapter_config.json"
_LARGEST_RANK = 1 << 16
_OTHER = {
    "use_dora": "DoRA",
    "lora_bias": "a bias in the adapter",
    "fan_in_fan_out": "weights that lie transposed",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing",
    "layer_replication": "layers that are repeated",
    "target_parameters": "adapters of parameters",
}
"""Fields that change what an adapter computes -> what they ask for."""
_CHANGES_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
"""Beginnings of `init_lora_weights` under which peft changes the base's weights when it opens the adapter."""
_MERGE = (
    "merge it into its model with peft (merge_and_unload, then save_pretrained), and name the folder that this gives"
)
_LONGEST_PATTERN, _MOST_REPEATS = 300, 4
_PATTERN = re.compile(r"[\w.\\^$|()\[\]*+?-]*")
_NESTED = re.compile(r"\)\s*[*+?{]")


@dataclass(frozen=True)
class PeftConfig:
    """What `adapter_config.json` says of an adapter."""

    rank: int
    alpha: float
    targets: tuple[str, ...] | str
    """Names of modules, or endings of such names; text is a regular expression, which is not evaluated."""
    rank_stabilised: bool = False
    dropout: float = 0.0
    whole: tuple[str, ...] = ()
    """Modules that were trained in full, PEFT's `modules_to_save`."""
    ranks: Mapping[str, int] = field(default_factory=dict)
    """PEFT's `rank_pattern`."""
    alphas: Mapping[str, float] = field(default_factory=dict)
    """PEFT's `alpha_pattern`."""
    token_rows: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Module of an embedding or a head, or the end of its name -> the rows that were trained of it
    (`trainable_token_indices`); without a name they are the embedding's."""
    base: str | None = None
    class_name: str | None = None
    """Class of the model that peft wraps, where it is transformers' own."""
    file: str = CONFIG_FILE
    """Where the ranks stand, for messages."""

    def rank_of(self, module: str) -> int:
        """Return the rank of a module's adapter."""
        return _matched(self.ranks, module, self.rank)

    def rows_of(self, module: str) -> tuple[int, ...]:
        """Return the rows that were trained of an embedding or a head; none where the file names none."""
        named = (ids for name, ids in self.token_rows.items() if name and module.endswith(name))
        return next(named, self.token_rows.get("", ()))

    def alpha_of(self, module: str) -> float:
        """Return alpha of a module's adapter."""
        return _matched(self.alphas, module, self.alpha)

    @classmethod
    def read(cls, folder: Path) -> PeftConfig:
        """Read the file of a PEFT folder.

        Raises:
            CheckpointError: it is missing or damaged, or asks for something that is not understood; names the field.
        """
        path = folder / CONFIG_FILE
        source = printable(path)
        fields = Fields(read_json_object(path, CheckpointError), source, CheckpointError)
        kind = fields.text("peft_type")
        if kind != "LORA":
            raise CheckpointError(f"{source}: peft_type is {printable(kind)[:40]!r}, only LORA is read: {_MERGE}")
        for name, what in _OTHER.items():
            if fields.content.get(name) not in (None, False, {}, []):
                raise CheckpointError(f"{source}: {name} asks for {what}, which is not read: {_MERGE}")
        if (bias := fields.text("bias", "none")) != "none":
            raise CheckpointError(f"{source}: bias is {printable(bias)[:40]!r}, only 'none' is read: {_MERGE}")
        begin = fields.content.get("init_lora_weights")
        if isinstance(begin, str) and begin.lower().startswith(_CHANGES_BASE):
            raise CheckpointError(
                f"{source}: init_lora_weights is {printable(begin)[:40]!r}, under which peft changes the base too: "
                "save the adapter with path_initial_model_for_weight_conversion, which makes an ordinary one of it"
            )
        ranks, alphas = (
            fields.get("rank_pattern", dict[str, int], {}),
            fields.get("alpha_pattern", dict[str, float], {}),
        )
        for pattern in (*ranks, *alphas):
            _check_pattern(pattern, source)
        return cls(
            fields.whole("r", 8, 1, _LARGEST_RANK),
            fields.number("lora_alpha", 8.0),
            fields.get("target_modules", str | tuple[str, ...], ()),
            fields.flag("use_rslora", False),
            fields.number("lora_dropout", 0.0, 0, 1),
            fields.get("modules_to_save", tuple[str, ...], ()),
            ranks,
            alphas,
            _token_rows(fields),
            fields.text("base_model_name_or_path", None),
        )

    def write(self, folder: Path) -> None:
        """Write the file, with the fields that every version of PEFT that is in use knows."""
        rows = {name: list(ids) for name, ids in self.token_rows.items()}
        content: dict[str, Any] = {
            "alpha_pattern": {name: _number(value) for name, value in self.alphas.items()},
            "auto_mapping": None,
            "base_model_name_or_path": self.base,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": True,
            "layers_pattern": None,
            "layers_to_transform": None,
            "lora_alpha": _number(self.alpha),
            "lora_dropout": self.dropout,
            "modules_to_save": list(self.whole) or None,
            "peft_type": "LORA",
            "r": self.rank,
            "rank_pattern": dict(self.ranks),
            "revision": None,
            "target_modules": list(self.targets) if not isinstance(self.targets, str) else self.targets,
            **({"trainable_token_indices": rows} if rows else {}),
            "task_type": None,
            "use_dora": False,
            "use_rslora": self.rank_stabilised,
        }
        if self.class_name is not None:
            library = "transformers.models.internvl.modeling_internvl"
            content["auto_mapping"] = {"base_model_class": self.class_name, "parent_library": library}
        (folder / CONFIG_FILE).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _token_rows(fields: Fields) -> dict[str, tuple[int, ...]]:
    """Return the rows of tokens by module that a file names.

    Raises:
        CheckpointError: no rows, one twice, or a number that is none.
    """
    name = "trainable_token_indices"
    kind = tuple[Annotated[int, Range(0, LARGEST_ID)], ...]
    if isinstance(fields.content.get(name), dict):
        found = fields.get(name, dict[str, kind], {})
    else:
        ids = fields.get(name, kind | None, None)
        found = {} if ids is None else {"": ids}
    for module, ids in found.items():
        if not ids or len(set(ids)) < len(ids):
            what = "no rows" if not ids else "one row twice"
            raise CheckpointError(f"{fields.source}: {name}: {what} of {printable(module)[:80] or 'the embedding'}")
    return dict(found)


def shortest_names(wanted: Collection[str], everything: Collection[str]) -> list[str]:
    """Return names by which PEFT finds exactly the wanted modules: their last parts where those mean no others.

    Args:
        wanted: full names of modules.
        everything: full names of all modules that PEFT goes through, the wanted ones and those that hold them among
            them: `1` would mean `mlp1.1`, and every layer of that number.
    """
    there: dict[str, set[str]] = {}
    for name in everything:
        there.setdefault(_last(name), set()).add(name)
    left = set(wanted)
    short = sorted(last for last, names in there.items() if names <= left)
    covered = {name for last in short for name in there[last]}
    return [*short, *sorted(left - covered)]


def patterns_of(values: Mapping[str, Any], default: Any) -> dict[str, Any]:
    """Return a pattern of PEFT for modules whose value is not the default, by their last part or their whole name."""
    found: dict[str, set[Any]] = {}
    for name, value in values.items():
        found.setdefault(_last(name), set()).add(value)
    result: dict[str, Any] = {}
    for name, value in sorted(values.items()):
        if len(found[_last(name)]) == 1:
            if value != default:
                result[_last(name)] = value
        elif value != default:
            result[name] = value
    return result


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _number(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value


def _matched(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """Return the value of the first pattern that a module's name ends with, as PEFT looks for it."""
    return next((value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module)), default)


def _check_pattern(pattern: str, source: str) -> None:
    """Refuse a pattern of a file on which a regular expression could take any time.

    Raises:
        CheckpointError: it is too long, repeats groups, or has marks that names of modules need not.
    """
    repeats = sum(pattern.count(mark) for mark in "*+?")
    plain = len(pattern) <= _LONGEST_PATTERN and _PATTERN.fullmatch(pattern) and not _NESTED.search(pattern)
    try:
        if plain and repeats <= _MOST_REPEATS:
            re.compile(pattern)
            return
    except re.error:
        pass
    raise CheckpointError(
        f"{source}: rank_pattern or alpha_pattern has {printable(pattern)[:80]!r}; expected names of modules, or "
        "simple expressions of them: write the names of the modules there"
    )
