"""What a training checkpoint with adapters says of the model they belong to: where it lies, and its fingerprint.

Such a checkpoint (`iter_*`) stores what learns: the factors, parts that are trained in full, the optimizer's state of
both. All other weights are those of the base, which is loaded from its own folder. `adapter.json` names it:

    pointer = AdapterPointer.read(folder)         # None: a checkpoint that holds all weights
    pointer.check(base_folder)                    # raises where that is another model
    pointer.plan()                                # which linears have factors, and how large they are

The fingerprint is a digest over the checksums of all tensors of the base. Of a converted Hugging Face folder these are
the SHA-256 of the Hugging Face tensors (`manifest.json`), so that another conversion of the same folder has the same
fingerprint; of a training checkpoint they are the checksums of its shards.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from megatron_v2pe.checkpoint.checksums import Checksums
from megatron_v2pe.checkpoint.description import read_tensors
from megatron_v2pe.checkpoint.folder import ADAPTER_FILE
from megatron_v2pe.checkpoint.hf.manifest import TensorManifest
from megatron_v2pe.errors import CheckpointError, ConfigError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Range, typed
from megatron_v2pe.foreign.text import read_json
from megatron_v2pe.models.config_fields import LARGEST_VOCABULARY
from megatron_v2pe.models.lora_plan import LinearPiece, LowRank, LowRankPlan

_KIND = "LoRA"
_Row = Annotated[int, Range(0, LARGEST_VOCABULARY)]


@dataclass(frozen=True)
class AdapterPointer:
    """Content of `adapter.json`."""

    base: str
    """`model.model_name_or_path` of the run."""
    base_folder: str
    """The Megatron checkpoint folder whose weights the run has loaded."""
    fingerprint: str
    """The fingerprint of that folder, see `fingerprint_of`."""
    parts: dict[str, LowRank]
    """Part of the model -> rank, alpha, dropout."""
    pieces: dict[str, tuple[LinearPiece, ...]]
    """Name of a linear -> its pieces that have factors."""
    division: str
    """`adapter.pieces` of the run: `auto` is the division of PEFT's format."""
    seed: int
    table_rows: tuple[_Row, _Row] | None = None
    """Rows of the vocabulary's tables that the checkpoint holds, those of new tokens: the first and the one behind the
    last. None: it holds none of the tables, or whole ones."""
    kind: str = _KIND
    format_version: int = 1

    @classmethod
    def of(
        cls, plan: LowRankPlan, division: str, base: str, base_folder: Path, table_rows: range | None = None
    ) -> AdapterPointer:
        """Return the pointer of a run's checkpoints.

        Args:
            plan: its adapters.
            division: `adapter.pieces`.
            base: `model.model_name_or_path`.
            base_folder: Megatron checkpoint folder whose weights it has loaded.
            table_rows: of the vocabulary's tables, that its checkpoints hold.

        Raises:
            CheckpointError: the base has no checksums, so that it could not be known again.
        """
        folder = os.path.abspath(base_folder)
        parts = {part: plan.settings[part] for part in plan.parts}
        rows = None if table_rows is None else (table_rows.start, table_rows.stop)
        return cls(base, folder, fingerprint_of(base_folder), parts, dict(plan.pieces), division, plan.seed, rows)

    @classmethod
    def read(cls, folder: Path) -> AdapterPointer | None:
        """Read the pointer of a checkpoint folder; None of one that holds all weights.

        Raises:
            CheckpointError: the file is damaged, describes no adapter, or is of a later version.
        """
        path = folder / ADAPTER_FILE
        if not os.path.lexists(path):
            return None
        pointer = typed(cls, read_json(path, CheckpointError), printable(path), CheckpointError)
        if (pointer.kind, pointer.format_version) != (_KIND, 1):
            raise CheckpointError(
                f"{printable(path)}: {printable(pointer.kind)[:40]!r} of format {pointer.format_version}, this program "
                f"knows {_KIND!r} of format 1"
            )
        if pointer.rows is not None and not len(pointer.rows):
            raise CheckpointError(f"{printable(path)}: table_rows: {list(pointer.table_rows or ())} are no rows")
        for linear, pieces in pointer.pieces.items():
            part, where = linear.split(".")[0], f"{printable(path)}: pieces: {printable(linear)[:120]}"
            if part not in pointer.parts:
                raise CheckpointError(f"{where}: {printable(part)[:60]} has no rank in parts, {sorted(pointer.parts)}")
            for piece in pieces:
                if not 0 < piece.size <= piece.of - piece.begin or piece.block == 0:
                    raise CheckpointError(
                        f"{where}: {printable(piece.name)[:60]}: {piece.size} of {piece.of} units from {piece.begin} "
                        f"on in blocks of {piece.block}, are no rows of a linear"
                    )
        return pointer

    @property
    def rows(self) -> range | None:
        """Rows of the vocabulary's tables that the checkpoint holds; see `table_rows`."""
        return None if self.table_rows is None else range(*self.table_rows)

    def text(self) -> str:
        """Return the content of the file."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"

    def plan(self) -> LowRankPlan:
        """Return which linears have factors, and what they are."""
        return LowRankPlan(self.pieces, self.parts, self.seed)

    def check(self, base: Path, source: Path) -> None:
        """Check that a folder is the base of these adapters.

        Args:
            base: Megatron checkpoint folder.
            source: the checkpoint that has this pointer, for the error.

        Raises:
            CheckpointError: it is another model; both fingerprints are named.
        """
        found = fingerprint_of(base)
        if found != self.fingerprint:
            raise CheckpointError(
                f"{source}: holds adapters of the base {printable(self.base)} with the fingerprint {self.fingerprint}; "
                f"{base} has the fingerprint {found}: it is another model, or was changed since. Name the base that "
                "they were trained on"
            )


def fingerprint_of(folder: Path) -> str:
    """Return the fingerprint of the weights of a Megatron checkpoint folder; nothing but its descriptions is read.

    Raises:
        CheckpointError: it has neither a manifest nor checksums.
    """
    manifest = TensorManifest.read(folder)
    if manifest is not None:
        return fingerprint_of_manifest(manifest)
    checksums = Checksums.read(folder)
    if checksums is None:
        raise CheckpointError(
            f"{folder}: has no checksums, so that adapters trained on it could not find it again; convert its Hugging "
            "Face folder again, or save it with this version"
        )
    digests = {name: checksums.shards_of(name) for name, known in checksums.files.items() if known.shards}
    shards = {
        key: [[list(s.begin), list(s.sizes), digests[s.file][s.offset, s.length]] for s in tensor.shards]
        for key, tensor in read_tensors(folder).items()
        if not key.startswith("optimizer.")
    }
    return _digest("shards", shards)


def fingerprint_of_manifest(manifest: TensorManifest) -> str:
    """Return the fingerprint of weights whose Hugging Face tensors have these checksums."""
    sums = {name: [one.dtype, list(one.shape), one.sha256] for name, one in manifest.tensors.items()}
    return _digest("tensors", sums)


def _digest(kind: str, content: Mapping[str, object]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def check_resumed(resumed: Path | None, base: Path | None, plan: LowRankPlan | None) -> None:
    """Check that a training checkpoint has the adapters of the run that goes on from it, and the same base.

    Args:
        resumed: the checkpoint; None where the run begins.
        base: Megatron checkpoint folder of the run; None where there is none yet, so that it is not compared.
        plan: adapters of the run.

    Raises:
        ConfigError: one of the two has adapters and the other has none, or others.
        CheckpointError: they are of another base.
    """
    if resumed is None:
        return
    pointer = AdapterPointer.read(resumed)
    if pointer is None or plan is None:
        if pointer is not None:
            raise ConfigError(
                f"{resumed}: holds adapters, and this run has none: set adapter.kind lora, and "
                "the other settings of section adapter as they were, or name another checkpoint.save"
            )
        if plan is not None:
            raise ConfigError(
                f"{resumed}: was trained without adapters, and this run has some: to train them on its weights, name "
                "it as model.model_name_or_path, with another checkpoint.save"
            )
        return
    for what, theirs, ours in (
        (
            "linears",
            {name: [p.name for p in pieces] for name, pieces in pointer.pieces.items()},
            {name: [p.name for p in pieces] for name, pieces in plan.pieces.items()},
        ),
        (
            "rank",
            {part: one.rank for part, one in pointer.parts.items()},
            {p: plan.settings[p].rank for p in plan.parts},
        ),
        (
            "scaling",
            {part: one.scaling for part, one in pointer.parts.items()},
            {p: plan.settings[p].scaling for p in plan.parts},
        ),
    ):
        if theirs != ours:
            named = sorted(name for name in {*theirs, *ours} if theirs.get(name) != ours.get(name))[0]
            raise ConfigError(
                f"{resumed}: its adapters have another {what}: of {named} {theirs.get(named, 'none')}, in this run "
                f"{ours.get(named, 'none')}; go on with the settings of section adapter that it was trained with"
            )
    if base is not None:
        pointer.check(base, resumed)
