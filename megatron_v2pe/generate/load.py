"""What tools that ask a checkpoint share: its flags, what is refused before anything starts, and loading it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_v2pe.checkpoint.low_rank.adapter import Adapter
    from megatron_v2pe.checkpoint.resolve import FoundCheckpoint
    from megatron_v2pe.data.image_plan import TilingOptions
    from megatron_v2pe.device.launch import World
    from megatron_v2pe.generate.pretrained import Pretrained
    from megatron_v2pe.models.config import InternVLConfig
    from megatron_v2pe.parallel.config import ParallelConfig
    from megatron_v2pe.v2pe.settings import Stride


@dataclass(frozen=True)
class LoadRequest:
    """Which checkpoint to load, how and where, all that can be checked without a model checked."""

    arguments: argparse.Namespace
    world: World
    layout: ParallelConfig
    stride: Stride | None
    model: InternVLConfig
    """What the checkpoint was trained with."""
    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    """Adapters that are loaded with it, by name; the first is chosen."""

    def at_stride(self, stride: Stride) -> LoadRequest:
        """Return the same request with another stride.

        Raises:
            ConfigError: the checkpoint was trained without V2PE.
        """
        from megatron_v2pe.generate.policy import inference_policy

        inference_policy(self.model, stride, self.arguments.rope_pos_id_version)
        return replace(self, stride=stride)


@dataclass(frozen=True)
class LoadedModel:
    """A model that can be asked; `load_model` returns one."""

    pretrained: Pretrained
    folder: Path
    """The Megatron checkpoint."""
    tiling: TilingOptions
    dtype: str
    """`fp32` or `bf16`."""
    world: World
    """This process's place."""
    device: str
    """Where it runs, see `Device.describe`."""


def add_checkpoint_arguments(
    parser: argparse.ArgumentParser, window: str = "max_position_embeddings", max_num: str = "the checkpoint's"
) -> None:
    """Add the flags that say which checkpoint is asked, how and where; imports nothing slow.

    Args:
        parser: to add to.
        window: what holds without `--window`, for its help.
        max_num: what holds without `--max-num`.
    """
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="[NAME=]FOLDER",
        help="a LoRA adapter of the checkpoint: PEFT's folder, or a run that trained one; may be repeated, the first "
        "one answers unless another is named (default name: the folder's)",
    )
    parser.add_argument(
        "--adapter-weights",
        choices=("model", "ema"),
        default="model",
        help="of runs that trained an adapter: ema takes the moving average of what has learned "
        "(optimizer.ema_decay; default: %(default)s)",
    )
    place = parser.add_argument_group("positions and images")
    add = place.add_argument
    add(
        "--rope-pos-id-version",
        "--rope_pos_id_version",
        choices=("default", "v2pe_fix"),
        help="(default: as the checkpoint was trained)",
    )
    add(
        "--rope-pos-id-stride",
        "--rope_pos_id_stride",
        metavar="STRIDE",
        help="positions a tile spans: 64, 1/2 (default: the checkpoint's; one trained with v2pe_rnd has none, and is "
        "asked with a quarter of a tile's tokens, 64 of 256)",
    )
    add("--window", type=int, help=f"positions prompt and answer may reach (default: {window})")
    add("--max-num", type=int, help=f"most tiles of an image (default: {max_num})")
    add(
        "--transparency",
        choices=("drop", "white", "black"),
        default="drop",
        help="ground of transparent pictures, as in the data list the model was trained on; drop: the colours below "
        "show, as published (default: %(default)s)",
    )
    add("--exif-rotation", action="store_true", help="turn pictures as their camera noted (default: as published, not)")
    layout = parser.add_argument_group("where it runs")
    add = layout.add_argument
    add("--tensor-model-parallel-size", type=int, default=1, metavar="N", help="(default: 1)")
    add("--pipeline-model-parallel-size", type=int, default=1, metavar="N", help="(default: 1)")
    add("--context-parallel-size", type=int, default=1, metavar="N", help="(default: 1)")
    add("--vision-parallel", choices=("tensor", "replicated"), default="tensor", help="(default: %(default)s)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: %(default)s)")
    add("--dtype", choices=("fp32", "bf16"), help="(default: bf16 on CUDA, fp32 on CPU)")
    add("--prefill-tokens", type=int, default=16384, help="prompt tokens run at once (default: %(default)s)")
    add("--vision-cache-mb", type=int, default=1024, help="memory for image features kept (default: %(default)s)")
    add(
        "--distributed-timeout-minutes",
        type=float,
        default=1440,
        metavar="MINUTES",
        help="how long processes wait for one another: a copy of the model that has finished for the others, all for "
        "the one who types (default: %(default)s)",
    )
    add(
        "--no-verify",
        dest="verify",
        action="store_false",
        help="do not compare the checkpoint with its checksums, for one that was edited on purpose",
    )
    add(
        "--converted-dir",
        type=Path,
        metavar="FOLDER",
        help="where an HF checkpoint is kept converted, for all tools (default: $MEGATRON_V2PE_CONVERTED_DIR, or "
        "work_dirs/converted)",
    )


def load_request(arguments: argparse.Namespace, world: World | None = None) -> LoadRequest:
    """Read the launcher's variables and check what can be checked without a model.

    Args:
        arguments: with `--checkpoint` and those of `add_checkpoint_arguments`.
        world: of a run that is still to be started; by default the launcher's variables say it.

    Raises:
        ConfigError: settings that do not go together, a folder that is no checkpoint or lacks its tokenizer, a stride
            for a checkpoint that was trained without, adapters of one name.
        CheckpointError: an adapter that is damaged or of another base; a run whose state is lost or damaged: it is not
            known how it was trained.
        DataError: a tokenizer that cannot be read.
    """
    from megatron_v2pe.base.logging import setup_logging
    from megatron_v2pe.device import launch
    from megatron_v2pe.parallel.config import ParallelConfig
    from megatron_v2pe.v2pe.settings import parse_stride

    world = world or launch.read_environment()
    setup_logging(world.rank)
    layout = ParallelConfig(
        tensor_model_parallel_size=arguments.tensor_model_parallel_size,
        pipeline_model_parallel_size=arguments.pipeline_model_parallel_size,
        context_parallel_size=arguments.context_parallel_size,
        vision_parallel=arguments.vision_parallel,
        distributed_timeout_minutes=arguments.distributed_timeout_minutes,
    )
    layout.validate(world.world_size)
    stride = None if arguments.rope_pos_id_stride is None else parse_stride(arguments.rope_pos_id_stride)
    model, adapters = _check(arguments, stride)
    if layout.model_parallel_size > 1:  # several processes: what is imported here they need anyway
        from megatron_v2pe.models.build import model_sizes

        layout.validate(world.world_size, model_sizes(model))
    return LoadRequest(arguments, world, layout, stride, model, adapters)


@contextmanager
def load_model(request: LoadRequest, before: Callable[[], None] | None = None) -> Iterator[LoadedModel]:
    """Join the process group, convert the checkpoint where needed, load it; leave the group at the end.

    Args:
        request: what `load_request` gave.
        before: run once the processes know one another and before anything takes long, such as taking a lock.

    Raises:
        ConfigError: settings that do not fit the checkpoint.
        CheckpointError: it is incomplete, unsafe, or of another model.
    """
    import torch

    from megatron_v2pe.checkpoint.conversions import start_folder
    from megatron_v2pe.data.image_operations import Opening as PictureOpening
    from megatron_v2pe.device import launch
    from megatron_v2pe.device.device import Device
    from megatron_v2pe.generate.policy import describe_positions
    from megatron_v2pe.generate.pretrained import open_pretrained
    from megatron_v2pe.generate.prompt import checkpoint_tiling

    arguments = request.arguments
    device = Device.choose(arguments.device, request.world.local_rank)
    count = request.world.world_size
    _say(f"device: {device.describe()}" + (f"; {count} processes, {device.kind} each" if count > 1 else ""))
    with launch.joined(request.world, device, request.layout.distributed_timeout_minutes):
        if before is not None:
            before()
        folder = start_folder(str(arguments.checkpoint), arguments.converted_dir, arguments.verify)
        dtype = arguments.dtype or ("bf16" if device.torch_device.type == "cuda" else "fp32")
        with open_pretrained(
            folder,
            request.stride,
            arguments.device,
            {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype],
            version=arguments.rope_pos_id_version,
            layout=request.layout,
            world=request.world,
            window=arguments.window,
            prefill_tokens=arguments.prefill_tokens,
            vision_cache_bytes=arguments.vision_cache_mb << 20,
            verify=arguments.verify,
            adapters=request.adapters,
            model=request.model,
            converted_dir=arguments.converted_dir,
        ) as pretrained:
            pictures = PictureOpening(arguments.transparency, arguments.exif_rotation)
            tiling = checkpoint_tiling(pretrained.config, arguments.max_num)
            tiling = replace(tiling, operations=(*pictures.operations, *tiling.operations))
            _say(describe_positions(pretrained.config, pretrained.policy, request.stride))
            yield LoadedModel(pretrained, folder, tiling, dtype, request.world, device.describe())


def _adapters(asked: Sequence[str], place: FoundCheckpoint, verify: bool, averaged: bool) -> dict[str, Adapter]:
    """Read the adapters that a user names, each with what it is called; of a run that trained one, that one."""
    from megatron_v2pe.checkpoint.low_rank.open_adapter import is_adapter, open_adapter
    from megatron_v2pe.checkpoint.low_rank.run_adapter import read_run
    from megatron_v2pe.checkpoint.trained import trained_model
    from megatron_v2pe.errors import ConfigError
    from megatron_v2pe.generate.named_adapters import check_names

    own = is_adapter(place.folder)
    if own and asked:
        raise ConfigError(
            f"--checkpoint {place.folder}: holds an adapter itself; name its base as --checkpoint, and it as one more "
            "--adapter"
        )
    if own:
        folder = place.folder.parent if place.folder.name.startswith("iter_") else place.folder
        return {folder.resolve().name: read_run(place.folder, verify, averaged)}
    if not asked:
        if averaged:
            raise ConfigError(
                f"--adapter-weights ema: {place.folder} holds no adapter, and none is named (--adapter RUN)"
            )
        return {}
    folders = [named_folder(text) for text in asked]
    check_names([name for name, _ in folders])
    model = trained_model(place.folder)
    return {name: open_adapter(folder, model, "--adapter", verify, averaged) for name, folder in folders}


def named_folder(text: str) -> tuple[str, Path]:
    """Return name and folder of an adapter as `--adapter` has them: `NAME=FOLDER`, or the folder, whose name counts."""
    name, mark, folder = text.partition("=")
    if mark and name and folder and "/" not in name and not Path(text).exists():
        return name, Path(folder)
    return Path(text).resolve().name, Path(text)


def _say(line: str) -> None:
    """Print a line on the first rank's standard error."""
    from megatron_v2pe.base.logging import get_logger

    get_logger(__name__).info(line)


def _check(arguments: argparse.Namespace, stride: Stride | None) -> tuple[InternVLConfig, dict[str, Adapter]]:
    """Refuse what cannot be asked before it is converted or loaded.

    Returns:
        What the checkpoint, or what is added to it, was trained with; and the adapters that are added.
    """
    from megatron_v2pe.checkpoint.low_rank.merge import merged_config
    from megatron_v2pe.checkpoint.resolve import find_checkpoint
    from megatron_v2pe.checkpoint.trained import trained_config
    from megatron_v2pe.checkpoint.vet import verify_side_files
    from megatron_v2pe.foreign.printable import printable
    from megatron_v2pe.generate.asked_with import asked_with
    from megatron_v2pe.generate.end_tokens import end_tokens
    from megatron_v2pe.generate.policy import inference_policy
    from megatron_v2pe.models.config import InternVLConfig

    place = find_checkpoint(arguments.checkpoint, "--checkpoint")
    if arguments.verify and not place.is_hf:
        verify_side_files(place.folder)
    averaged = arguments.adapter_weights == "ema"
    adapters = _adapters(arguments.adapter, place, arguments.verify, averaged)
    config = merged_config(trained_config(place.folder), list(adapters.values()))
    model = InternVLConfig.from_hf(
        config, printable(place.hf / "config.json")
    )  # before the tokenizer: another architecture has another one
    model, tokenizer = asked_with(place, list(adapters.values()), model)
    end_tokens(place.hf, tokenizer, model.template, model.llm.vocab_size)
    inference_policy(model, stride, arguments.rope_pos_id_version)
    return model, adapters
