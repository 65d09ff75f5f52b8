"""Bytes of one rank in a training step: arithmetic on plain numbers, before anything is built.

`estimate` is what recompute is decided by (`train/memory.py`) and what `--dry-run` prints. It counts tensors as the
layers keep them; tests hold it against every tensor of small steps, and parameters against those of built models
(`tests/unit/models/test_memory_estimate.py`). What a GPU keeps for itself (its context, libraries, communicators) is an
allowance, `RESERVE`, not a count.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.config_sections import LanguageConfig, share
from megatron_v2pe.models.flops import Learning, linear_shape
from megatron_v2pe.models.recompute import RecomputePlan
from megatron_v2pe.parallel.attention.context_parallel import exchange_named
from megatron_v2pe.parallel.config import ParallelConfig

GIB = 2**30
RESERVE = GIB * 3 // 2
"""Bytes of a GPU that no tensor has: context, cuBLAS and cuDNN workspaces, NCCL's buffers. An allowance."""
TOWER_TILES = 15
"""Tiles encoded at a time where the tower is computed again a few tiles at a time: 15,375 tokens of InternViT, a chunk
of its MLP, fill a GPU's matrix units."""


@dataclass(frozen=True)
class Load:
    """What a step holds at most, before it is spread over ranks."""

    tokens: int
    """Tokens of a pack."""
    tiles: int
    """Tiles of a pack."""
    supervised: int
    """Tokens of a pack whose successor is learned; the head works on these."""
    micro_batches: int = 1
    """Packs one after the other on a data parallel rank."""


@dataclass(frozen=True)
class Numbers:
    """Widths of what is stored, and sizes of what is done at a time."""

    itemsize: int = 2
    """Bytes of a parameter and of an activation: 2 in bf16, 4 in fp32."""
    head_chunk: int = 4096
    """Supervised tokens projected to the vocabulary at a time."""
    mlp_chunk: int | None = 16384
    """Rows an MLP works on at a time; None: all."""
    norm_copies: int = 1
    """Hidden states an RMSNorm keeps beside its input: its result; on the CPU also what its weight multiplies."""
    optimizer_bytes: int = 12
    """Bytes of the optimizer's state for each parameter that learns: AdamW's master weight and two moments in bf16."""
    factor_bytes: int = 8
    """The same for each number of an adapter's factors, which are in float32 themselves: AdamW's two moments."""
    offloaded: float = 0.0
    """Share of the optimizer's state that is on the host."""

    def chunks(self, rows: int) -> float:
        """Return how many chunks of an MLP so many rows are, 1 at least."""
        return 1.0 if self.mlp_chunk is None else max(1.0, rows / self.mlp_chunk)


@dataclass(frozen=True)
class Footprint:
    """Bytes of one rank."""

    weights: int
    gradients: int
    """The fp32 buffers gradients are summed in."""
    optimizer: int
    """The optimizer's state, this rank's share: of AdamW master weights (bf16 only) and two moments in fp32."""
    kept: int
    """Activations kept from forward to backward, of all packs in flight, when the head begins."""
    working: int
    """What the worst moment needs beyond these, all that is free again by then subtracted."""
    moment: str
    """The worst moment in words."""

    @property
    def total(self) -> int:
        """Bytes of tensors at the worst moment."""
        return self.weights + self.gradients + self.optimizer + self.kept + self.working

    @property
    def activations(self) -> int:
        """Bytes of what a step makes, at the worst moment."""
        return self.kept + self.working


@dataclass(frozen=True)
class Parameters:
    """Parameters of one rank of a stage, by the part that may be frozen."""

    decoder: int
    tower: int
    projector: int
    tower_learning: int
    """Parameters of the tower that learn."""
    tables: int = 0
    """Parameters of the decoder that are rows of the vocabulary's tables."""
    factors: int = 0
    """Numbers of the adapters' factors, which are in float32 and learn."""

    def learning(self, learning: Learning) -> int:
        """Return how many parameters in the type of the weights have gradients."""
        decoder = self.decoder if learning.llm else self.tables * learning.tables
        return decoder + self.projector * learning.projector + self.tower_learning

    @property
    def total(self) -> int:
        """Number of all parameters in the type of the weights."""
        return self.decoder + self.tower + self.projector


def parameters(model: InternVLConfig, layout: ParallelConfig, stage: int, learning: Learning) -> Parameters:
    """Count the parameters of one rank of a pipeline stage."""
    llm, degree = model.llm, layout.tensor_model_parallel_size
    stages = layout.pipeline_model_parallel_size
    width, part = llm.hidden_size, DecoderShare.of(llm, degree)
    rows = part.queries + 2 * part.keys
    layer = width * (rows + part.queries + 3 * part.ffn) + llm.qkv_bias * rows + 2 * width
    layer += 2 * llm.head_dim * llm.qk_layernorm
    decoder = layout.layers_per_stage(llm.num_layers)[stage] * layer
    vocabulary = part.vocabulary * width
    first, last = stage == 0, stage == stages - 1
    tables = first * vocabulary + last * vocabulary * (not (llm.tie_word_embeddings and first))
    factors = _factors(model, layout, stage, learning)
    decoder += tables + last * width
    if not first:
        return Parameters(decoder, 0, 0, 0, tables, factors)
    shards = 1 if layout.vision_parallel == "replicated" else degree
    vision, v = model.vision, model.vision.hidden_size
    heads = share(vision.num_attention_heads, shards) * vision.head_dim
    wide = share(vision.ffn_hidden_size, shards)
    each = 4 * v * heads + 2 * v * wide  # four matrices of attention, two of the MLP
    each += 3 * heads * vision.qkv_bias + wide + 2 * v  # biases
    each += 2 * v * (2 if vision.norm_type == "layer_norm" else 1) + 2 * v  # two norms, two layer scales
    each += 2 * heads * vision.qk_normalization
    embedding = vision.num_channels * vision.patch_size**2 * v + 2 * v
    embedding += (1 + (vision.image_size // vision.patch_size) ** 2) * v
    learn = sum(learning.tower_layers(vision.num_layers))
    shuffled = v * round(1 / model.downsample_ratio) ** 2
    projector = 2 * shuffled + (shuffled + 1 + width) * share(width, shards) + width
    tower = embedding + vision.num_layers * each
    return Parameters(decoder, tower, projector, tower if learning.backbone else learn * each, tables, factors)


def _factors(model: InternVLConfig, layout: ParallelConfig, stage: int, learning: Learning) -> int:
    """Count the numbers of the adapters' factors that a rank of a stage holds."""
    if learning.adapters is None:
        return 0
    per_stage = layout.layers_per_stage(model.llm.num_layers)
    own, total = range(sum(per_stage[:stage]), sum(per_stage[: stage + 1])), 0
    for name, pieces in learning.adapters.pieces.items():
        part = name.split(".")[0]
        if (int(name.split(".")[3]) in own) if part == "language_model" else stage == 0:
            outputs, inputs = linear_shape(model, layout, name)
            rank = learning.adapters.settings[part].rank
            total += sum(rank * (inputs + piece.rows_of(outputs)) for piece in pieces)
    return total


@dataclass(frozen=True)
class DecoderShare:
    """Widths of the decoder on one tensor-parallel rank."""

    heads: int
    queries: int
    keys: int
    ffn: int
    vocabulary: int

    @classmethod
    def of(cls, llm: LanguageConfig, degree: int) -> DecoderShare:
        """Return those of a model at a tensor parallel size."""
        groups = share(llm.num_query_groups, degree)
        heads = groups * (llm.num_attention_heads // llm.num_query_groups)
        vocabulary = llm.vocabulary_rows(degree) // degree
        return cls(heads, heads * llm.head_dim, groups * llm.head_dim, share(llm.ffn_hidden_size, degree), vocabulary)


def stored_parameters(model: InternVLConfig) -> int:
    """Count the parameters that a checkpoint of the model stores: without the rows that pad the vocabulary."""
    llm = model.llm
    padding = (llm.padded_vocab_size - llm.vocab_size) * llm.hidden_size * (1 if llm.tie_word_embeddings else 2)
    return parameters(model, ParallelConfig(), 0, Learning()).total - padding


@dataclass(frozen=True)
class _Layers:
    """Bytes of one transformer layer over all its tokens on a rank."""

    given: int
    """Bytes of the layer's input."""
    whole: int
    """Bytes the layer keeps for backward beside its input, its output among them."""
    attention: int
    """Bytes of attention's result: its output and log-sum-exp."""
    working: int
    """Most bytes its backward pass holds beside what it keeps."""
    again: int
    """Bytes it keeps while it is computed again in backward."""
    again_working: int
    """Bytes its backward pass then holds beside those."""


def estimate(
    model: InternVLConfig,
    layout: ParallelConfig,
    stage: int,
    data_parallel_size: int,
    load: Load,
    plan: RecomputePlan,
    numbers: Numbers | None = None,
    learning: Learning | None = None,
) -> Footprint:
    """Return the memory of a rank of a pipeline stage, the one with the most tokens and tiles.

    Args:
        model: the checkpoint's sizes.
        layout: degrees of parallelism.
        stage: pipeline stage, from 0.
        data_parallel_size: copies of the model that work on different packs.
        load: the pack's budget.
        plan: what the stage recomputes.
        numbers: types and chunks; those of a bf16 run by default.
        learning: what is not frozen; all by default.
    """
    numbers, learning = numbers or Numbers(), learning or Learning()
    counted = parameters(model, layout, stage, learning)
    learn = counted.learning(learning)
    shares = data_parallel_size * layout.context_parallel_size if layout.use_distributed_optimizer else 1
    state = numbers.optimizer_bytes * learn + numbers.factor_bytes * counted.factors
    kept, moments = _activations(model, layout, stage, load, plan, numbers, learning)
    moment = max(moments, key=lambda name: moments[name])
    return Footprint(
        weights=counted.total * numbers.itemsize + 4 * counted.factors,
        gradients=4 * (learn + counted.factors),
        optimizer=ceil(state * (1 - numbers.offloaded) / shares),
        kept=kept,
        working=moments[moment] - kept,
        moment=moment,
    )


def _activations(
    model: InternVLConfig,
    layout: ParallelConfig,
    stage: int,
    load: Load,
    plan: RecomputePlan,
    numbers: Numbers,
    learning: Learning,
) -> tuple[int, dict[str, int]]:
    """Return what is kept when the head begins, and the bytes of activations at each moment that may be the worst."""
    llm, stages = model.llm, layout.pipeline_model_parallel_size
    first, last = stage == 0, stage == stages - 1
    tokens = ceil(load.tokens / layout.context_parallel_size)
    flight = min(stages - stage, load.micro_batches)
    layer = _decoder_layer(model, layout, tokens, numbers, learning)
    layers = layout.layers_per_stage(llm.num_layers)[stage]
    recomputed = min(plan.decoder_layers, layers)
    whole = layers - recomputed
    stream = layer.given  # a hidden state
    angles = 2 * tokens * (llm.head_dim // 2) * 4
    labels = tokens * 8 * 4  # ids, ticks, rows
    tower_kept, tower_working = _tower(model, layout, load, plan, numbers, learning) if first else (0, 0)
    inputs = recomputed * stream + min(plan.attention_kept, recomputed) * layer.attention
    copies = numbers.norm_copies if learning.llm else 1
    ends = stream * (1 + copies * last)  # what the decoder starts from; what its last norm keeps
    one = tower_kept + angles + labels + inputs + whole * layer.whole + ends
    others = (flight - 1) * one
    vocabulary = llm.vocabulary_rows(layout.tensor_model_parallel_size) // layout.tensor_model_parallel_size
    moments = {"before the head": one}
    if last:
        chosen = min(ceil(load.supervised / layout.context_parallel_size), tokens)
        row = llm.hidden_size * numbers.itemsize
        chunk = min(chosen, numbers.head_chunk)
        logits = chunk * vocabulary * (HEAD_LOGITS * numbers.itemsize + HEAD_WIDE * 4)
        weight = HEAD_WEIGHTS * vocabulary * row if learning.llm or learning.tables else 0
        moments["the head"] = one + HEAD_ROWS * chosen * row + logits + weight
    if whole:
        moments["backward of a layer kept whole"] = one + layer.working
    if recomputed:
        free = whole * layer.whole + (copies * stream if last else 0)
        free += layer.attention if plan.attention_kept else 0
        moments["backward of a recomputed layer"] = one - free + layer.again + layer.again_working
    if first:
        table = vocabulary * llm.hidden_size * numbers.itemsize  # gradient of the embedding
        rest = tower_kept + angles + labels + 2 * stream
        moments["backward of the tower"] = rest + max(
            tower_working, (table if learning.llm or learning.tables else 0) + stream
        )
    return others + one, {name: others + count for name, count in moments.items()}


def _adapted(learning: Learning, part: str) -> dict[str, int]:
    """Return which linears of a layer of a part have adapters, with the numbers a token has in their factors."""
    if learning.adapters is None:
        return {}
    rank = learning.adapters.settings[part].rank
    of_part = ((name, pieces) for name, pieces in learning.adapters.pieces.items() if name.startswith(f"{part}."))
    return {name.split(".")[-1]: rank * len(pieces) for name, pieces in of_part}


def _decoder_layer(
    model: InternVLConfig, layout: ParallelConfig, tokens: int, numbers: Numbers, learning: Learning
) -> _Layers:
    llm, degree, size = model.llm, layout.tensor_model_parallel_size, numbers.itemsize
    part, row = DecoderShare.of(llm, degree), tokens * size
    hidden = row * llm.hidden_size // (degree if layout.sequence_parallel else 1)
    queries, keys, wide = row * part.queries, row * part.keys, row * part.ffn
    attention = queries + tokens * 4 * part.heads  # its output and log-sum-exp
    joint = (queries + 2 * keys) * (2 if llm.qk_layernorm else 1)  # with norms, what they are given is kept as well
    copies = numbers.norm_copies if learning.llm else 1  # what a frozen weight multiplies is not kept
    outside = hidden * (2 + 2 * copies) + joint + attention
    adapted = _adapted(learning, "language_model")
    outside += tokens * 4 * sum(adapted.values()) - (0 if learning.llm or "linear_qkv" in adapted else hidden)
    activated = wide if "linear_fc2" in adapted else 0
    chunks = numbers.chunks(tokens)
    # The gradient of the MLP's input; under sequence parallelism of the gathered one, beside what was gathered for it.
    mlp = ceil(wide * SWIGLU_WORKING / chunks) + (3 * row * llm.hidden_size if layout.sequence_parallel else hidden)
    if adapted.keys() & MLP:  # operation by operation, on all rows at once
        mlp, chunks = ADAPTED_SWIGLU_WORKING * wide + 3 * hidden + activated, 1
    again = mlp + ceil(2 * wide / chunks)  # a recomputed layer ends before its MLP, and backward forms the product
    # Attention: its output's gradient, gradients of its inputs, and sums of them in fp32, once for every block held.
    blocks = exchange_named(layout.cp_comm_type).blocks_held(layout.context_parallel_size)
    attended = queries + (queries + 2 * keys) + blocks * (queries + 2 * keys) * 4 // size
    return _Layers(
        given=hidden,
        whole=outside + 2 * wide + activated,
        attention=attention,
        working=hidden + max(mlp - activated, attended - 2 * wide),
        again=outside,
        again_working=hidden + max(again, attended),
    )


def _tower(
    model: InternVLConfig,
    layout: ParallelConfig,
    load: Load,
    plan: RecomputePlan,
    numbers: Numbers,
    learning: Learning,
) -> tuple[int, int]:
    """Return what the tower and the projector keep, and what their backward pass needs beside it."""
    vision, size = model.vision, numbers.itemsize
    replicated = layout.vision_parallel == "replicated"
    tiles = ceil(load.tiles / (layout.context_parallel_size * (layout.tensor_model_parallel_size if replicated else 1)))
    if not tiles:
        return 0, 0
    degree = 1 if replicated else layout.tensor_model_parallel_size
    run = model.select_layer % (vision.num_layers + 1)
    tokens = (model.tile_size // vision.patch_size) ** 2 + 1
    # Of one tile:
    pixels = 3 * model.tile_size**2 * size
    given = tokens * size * vision.hidden_size
    wide = tokens * size * share(vision.ffn_hidden_size, degree)
    heads = share(vision.num_attention_heads, degree)
    outside = given * TOWER_HIDDEN + tokens * 4 * heads
    outside += tokens * size * heads * vision.head_dim * (4 + _norms_of_heads(model, degree, numbers))
    if vision.norm_type == "rms_norm":
        outside += 2 * given * (numbers.norm_copies - 1)
    features = model.tokens_per_tile * model.llm.hidden_size * size
    projector = 2 * given + 2 * features // degree
    adapted = _adapted(learning, "vision_model")
    if not (learning.backbone or learning.unfreeze_vit_layers or adapted):  # nothing of it is kept
        learns = learning.projector or learning.adapted("vision_projection")
        return tiles * (pixels + (features + projector) * learns), 0
    outside += tokens * 4 * sum(adapted.values())
    if "linear_fc2" in adapted:
        outside += wide
    part = min(plan.tower_tiles or tiles, tiles)
    chunks = numbers.chunks(part * tokens)
    working = part * (ceil(GELU_WORKING * wide / chunks) + 2 * given)
    if adapted.keys() & MLP:
        chunks, working = 1.0, part * (ADAPTED_GELU_WORKING * wide + 2 * given)
    if plan.tower_tiles:
        return tiles * (pixels + features), part * (run * (outside + wide) + given + projector) + working
    recomputed = min(plan.tower_layers, run)
    kept = recomputed * given + (run - recomputed) * (outside + wide) + projector + features
    kept_wide = 0 if chunks > CHUNKS_KEPT else wide
    again = part * (outside + kept_wide) if recomputed else 0
    formed = part * ceil(wide / chunks) if recomputed and not kept_wide else 0
    return tiles * (pixels + kept), again + formed + working


def _norms_of_heads(model: InternVLConfig, degree: int, numbers: Numbers) -> int:
    """Return how many widths of all its heads a tower layer keeps because queries and keys are normed.

    Each keeps what the norm is given, in one piece, and its result; on the CPU of one process also what its weight
    multiplies.
    """
    copies = numbers.norm_copies if degree == 1 else 1
    return 2 * (1 + copies) if model.vision.qk_normalization else 0


CHUNKS_KEPT = 4
"""A recomputed tower layer with more chunks than this forms its MLP's first product again by chunks: `mlp.run_mlp`."""
SWIGLU_WORKING = 5
"""Widths of the MLP a chunk's backward pass makes beside what is kept: of the activation three, of the product two."""
GELU_WORKING = 3
"""The same for the tower's MLP."""
MLP = {"linear_fc1", "linear_fc2"}
ADAPTED_SWIGLU_WORKING, ADAPTED_GELU_WORKING = 3, 1
"""The same of an MLP whose linears have adapters, beside the product and the activation, which are both kept."""
TOWER_HIDDEN = 6
"""Hidden states a tower layer keeps: two norms, two updates that layer scales multiply, two residual sums."""
HEAD_ROWS, HEAD_LOGITS, HEAD_WIDE, HEAD_WEIGHTS = 6, 1, 2, 2
"""Copies the head makes: of chosen hidden states, of a chunk's logits in the run's type and in fp32, of the gradient of
its weight."""
