"""A checkpoint ready to answer: model, tokenizer and positions, opened in any parallel layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from megatron_v2pe.checkpoint import store
from megatron_v2pe.checkpoint.conversions import weights_folder
from megatron_v2pe.checkpoint.growth import Growth
from megatron_v2pe.checkpoint.hf.open_source import check_is_base, open_megatron
from megatron_v2pe.checkpoint.low_rank.adapter import Adapter
from megatron_v2pe.checkpoint.low_rank.brought_tokens import growth_of
from megatron_v2pe.checkpoint.low_rank.open_adapter import is_adapter
from megatron_v2pe.checkpoint.low_rank.run_adapter import read_run
from megatron_v2pe.checkpoint.resolve import find_checkpoint
from megatron_v2pe.checkpoint.trained import trained_model
from megatron_v2pe.checkpoint.vet import verify_side_files
from megatron_v2pe.data.image_plan import TilingOptions
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.device import launch
from megatron_v2pe.device.device import Device
from megatron_v2pe.device.rank_errors import raise_on_all_ranks, share_from_first_rank
from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.generate.asked_with import asked_with
from megatron_v2pe.generate.end_tokens import end_tokens
from megatron_v2pe.generate.engine import PREFILL_TOKENS, Engine
from megatron_v2pe.generate.generation import Generated, GenerationOptions, OnText, check_prompt, generate
from megatron_v2pe.generate.named_adapters import NamedAdapters, check_asked
from megatron_v2pe.generate.policy import inference_policy
from megatron_v2pe.generate.prompt import Prompt, encode_prompt
from megatron_v2pe.generate.vision_cache import DEFAULT_BYTES, VisionCache
from megatron_v2pe.models.build import build_model, build_rotary, model_sizes
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.transformer_config import ModelOptions
from megatron_v2pe.models.vlm import InternVLModel
from megatron_v2pe.parallel import topology
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.v2pe.settings import Stride, StridePolicy

Turns = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class ChatQuestion:
    """A conversation that ends with a question."""

    turns: Turns
    """(role, text), roles `human` and `gpt` in turn; see `encode_prompt`."""
    images: Sequence[str] = ()
    """Paths, in the order of the placeholders."""
    name: str = "prompt"
    """Name in messages, by which the answer's random draws are keyed too."""
    adapter: str | None = None
    """Name of the adapter that is to answer, `none` for the base alone; None: the one that is chosen."""


@dataclass(frozen=True)
class Pretrained:
    """A model on this process (or this process's part of it) and what belongs to it."""

    engine: Engine
    config: InternVLConfig
    tokenizer: Tokenizer
    policy: StridePolicy
    device: Device
    dtype: torch.dtype
    window: int
    """Positions a prompt and its answer may reach."""
    ends: frozenset[int]
    """Tokens that end an answer, see `generate.end_tokens`."""
    adapters: NamedAdapters | None = None
    """Adapters that were loaded with the model; None: there are none."""

    def choose(self, adapter: str | None) -> None:
        """Have an adapter answer from now on; every rank calls this.

        Args:
            adapter: its name; `none`, or None: the base alone.

        Raises:
            ConfigError: none of this name was loaded.
        """
        if self.adapters is None:
            check_asked(adapter, (), "adapter")
            return
        if self.adapters.choose(adapter):
            if self.adapters.of_tower:
                self.engine.vision_cache.clear()
            self.engine.read_again()

    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer: the end of a turn, of the text, and those the checkpoint's own settings name."""
        return self.ends

    def at_stride(self, stride: Stride) -> Pretrained:
        """Return the same model for questions at another stride; the cache of image features is kept.

        The model is shared, and its rotary module replaced: this object must not be asked any more.

        Raises:
            ConfigError: the checkpoint was trained without V2PE.
        """
        policy = inference_policy(self.config, stride)
        self.engine.model.rotary = build_rotary(self.config, policy)
        return replace(self, policy=policy)

    def encode(self, questions: Sequence[ChatQuestion], tiling: TilingOptions, max_new_tokens: int) -> list[Prompt]:
        """Encode questions on every rank of this copy of the model, at the cost of their images' headers.

        Args:
            questions: at least one.
            tiling: how images become tiles.
            max_new_tokens: most tokens of an answer.

        Raises:
            DataError: an image is missing or none, a question is empty, or does not fit the window with its answer.
        """

        def encoded() -> list[Prompt]:
            return [self._encoded(one, tiling, max_new_tokens) for one in questions]

        return raise_on_all_ranks(encoded, topology.model_copy_group())

    def _encoded(self, question: ChatQuestion, tiling: TilingOptions, max_new_tokens: int) -> Prompt:
        if not question.turns or not question.turns[-1][1].strip():
            raise DataError(f"{question.name}: the prompt is empty")
        try:
            prompt = encode_prompt(question.turns, question.images, self.config, self.tokenizer, self.policy, tiling)
        except DataError as error:
            raise DataError(f"{question.name}: {error}") from error
        check_prompt(prompt, self.window, max_new_tokens, question.name)
        return prompt

    def ask(
        self,
        questions: Sequence[ChatQuestion],
        tiling: TilingOptions,
        options: GenerationOptions,
        on_text: OnText | None = None,
    ) -> list[Generated]:
        """Answer a batch of questions; the stop tokens of the checkpoint's template are added to the options'.

        Args:
            questions: at least one, all for the same adapter.
            tiling: how images become tiles.
            options: how answers are made.
            on_text: is given pieces of text as they come.

        Raises:
            DataError: see `encode`; or an image turns out to be damaged.
            MemoryShortageError: the questions do not fit together.
        """
        prompts = self.encode(questions, tiling, options.max_new_tokens)
        if (adapter := questions[0].adapter) is not None:
            assert all(one.adapter == adapter for one in questions), "one adapter answers a batch"
            self.choose(adapter)
        options = options.with_stop_ids(self.stop_ids())
        names = [one.name for one in questions]
        return generate(self.engine, prompts, options, self.tokenizer.decode, names, on_text)

    def answer(self, turns: Turns, images: Sequence[str], tiling: TilingOptions, max_new_tokens: int) -> str:
        """Return the greedy answer to a conversation that ends with a question; see `encode_prompt`."""
        options = GenerationOptions(max_new_tokens)
        return self.ask([ChatQuestion(turns, images)], tiling, options)[0].text.strip()


def asked_in_training(
    model: InternVLModel,
    config: InternVLConfig,
    tokenizer: Tokenizer,
    ends: frozenset[int],
    device: Device,
    dtype: torch.dtype,
    prefill_tokens: int = PREFILL_TOKENS,
    vision_cache_bytes: int = DEFAULT_BYTES,
) -> Pretrained:
    """Return a model that is being trained as one that can be asked, at the stride it would be asked with from a file.

    Args:
        model: this rank's stage as `models.same_weights` gives it; its configuration and positions are replaced.
        config: what its checkpoints state, see `checkpoint.trained`.
        tokenizer: of the run.
        ends: tokens that end an answer.
        device: of this rank.
        dtype: of its parameters.
        prefill_tokens: see `Engine`.
        vision_cache_bytes: memory for image features kept from one question to the next.

    Raises:
        ConfigError: a layer that generation does not know.
    """
    policy = inference_policy(config)
    model.internvl, model.rotary = config, build_rotary(config, policy)
    with torch.no_grad():
        engine = Engine(model, VisionCache(vision_cache_bytes), prefill_tokens)
    return Pretrained(engine, config, tokenizer, policy, device, dtype, config.llm.max_position_embeddings, ends)


@contextmanager
def open_pretrained(
    folder: str | Path,
    stride: Stride | None = None,
    device: str = "auto",
    dtype: torch.dtype = torch.float32,
    *,
    version: str | None = None,
    layout: ParallelConfig | None = None,
    world: launch.World | None = None,
    window: int | None = None,
    prefill_tokens: int = PREFILL_TOKENS,
    vision_cache_bytes: int = DEFAULT_BYTES,
    verify: bool = True,
    adapters: Mapping[str, Adapter] | None = None,
    model: InternVLConfig | None = None,
    converted_dir: Path | None = None,
) -> Iterator[Pretrained]:
    """Load a Megatron checkpoint folder, and leave the process group at the end.

    An HF folder is converted first, by `checkpoint.hf.api.hf_to_mcore` or `tools/convert_checkpoint.py`.

    Args:
        folder: a Megatron checkpoint, converted or trained in any layout, or a run's folder (its newest is taken).
            A trained one is asked as it was trained, see `checkpoint.trained`; one that holds an adapter with its base.
        stride: see `inference_policy`.
        device: `cpu`, `cuda`, or `auto`.
        dtype: of parameters and activations.
        version: see `inference_policy`.
        layout: parallel sizes; one process alone by default.
        world: this process's place; alone by default.
        window: positions a prompt and its answer may reach; the checkpoint's `max_position_embeddings` by default.
        prefill_tokens: see `Engine`.
        vision_cache_bytes: memory for image features kept from one question to the next.
        verify: compare what is read with the folder's checksums.
        adapters: of this model, by name; the first of them is chosen.
        model: what it is asked as; by default as the folder was trained.
        converted_dir: where the base of an adapter is converted if it is an HF folder, see `conversions.conversions`.

    Raises:
        ConfigError: the configuration, the layout or the tokenizer does not fit.
        CheckpointError: the folder is incomplete, unsafe, or of another model.
    """
    place = find_checkpoint(folder, "checkpoint")
    if place.is_hf:
        raise ConfigError(f"checkpoint {printable(place.folder)}: an HF checkpoint; it is to be converted first")
    path, hf = place.folder, place.hf
    if verify:
        verify_side_files(path)
    config, tokenizer = asked_with(place, list((adapters or {}).values()), model or trained_model(path))
    ends = end_tokens(hf, tokenizer, config.template, config.llm.vocab_size)
    policy = inference_policy(config, stride, version)
    world, layout = world or launch.World(), layout or ParallelConfig()
    layout.validate(world.world_size, model_sizes(config))
    if layout.sequence_parallel:
        raise ConfigError("generation has no use for sequence_parallel: one token cannot be split")
    chosen = Device.choose(device, world.local_rank)
    launch.initialize(world, chosen, layout.distributed_timeout_minutes)
    try:
        groups = topology.initialize(layout, seed=0)
        options = ModelOptions(params_dtype=dtype, perform_initialization=False)
        stage = build_model(config, layout, options, policy, tokenizer.img_context_id, groups)
        stage.to(chosen.torch_device)  # before its values are read: they go there from the files, nothing is held twice
        named = load_stage(path, stage, adapters or {}, converted_dir, verify)
        engine = Engine(stage.eval(), VisionCache(vision_cache_bytes), prefill_tokens)
        reach = config.llm.max_position_embeddings if window is None else window
        pretrained = Pretrained(engine, config, tokenizer, policy, chosen, dtype, reach, ends, named)
        yield pretrained
    finally:
        topology.destroy()
        launch.shutdown()


def load_stage(
    path: Path,
    stage: InternVLModel,
    adapters: Mapping[str, Adapter] | None = None,
    converted_dir: Path | None = None,
    verify: bool = True,
) -> NamedAdapters | None:
    """Load the weights of a checkpoint into a stage, and adapters onto them; every rank calls this.

    Args:
        path: a Megatron checkpoint; of one that holds an adapter the base's weights are loaded, and the adapter.
        stage: of this rank, as it was built.
        adapters: of this model, by name; the first is chosen.
        converted_dir: where the base of an adapter is converted if it is an HF folder, see `conversions.conversions`.
        verify: compare what is read with checksums.

    Returns:
        The adapters; None: there are none.

    Raises:
        CheckpointError: the folder is incomplete, unsafe or of another model; the base of an adapter is gone, is
            another model, or was changed since.
    """
    if not adapters and is_adapter(path):
        adapters = {path.parent.name: read_run(path, verify)}
    weights, growth = share_from_first_rank(lambda: _base(path, adapters or {}, converted_dir, verify))
    store.load_model(weights, stage, verify, growth)
    if not adapters:
        return None
    named = NamedAdapters(stage, adapters)
    named.choose(next(iter(adapters)))
    return named


def _base(
    path: Path, adapters: Mapping[str, Adapter], converted_dir: Path | None, verify: bool
) -> tuple[Path, Growth | None]:
    """Return the checkpoint that holds the weights, after it was held against the adapters, and the tokens they bring.

    Raises:
        ConfigError: adapters bring different tokens.
        CheckpointError: the base of an adapter is gone, is another model, or was changed since.
    """
    weights = weights_folder(path, converted_dir)
    if not adapters:
        return weights, None
    base = open_megatron(weights, verify)
    for adapter in adapters.values():
        check_is_base(adapter, base)
    return weights, growth_of([adapter.rows for adapter in adapters.values()], base.hf, base.model)
