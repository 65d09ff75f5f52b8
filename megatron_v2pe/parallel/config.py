"""How a run is laid out over processes, and whether a model fits that layout.

Pure arithmetic: process groups are made in `parallel/topology.py`, sizes of a model arrive as plain numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from megatron_v2pe.base.config_tree import OneOf, check_values
from megatron_v2pe.device.launch_checks import how_to_start
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.schema import Range
from megatron_v2pe.parallel.attention.attention_backend import ATTENTION_BACKENDS
from megatron_v2pe.parallel.attention.context_parallel import CONTEXT_PARALLEL, exchange_named

_Degree = Annotated[int, Range(1, 1 << 16)]
_Layers = Annotated[int, Range(1, 1000)]


@dataclass(frozen=True)
class ModelSizes:
    """The sizes of a model that a parallel layout has to divide.

    Those of the vision tower, of the projector and of the vocabulary are none of them: they are padded in memory
    (`models/padding.py`).
    """

    num_layers: int
    """Decoder layers of the language model."""
    num_attention_heads: int
    """Query heads of the language model."""
    num_query_groups: int
    """Key-value heads of the language model."""
    ffn_hidden_size: int
    """Width of the language model's MLP."""

    def largest_tensor_parallel(self, limit: int) -> int:
        """Return the largest tensor-parallel size up to a limit that divides all there is of the language model."""
        counts = self.num_attention_heads, self.num_query_groups, self.ffn_hidden_size
        return max(size for size in range(1, limit + 1) if not any(count % size for count in counts))


@dataclass(frozen=True)
class ParallelConfig:
    """Degrees of parallelism, in Megatron-Core's words. What is left of the world is data parallel."""

    tensor_model_parallel_size: _Degree = 1
    """Processes that share each layer's matrices (language model and vision tower)."""
    pipeline_model_parallel_size: _Degree = 1
    """Stages the decoder's layers are cut into; the vision tower is on the first."""
    context_parallel_size: _Degree = 1
    """Processes that share each sequence (`--chunk_num` of the published scripts)."""
    sequence_parallel: bool = False
    """Split norms and residuals of the decoder along the sequence over the tensor parallel group."""
    num_layers_in_first_pipeline_stage: _Layers | None = None
    """Decoder layers of the first stage, fewer to make room for the vision tower; unset: an even split."""
    num_layers_in_last_pipeline_stage: _Layers | None = None
    """Decoder layers of the last stage, fewer to make room for the head; unset: an even split."""
    cp_comm_type: Annotated[str, OneOf(CONTEXT_PARALLEL.names)] = "p2p"
    """How context parallel processes attend: `p2p` a ring of keys and values, `a2a` whole documents, a few heads."""
    attention_backend: Annotated[str, OneOf(ATTENTION_BACKENDS.names)] = "auto"
    """Attention kernels: `auto` the fastest that pass a small test, `cudnn`, `flash` (PyTorch's) or `flash_attn` (the
    packages) where they can, `reference` plain attention, quadratic in memory. The CPU has `flash` and `reference`."""
    vision_parallel: Literal["tensor", "replicated"] = "tensor"
    """`tensor`: the vision tower is sharded like the decoder, tiles are spread over context parallel ranks;
    `replicated`: a whole tower on every process, tiles are spread over tensor parallel ranks too."""
    distributed_timeout_minutes: Annotated[float, Range(1e-3, 525_600)] = 30.0
    """How long a process waits for another before it gives the run up with a message."""
    use_distributed_optimizer: bool = True
    """Shard optimizer state over the data parallel group."""
    overlap_grad_reduce: bool = False
    """Reduce gradients while backward still runs."""
    overlap_param_gather: bool = False
    """Gather updated parameters while the next forward already runs (distributed optimizer only)."""
    ddp_bucket_size: Annotated[int, Range(1, 10**12)] | None = None
    """Parameters per bucket that overlapped communication moves at once; unset: Megatron-Core's choice."""

    @property
    def model_parallel_size(self) -> int:
        """Processes that hold one copy of the model at work: tensor x pipeline x context."""
        return self.tensor_model_parallel_size * self.pipeline_model_parallel_size * self.context_parallel_size

    def data_parallel_size(self, world_size: int) -> int:
        """Return how many packs are worked on at once.

        Raises:
            ConfigError: the world is not a multiple of tensor x pipeline x context.
        """
        if world_size < 1 or world_size % self.model_parallel_size:
            raise ConfigError(
                f"world size {world_size} is not a multiple of tensor_model_parallel_size "
                f"{self.tensor_model_parallel_size} x pipeline_model_parallel_size "
                f"{self.pipeline_model_parallel_size} x context_parallel_size {self.context_parallel_size} "
                f"= {self.model_parallel_size}"
                f"{how_to_start(max(1, world_size // self.model_parallel_size) * self.model_parallel_size)}"
            )
        return world_size // self.model_parallel_size

    def layers_per_stage(self, num_layers: int) -> list[int]:
        """Return the decoder layers each pipeline stage holds, first stage first.

        Raises:
            ConfigError: a stage would be empty, or the stages without a number of their own unequal.
        """
        stages = self.pipeline_model_parallel_size
        first, last = self.num_layers_in_first_pipeline_stage, self.num_layers_in_last_pipeline_stage
        given = [count for count in (first, last) if count is not None]
        rest, free = num_layers - sum(given), stages - len(given)
        fits = rest == 0 if free == 0 else rest > 0 and rest % free == 0
        if free < 0 or min(given, default=1) < 1 or not fits:
            ends = "".join(
                f", {count} in the {end}" for end, count in (("first", first), ("last", last)) if count is not None
            )
            raise ConfigError(
                f"{num_layers} decoder layers do not fit pipeline_model_parallel_size {stages}{ends}: "
                f"{rest} layers are left for {free} equal stages; {_first_stage(num_layers, stages)}"
            )
        middle = [rest // free] * free if free else []
        return ([first] if first is not None else []) + middle + ([last] if last is not None else [])

    def validate(self, world_size: int | None = None, sizes: ModelSizes | None = None) -> None:
        """Check the layout by itself and, where given, against the world and a model.

        Raises:
            ConfigError: naming the two numbers that do not fit.
        """
        self._validate_degrees()
        if world_size is not None:
            self.data_parallel_size(world_size)
        if sizes is not None:
            self.layers_per_stage(sizes.num_layers)
            self._validate_tensor_parallel(sizes)
            exchange_named(self.cp_comm_type).check(
                self.context_parallel_size,
                sizes.num_attention_heads,
                sizes.num_query_groups,
                self.tensor_model_parallel_size,
            )

    def _validate_degrees(self) -> None:
        check_values(self, "parallel")
        if self.sequence_parallel and self.tensor_model_parallel_size == 1:
            raise ConfigError(
                "parallel.sequence_parallel needs tensor_model_parallel_size above 1, it is "
                f"{self.tensor_model_parallel_size}"
            )
        if self.overlap_param_gather and not self.use_distributed_optimizer:
            raise ConfigError("parallel.overlap_param_gather needs parallel.use_distributed_optimizer")
        if self.overlap_param_gather and not self.overlap_grad_reduce:
            raise ConfigError("parallel.overlap_param_gather needs parallel.overlap_grad_reduce")
        for name in ("num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage"):
            if getattr(self, name) is not None and self.pipeline_model_parallel_size == 1:
                raise ConfigError(f"parallel.{name} is {getattr(self, name)} but pipeline_model_parallel_size is 1")

    def _validate_tensor_parallel(self, sizes: ModelSizes) -> None:
        degree = self.tensor_model_parallel_size
        for count, what in (
            (sizes.num_attention_heads, "attention heads of the language model"),
            (sizes.num_query_groups, "query groups (key-value heads) of the language model"),
            (sizes.ffn_hidden_size, "columns of the language model's MLP"),
        ):
            if count % degree:
                most = sizes.largest_tensor_parallel(degree)
                rest = self.context_parallel_size * degree // most
                more = f" with context_parallel_size {rest}" if degree % most == 0 else ""
                raise ConfigError(
                    f"tensor_model_parallel_size {degree} does not divide the {count} {what}; the largest below it "
                    f"that this model can have is {most}: take {most}{more}, for context parallel processes need not "
                    "divide heads"
                )


def _first_stage(layers: int, stages: int) -> str:
    """Return which number of stages, or of layers in the first one, would do; that one has the tower as well."""
    divisors = [count for count in range(1, layers + 1) if layers % count == 0]
    sizes = f"sizes that divide them are {', '.join(map(str, divisors[:8]))}"
    if stages < 2 or layers < stages:
        return sizes
    others = -(-layers // stages)  # as many as may be, for the first stage has the tower
    others -= layers - others * (stages - 1) < 1
    first = layers - others * (stages - 1)
    return f"{sizes}; or set num_layers_in_first_pipeline_stage to {first}, and leave the last stage's unset"
