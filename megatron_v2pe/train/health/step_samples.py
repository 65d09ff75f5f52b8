"""Which samples a step was made of, gathered from all ranks when something is wrong with it, and written to a file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from megatron_v2pe.data.types import Batch, SampleId


@dataclass(frozen=True)
class PackSamples:
    """The samples of one pack, as this rank knows them."""

    sources: tuple[SampleId, ...]
    images: tuple[tuple[str, ...], ...]
    """For each sample the files of its images or its video; empty where this rank does not read them."""

    @classmethod
    def of(cls, batch: Batch) -> PackSamples:
        """Return the samples of a pack."""
        return cls(batch.sources, batch.images or ((),) * len(batch.sources))

    def as_json(self) -> list[dict[str, Any]]:
        """Return each sample by data set, annotation file, line and images."""
        pairs = zip(self.sources, self.images, strict=True)
        return [
            {"dataset": source.dataset, "file": source.file, "line": source.line, "images": list(images)}
            for source, images in pairs
        ]


def gathered(packs: Sequence[PackSamples], reports: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Return every pack of a step with its share of the loss, the same on every rank; every rank calls this.

    Args:
        packs: this rank's packs, in order; tensor-, context- and pipeline-parallel ranks have the same.
        reports: what each of them gave (`step.run_micro_batches`); empty on a stage before the last.

    Returns:
        Packs in the order of the data-parallel ranks, each with `copy` (of the model), `micro_batch`, `loss_share`
        (None where it is not finite) and `samples`.
    """
    first_of_tensor = parallel_state.get_tensor_model_parallel_rank() == 0
    reads = (
        first_of_tensor
        and parallel_state.get_context_parallel_rank() == 0
        and parallel_state.is_pipeline_first_stage(ignore_virtual=True)
    )
    shares = torch.stack([report.reshape(-1)[0] for report in reports]).tolist() if reports and first_of_tensor else []
    mine = parallel_state.get_data_parallel_rank(), [pack.as_json() for pack in packs] if reads else [], shares
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    samples = {copy: found for copy, found, _ in everyone if found}
    rows = list[dict[str, Any]]()
    for copy in sorted(samples):
        for number, found in enumerate(samples[copy]):
            share = sum(shares[number] for other, _, shares in everyone if other == copy and shares)
            kept = share if math.isfinite(share) else None
            rows.append({"copy": copy, "micro_batch": number, "loss_share": kept, "samples": found})
    return rows


def in_words(packs: Sequence[dict[str, Any]], most: int = 5) -> str:
    """Return the first samples of some packs as a line names them, and how many others there are."""
    found = [sample for pack in packs for sample in pack["samples"]]
    named = [str(SampleId(one["dataset"], one["line"], one["file"])) for one in found[:most]]
    rest = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(named) + rest if named else "none: it has no samples"
