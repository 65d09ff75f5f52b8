"""The tensors of a model spread over ranks, in and out of a checkpoint folder.

Megatron-Core says which rank holds which part of which tensor (`sharded_state_dict`), checks that the parts make up the
whole, and puts loaded values back. What is written and read in between is ours, so that every shard carries a checksum
and nothing of a checkpoint is unpickled. Objects that are no tensors (the `_extra_state` of linear layers, which is
empty without FP8) are neither stored nor read: every process keeps its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.dict_utils import dict_list_map_inplace, dict_list_map_outplace, nested_values
from megatron.core.dist_checkpointing.mapping import (
    LocalNonpersistentObject,
    ShardedObject,
    ShardedTensor,
    is_main_replica,
)
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies.base import LoadCommonStrategy, LoadShardedStrategy
from megatron.core.dist_checkpointing.validation import StrictHandling

from megatron_v2pe.checkpoint.torch_dist import TorchDistReader, TorchDistWriter, Written, read_common
from megatron_v2pe.device.agreement import on_every_rank
from megatron_v2pe.errors import CheckpointError

State = dict[str, Any]
"""Nested: names -> sharded tensors and plain values, as Megatron-Core's modules describe themselves."""


def parts_to_save(state: State) -> tuple[list[ShardedTensor], Any]:
    """Return the parts of tensors this rank writes, and the plain values all ranks share; every rank calls this.

    Raises:
        CheckpointingException: of Megatron-Core: the parts of all ranks do not make up whole tensors.
    """
    sharded, common = save_preprocess(_without_objects(state))
    parts = [part for part in nested_values(sharded) if isinstance(part, ShardedTensor)]
    return [part for part in parts if is_main_replica(part.replica_id)], common


def bytes_of(parts: list[ShardedTensor], device: torch.device) -> int:
    """Return the bytes of the parts of all ranks; every rank calls this."""
    total = torch.tensor(sum(part.data.nbytes for part in parts if part.data is not None), device=device)
    dist.all_reduce(total)
    return int(total.item())


def write_parts(folder: Path, parts: list[ShardedTensor]) -> Written:
    """Write this rank's parts to a file of its own; return what is in it.

    Raises:
        OSError: the disk is full, or the folder cannot be written to.
    """
    if not parts:
        return Written()
    with TorchDistWriter(folder, dist.get_rank()) as writer:
        for part in parts:
            assert part.data is not None, part.key
            values = part.data[(None,) * part.prepend_axis_num]
            writer.add(part.key, tuple(part.global_shape), tuple(part.global_offset), values)
    return writer.written


def load(state: State, reader: TorchDistReader, folder: Path) -> State:
    """Read what `state` describes into its tensors; every rank calls this.

    Returns:
        The state with values: the tensors of `state`, filled, and what all ranks share.

    Raises:
        CheckpointError: the folder is damaged, or of another model; what one rank meets is raised on all.
    """
    # Before Megatron-Core's exchanges: a rank that fails between them would let the others wait.
    common = on_every_rank(lambda: read_common(folder))
    return on_every_rank(lambda: _load(state, reader, folder, common))


def _load(state: State, reader: TorchDistReader, folder: Path, common: Any) -> State:
    strict = StrictHandling.RAISE_UNEXPECTED
    try:
        # The two strategies read everything but metadata.json, which is JSON.
        tensors, shared = _Tensors(reader), _Common(common)
        return dist_checkpointing.load(_without_objects(state), str(folder), tensors, shared, strict=strict)  # type: ignore[return-value]
    except dist_checkpointing.core.CheckpointingException as error:
        raise CheckpointError(f"{folder}: does not fit this model: {error}") from error


def _without_objects(state: State) -> State:
    """Have every process keep its own objects that are no tensors."""

    def own(value: Any) -> Any:
        return LocalNonpersistentObject(value.data) if isinstance(value, ShardedObject) else value

    dict_list_map_inplace(own, state)
    return state


class _Tensors(LoadShardedStrategy):
    """Megatron-Core's loading of tensors, by our reader."""

    def __init__(self, reader: TorchDistReader) -> None:
        self._reader = reader

    @property
    def can_handle_sharded_objects(self) -> bool:
        return True  # there are none

    def load(self, sharded_state_dict: State, checkpoint_dir: str | Path) -> State:
        def value(part: Any) -> torch.Tensor:
            assert isinstance(part, ShardedTensor) and part.data is not None, part
            stored = self._reader.tensors[part.key]
            begin, wanted = tuple(part.global_offset), tuple(part.global_shape)
            if stored.size != wanted and not (part.allow_shape_mismatch and len(stored.size) == len(wanted)):
                raise CheckpointError(
                    f"{checkpoint_dir}: does not fit this model: {part.key} has shape {list(stored.size)}, "
                    f"the model's is {list(wanted)}"
                )
            target = part.data.detach()
            whole = target[(None,) * part.prepend_axis_num]
            if stored.size == wanted:
                self._reader.read(part.key, begin, tuple(whole.shape), whole)
                return target
            # A vocabulary padded to another multiple: what one side alone has is nothing.
            whole.zero_()
            sizes = [
                max(min(extent, there - first), 0)
                for extent, there, first in zip(whole.shape, stored.size, begin, strict=True)
            ]
            if all(sizes):
                window = whole[tuple(slice(0, extent) for extent in sizes)]
                self._reader.read(part.key, begin, tuple(sizes), window)
            return target

        return dict_list_map_outplace(value, sharded_state_dict)  # type: ignore[return-value]

    def load_tensors_metadata(self, checkpoint_dir: str | Path) -> State:
        described = {}
        for key, stored in self._reader.tensors.items():
            empty = torch.empty(stored.size, dtype=stored.dtype, device="meta")
            described[key] = ShardedTensor.from_rank_offsets(key, empty).without_data()
        return described

    def load_sharded_metadata(self, checkpoint_dir: str | Path) -> State:
        return self.load_tensors_metadata(checkpoint_dir)

    def check_backend_compatibility(self, loaded_backend: str) -> None:
        """Accept: `vet` has checked it."""

    def check_version_compatibility(self, loaded_version: int) -> None:
        """Accept: `vet` has checked it."""


class _Common(LoadCommonStrategy):
    """Megatron-Core's loading of what all ranks share, which has been read."""

    def __init__(self, common: Any) -> None:
        self._common = common

    def load_common(self, checkpoint_dir: str | Path) -> Any:
        return self._common

    def load_sharded_objects(self, sharded_objects_state_dict: State, checkpoint_dir: str | Path) -> State:
        raise AssertionError("no object is ever loaded")

    def check_backend_compatibility(self, loaded_backend: str) -> None:
        """Accept: `vet` has checked it."""

    def check_version_compatibility(self, loaded_version: int) -> None:
        """Accept: `vet` has checked it."""
