"""The table of a model: every HF tensor with its place in the Megatron-Core checkpoint, and checks against both sides.

It is put together from the rows of the tower, of the projector and of the language model. The projector is the same for
every model and stands here. The others are their families' (`families/*/hf_table.py`).

A family states the names of the published folders. Those of transformers' own InternVL class follow from them by
the rules of `native_table.py`; `mapping_table` returns the table of either layout.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from megatron_v2pe.base.plugins import FAMILIES, Registry
from megatron_v2pe.checkpoint.hf.mappings import RowRun, TensorMapping, mapped
from megatron_v2pe.checkpoint.hf.native_table import MODULE_NAMES, has_module_names, native_rows
from megatron_v2pe.errors import CheckpointError, ConfigError
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.config_sections import LanguageConfig, VisionConfig
from megatron_v2pe.models.native_config import NATIVE, ORIGINAL

TABLES = ("language_model.embedding.word_embeddings.weight", "language_model.output_layer.weight")
"""Keys of the tables with a row for every token; a tied model has the first alone."""
_FREQUENCIES = ".rotary_emb.inv_freq"
"""End of the names of buffers that are no weights."""
_HEADS = ("lm_head.weight", "language_model.output.weight")
"""Ends of the names of the output projection: of most language models, and of InternLM2."""


@dataclass(frozen=True)
class MappingTable:
    """All tensors of an architecture."""

    tensors: tuple[TensorMapping, ...]

    def by_name(self) -> dict[str, TensorMapping]:
        """Return the mappings by HF name."""
        return {mapping.name: mapping for mapping in self.tensors}

    def renamed(self, rules: Mapping[str, str]) -> MappingTable:
        r"""Return the table of a checkpoint that holds the same tensors under other names.

        Args:
            rules: regular expression -> what stands in its place, as in `re.sub`; all are applied to every HF name, in
                their order: `{r"^language_model\.model\.": "model.language_model."}`.

        Raises:
            ConfigError: two tensors would have one name.
        """
        names: dict[str, str] = {}
        for mapping in self.tensors:
            name = mapping.name
            for pattern, replacement in rules.items():
                name = re.sub(pattern, replacement, name)
            if name in names:
                raise ConfigError(f"names of tensors: {names[name]} and {mapping.name} would both be {name}")
            names[name] = mapping.name
        renamed = zip(self.tensors, names, strict=True)
        return MappingTable(tuple(replace(mapping, name=name) for mapping, name in renamed))

    def check(self, source: str) -> MappingTable:
        """Return the table if it fills every row of every Megatron-Core tensor exactly once.

        Raises:
            ConfigError: it does not, or a name stands in it twice; the tensors are named after `source`.
        """
        if len(self.by_name()) != len(self.tensors):
            names = [mapping.name for mapping in self.tensors]
            raise ConfigError(f"{source}: {next(name for name in names if names.count(name) > 1)} stands there twice")
        of_key: dict[str, list[TensorMapping]] = {}
        for mapping in self.tensors:
            if not mapping.copy:
                of_key.setdefault(mapping.key, []).append(mapping)
        for key, mappings in of_key.items():
            if problem := _fault(mappings):
                names = ", ".join(mapping.name for mapping in mappings)
                raise ConfigError(f"{source}: {key}: {problem}; it is filled from {names}")
        return self

    def check_names(self, found: Iterable[str], source: str) -> None:
        """Check that the tensors of an HF checkpoint are exactly those of the table.

        Raises:
            CheckpointError: tensors are missing or left over; they are named.
        """
        _check_sets({mapping.name for mapping in self.tensors}, set(found), source)

    def check_shape(self, mapping: TensorMapping, shape: Sequence[int], source: str) -> None:
        """Check the shape of an HF tensor.

        Raises:
            CheckpointError: names the tensor and both shapes.
        """
        if tuple(shape) != mapping.shape:
            raise CheckpointError(
                f"{source}: {mapping.name} has shape {_text(shape)}, config.json asks for {_text(mapping.shape)}"
            )

    def check_keys(self, found: Mapping[str, Sequence[int]], source: str) -> None:
        """Check that the tensors of a Megatron-Core checkpoint are exactly those of the table, by key and shape.

        Raises:
            CheckpointError: tensors are missing, left over or of another shape; they are named.
        """
        _check_sets({mapping.key for mapping in self.tensors}, set(found), source)
        for mapping in self.tensors:
            shape, expected = tuple(found[mapping.key]), mapping.key_shape
            padded = mapping.may_be_padded and len(shape) == len(expected) and shape[0] >= expected[0]
            if shape != expected and not (padded and shape[1:] == expected[1:]):
                at_least = "at least " if mapping.may_be_padded else ""
                raise CheckpointError(
                    f"{source}: {mapping.key} has shape {_text(shape)}, hf/config.json asks for "
                    f"{at_least}{_text(expected)}"
                )


TowerRows = Callable[[VisionConfig], Iterable[TensorMapping]]
LanguageRows = Callable[[LanguageConfig], Iterable[TensorMapping]]
TOWER_TABLES: Registry[TowerRows] = Registry("table of a vision tower", FAMILIES, "hf_table")
"""Rows of a tower by what `vision_config.architectures` states."""
LANGUAGE_TABLES: Registry[LanguageRows] = Registry("table of a language model", FAMILIES, "hf_table")
"""Rows of a language model by what `llm_config.architectures` states."""


def mapping_table(model: InternVLConfig, layout: str = ORIGINAL, names: Iterable[str] = ()) -> MappingTable:
    """Return the table of a model.

    Args:
        model: the model.
        layout: `original` or `native`, see `models.config.layout_of`.
        names: of the tensors of a checkpoint that is there. Where those of a native one are transformers' modules'
            (`model.language_model...`), the table has them too; without, it has the names that transformers writes.
            Where a tied model has an output projection all the same, the table has it as a copy.

    Raises:
        ConfigError: no table is known for its tower or its language model, or a family's table is wrong.
    """
    language = LANGUAGE_TABLES.find(model.llm.architecture)
    if language is None:
        known = ", ".join(LANGUAGE_TABLES)
        raise ConfigError(f"language model {model.llm.architecture!r} cannot be converted; known: {known}")
    tower = TOWER_TABLES.get(model.vision.architecture)
    table = MappingTable(
        (*tower(model.vision), *_projector(model), *language(model.llm), *_copies(model.llm, language))
    )
    names = {*names}
    if layout == NATIVE:
        table = MappingTable(tuple(native_rows(table.tensors, model.llm.architecture)))
        table = table.renamed(MODULE_NAMES) if has_module_names(names) else table
    table = MappingTable(tuple(row for row in table.tensors if not row.copy or row.name in names))
    return table.check(f"table of {model.llm.architecture} with {model.vision.architecture}")


def _copies(llm: LanguageConfig, language: LanguageRows) -> Iterator[TensorMapping]:
    """Yield the output projection of a tied model, which repeats its embedding, under the name it has where untied."""
    if llm.tie_word_embeddings:
        names = {row.name for row in language(llm)}
        for row in language(replace(llm, tie_word_embeddings=False)):
            if row.name not in names:
                yield replace(row, key="language_model.embedding.word_embeddings.weight", copy=True)


def _projector(model: InternVLConfig) -> Iterator[TensorMapping]:
    """Yield the mappings of the two-layer projector between tower and language model."""
    shuffled = model.vision.hidden_size * round(1 / model.downsample_ratio) ** 2
    hidden, target = model.llm.hidden_size, "vision_projection"
    yield mapped("mlp1.0.weight", f"{target}.norm.weight", shuffled)
    yield mapped("mlp1.0.bias", f"{target}.norm.bias", shuffled)
    yield mapped("mlp1.1.weight", f"{target}.linear_fc1.weight", hidden, shuffled)
    yield mapped("mlp1.1.bias", f"{target}.linear_fc1.bias", hidden)
    yield mapped("mlp1.3.weight", f"{target}.linear_fc2.weight", hidden, hidden)
    yield mapped("mlp1.3.bias", f"{target}.linear_fc2.bias", hidden)


def _fault(mappings: Sequence[TensorMapping]) -> str | None:
    """Say what is wrong with the tensors that fill one Megatron-Core tensor, None where nothing is."""
    shapes = {mapping.key_shape for mapping in mappings}
    if len(shapes) > 1:
        return f"its shape would be {' and '.join(map(_text, sorted(shapes)))}"
    filled = 0
    for run in sorted(chain.from_iterable(mapping.rows.runs(mapping.shape[0]) for mapping in mappings), key=_key_row):
        if run.key_row < filled:
            return f"row {run.key_row} is filled twice"
        if run.key_row > filled:
            break
        filled += run.rows
    rows = mappings[0].key_rows
    return None if filled == rows else f"row {filled} of {rows} is filled from nowhere"


def _key_row(run: RowRun) -> int:
    return run.key_row


def _check_sets(expected: set[str], found: set[str], source: str) -> None:
    asked, there = _layout_of_names(expected), _layout_of_names(found)
    if None not in (asked, there) and asked != there:
        raise CheckpointError(
            f"{source}: the tensors have the names of the {there} layout ({min(found - expected)}, ...), config.json "
            f"is of the {asked} one: put the config.json there that belongs to the weights"
        )
    problems = [
        f"{len(names)} tensors {what}: {_some(names)}"
        for what, names in (("are missing", expected - found), ("are not part of this architecture", found - expected))
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{source}: {len(found)} tensors, expected {len(expected)}; {'; '.join(problems)}"
            f"{_advice(expected - found, found - expected)}"
        )


def _advice(missing: set[str], extra: set[str]) -> str:
    """Return what to do about differences that have one usual cause, or nothing."""
    if extra and not missing and all(name.endswith(_FREQUENCIES) for name in extra):
        return (
            ": rotary frequencies that early versions of transformers saved; they follow from config.json, so remove "
            "them from the files (and from the index)"
        )
    if missing and not extra and all(name.endswith(_HEADS) for name in missing):
        return (
            ": where the model's output projection is its embedding, state tie_word_embeddings true in llm_config "
            "(in a native config.json, at the top)"
        )
    return ""


def _some(names: set[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "")


def _text(shape: Sequence[int]) -> str:
    return "[" + ", ".join(str(n) for n in shape) + "]"


def _layout_of_names(names: Iterable[str]) -> str | None:
    """Return the layout whose name for a tower's tensors occurs, None where none or both do."""
    marks = {ORIGINAL: "vision_model.", NATIVE: "vision_tower."}
    found = [layout for layout, mark in marks.items() if any(mark in name for name in names)]
    return found[0] if len(found) == 1 else None
