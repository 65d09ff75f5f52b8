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
from megatron.core.dist_checkpointing.dict_utils import (
    dict_list_map_inplace,
    dict_list_map_outplace,
    merge,
    nested_values,
)
from megatron.core.dist_checkpointing.mapping import (
    LocalNonpersistentObject,
    ShardedObject,
    ShardedTensor,
    apply_factory_merges,
    is_main_replica,
)
from megatron.core.dist_checkpointing.state_dict_utils import load_preprocess, save_preprocess
from megatron.core.dist_checkpointing.utils import extract_sharded_base

from megatron_v2pe.checkpoint.description import read_common
from megatron_v2pe.checkpoint.torch_dist import TorchDistReader, check_padding
from megatron_v2pe.device.rank_errors import raise_on_all_ranks
from megatron_v2pe.errors import CheckpointError, V2PEError
from megatron_v2pe.models.padding import CutPart

State = dict[str, Any]
"""Nested: names -> sharded tensors and plain values, as Megatron-Core's modules describe themselves."""


def parts_to_save(state: State) -> tuple[list[ShardedTensor], Any]:
    """Return the parts of tensors this rank writes, and the plain values all ranks share; every rank calls this.

    Raises:
        CheckpointingException: of Megatron-Core: the parts of all ranks do not make up whole tensors.
    """
    sharded, common = save_preprocess(_without_objects(state))
    parts = [part for part in nested_values(sharded) if isinstance(part, ShardedTensor)]
    held = [part for part in parts if part.data is not None and part.data.numel()]  # some hold padding alone
    return [part for part in held if is_main_replica(part.replica_id)], common


def bytes_of(parts: list[ShardedTensor], device: torch.device) -> int:
    """Return the bytes of the parts of all ranks; every rank calls this."""
    total = torch.tensor(sum(part.data.nbytes for part in parts if part.data is not None), device=device)
    dist.all_reduce(total)
    return int(total.item())


def load(state: State, reader: TorchDistReader, folder: Path) -> State:
    """Read what `state` describes into its tensors; every rank calls this.

    Args:
        state: nested, of the model and its optimizer; its tensors are filled.
        reader: of the vetted folder.
        folder: the same, for the error.

    Returns:
        The state with values in place of descriptions, and with what all ranks share.

    Raises:
        CheckpointError: the folder is damaged, or of another model; what one rank meets is raised on all.
    """
    return raise_on_all_ranks(lambda: _load(_without_objects(state), reader, folder))


def _load(state: State, reader: TorchDistReader, folder: Path) -> State:
    result = read_common(folder)
    sharded, own, factories = load_preprocess(state)
    sharded, _ = extract_sharded_base(sharded)
    wanted = {part.key for part in nested_values(sharded)}
    if missing := sorted(wanted - reader.tensors.keys()):
        raise CheckpointError(
            f"{folder}: does not fit this model: it lacks {len(missing)} of {len(wanted)} tensors, such as "
            f"{', '.join(missing[:4])}"
        )
    try:
        merge(result, own)
        merge(result, dict_list_map_outplace(lambda part: _filled(part, reader, folder), sharded))
        return apply_factory_merges(result, factories)  # type: ignore[arg-type]
    except (ValueError, KeyError, TypeError, IndexError) as error:  # what all ranks share has another form
        if isinstance(error, V2PEError):
            raise
        raise CheckpointError(f"{folder}: does not fit this model: {type(error).__name__}: {error}") from error


def _filled(part: Any, reader: TorchDistReader, folder: Path) -> torch.Tensor:
    """Return the tensor of a part, its values read and its padding zero."""
    assert isinstance(part, ShardedTensor) and part.data is not None, part
    stored = reader.tensors[part.key]
    begin, wanted = tuple(part.global_offset), tuple(part.global_shape)
    longer = part.allow_shape_mismatch and stored.size[1:] == wanted[1:] and stored.size[0] > wanted[0]
    if stored.size != wanted and not longer:
        raise CheckpointError(
            f"{folder}: does not fit this model: {part.key} has shape {list(stored.size)}, "
            f"the model's is {list(wanted)}"
        )
    target = part.data.detach()
    whole = target[(None,) * part.prepend_axis_num]
    reader.read(part.key, begin, tuple(whole.shape), whole)
    if longer and begin[0] + whole.shape[0] == wanted[0]:  # one of those that hold the last rows
        check_padding(part.key, stored.size, wanted[0], reader, folder)
    return part.filled() if isinstance(part, CutPart) else target


def _without_objects(state: State) -> State:
    """Have every process keep its own objects that are no tensors."""

    def own(value: Any) -> Any:
        return LocalNonpersistentObject(value.data) if isinstance(value, ShardedObject) else value

    dict_list_map_inplace(own, state)
    return state
