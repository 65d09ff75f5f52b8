"""One training step beside transformers' InternVL of the same shape, on the CPU or on a GPU: seconds and peak memory.

One document with evenly spread images, of which the last tokens are supervised; made-up weights. Theirs is what its
users write: `InternVLForConditionalGeneration` with a Llama for the text, SDPA, `labels`, gradient clipping and
`torch.optim.AdamW` on the weights as they are (fused on CUDA). Ours is the trainer's step, with master weights and
moments in fp32. Each runs in a process of its own. A first step warms up; on the CPU a second counts tensors; the
others are timed. The CUDA half is not run where no GPU is at hand.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import resource
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from megatron_v2pe.device.device import Device
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.flops import StepCost
from megatron_v2pe.workshop.measuring.tensor_memory import TensorMemory
from megatron_v2pe.workshop.synthetic.checkpoint import internvl2_2b_config
from perf._training import Shape, Step, cores, micro_batch, model_of

DESCRIPTION = "a training step beside transformers' InternVL of the same shape: seconds and peak memory of both"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
FULL_RECOMPUTE = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
GIB = 2**30


@dataclass(frozen=True)
class Published:
    """The sizes of InternVL2-2B."""

    vocab: int = 92553

    def __str__(self) -> str:
        """Return the sizes in words."""
        return f"InternVL2-2B, vocabulary {self.vocab}"

    def hf_config(self) -> dict[str, Any]:
        """Return the `config.json`."""
        config = internvl2_2b_config()
        config["llm_config"] |= {"vocab_size": self.vocab}
        return config


class ShapeOfModel(Protocol):
    """Sizes of a model."""

    @property
    def vocab(self) -> int:
        """Return the rows of the vocabulary."""
        ...

    def hf_config(self) -> dict[str, Any]:
        """Return the `config.json`."""
        ...


@dataclass(frozen=True)
class Task:
    """The step both do."""

    shape: ShapeOfModel
    tokens: int
    tiles: int
    supervised: int
    device: str = "cpu"
    precision: str = "fp32"
    recompute: bool = False
    """Ours: every layer of decoder and tower; theirs: `gradient_checkpointing_enable`."""
    repeats: int = 2

    @property
    def image_token(self) -> int:
        """Id of the tokens that stand for images."""
        return self.shape.vocab - 1

    @property
    def step(self) -> Step:
        """The same in the words of the other benchmarks."""
        options: dict[str, Any] = {"params_dtype": DTYPES[self.precision], "perform_initialization": False}
        options |= {"recompute_vision": self.recompute, **(FULL_RECOMPUTE if self.recompute else {})}
        return Step(self.shape, ((self.tokens, self.tiles),), self.supervised, options=options)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Measured:
    """What one of the two took."""

    seconds: float
    """Seconds of the fastest step."""
    peak_bytes: int
    """Weights, gradients and optimizer state included: tensors on the CPU, allocated on CUDA."""
    resident_bytes: int
    """Largest resident set of the process."""
    loss: float
    """Loss of the first step."""


def run(argv: list[str]) -> dict[str, Any]:
    """Measure both; see `--help` for the arguments."""
    parser = argparse.ArgumentParser(prog="python tools/benchmark.py step_beside_transformers", description=DESCRIPTION)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=8192, help="of the document (default: %(default)s)")
    parser.add_argument("--tiles", type=int, default=16, help="in it, 256 tokens each (default: %(default)s)")
    parser.add_argument("--supervised", type=int, default=100, help="last tokens (default: %(default)s)")
    parser.add_argument("--vocab", type=int, nargs="+", default=[92553, 8192], help="(default: %(default)s)")
    parser.add_argument("--published", action="store_true", help="InternVL2-2B's sizes in place of the next four")
    parser.add_argument("--layers", type=int, default=8, help="of the decoder (default: %(default)s)")
    parser.add_argument("--heads", type=int, default=8, help="of the decoder, 64 wide (default: %(default)s)")
    parser.add_argument("--vision-layers", type=int, default=4, help="of the tower (default: %(default)s)")
    parser.add_argument("--vision-heads", type=int, default=4, help="of the tower, 64 wide (default: %(default)s)")
    parser.add_argument("--precision", choices=tuple(DTYPES), help="default: fp32 on the CPU, bf16 on CUDA")
    parser.add_argument("--recompute", action="store_true", help="all layers of both (gradient checkpointing)")
    parser.add_argument("--repeats", type=int, default=2, help="timed steps; the fastest counts (default: %(default)s)")
    arguments = parser.parse_args(argv)
    try:
        import transformers
    except ImportError:
        raise ConfigError("this benchmark measures transformers as well: pip install transformers") from None
    Device.choose(arguments.device)  # says what is missing
    rows: list[dict[str, Any]] = []
    for vocab in arguments.vocab:
        small = Shape(
            arguments.layers,
            arguments.heads,
            max(arguments.heads // 2, 1),
            vocab,
            arguments.vision_layers,
            arguments.vision_heads,
        )
        task = Task(
            shape=Published(vocab) if arguments.published else small,
            tokens=arguments.tokens,
            tiles=arguments.tiles,
            supervised=arguments.supervised,
            device=arguments.device,
            precision=arguments.precision or ("bf16" if arguments.device == "cuda" else "fp32"),
            recompute=arguments.recompute,
            repeats=arguments.repeats,
        )
        rows.append(beside(task))
    return {
        "transformers": transformers.__version__,
        "device": Device.choose(arguments.device).describe(),
        "steps": rows,
        "s": "of the fastest step after one that warms up",
        "GiB": "at the worst moment, weights, gradients and optimizer state included"
        + (": tensors" if arguments.device == "cpu" else ": allocated"),
        "speed": "theirs over ours: above 1 ours is faster",
        "memory": "ours over theirs: below 1 ours needs less",
    }


def beside(task: Task) -> dict[str, Any]:
    """Measure both in processes of their own; return a row."""
    mine, other = alone(ours, task), alone(theirs, task)
    for name, found in (("ours", mine), ("transformers", other)):
        random_guess = math.log(task.shape.vocab)
        assert abs(found.loss - random_guess) < 2, f"{name}: first loss {found.loss}, a random guess has {random_guess}"
    tflop = StepCost.of(InternVLConfig.from_hf(task.shape.hf_config())).flop(
        task.tokens, task.tokens**2, task.tiles, task.supervised
    )
    return {
        "model": str(task.shape),
        "tokens": task.tokens,
        "tiles": task.tiles,
        "type": task.precision,
        "recompute": task.recompute,
        "TFLOP": round(tflop / 1e12, 4),
        "ours s": round(mine.seconds, 3),
        "theirs s": round(other.seconds, 3),
        "speed": round(other.seconds / mine.seconds, 3),
        "ours GiB": round(mine.peak_bytes / GIB, 2),
        "theirs GiB": round(other.peak_bytes / GIB, 2),
        "memory": round(mine.peak_bytes / other.peak_bytes, 3),
        "ours resident GiB": round(mine.resident_bytes / GIB, 2),
        "theirs resident GiB": round(other.resident_bytes / GIB, 2),
    }


def ours(task: Task) -> Measured:
    """Measure our step in this process of a pool."""
    from megatron.core.process_groups_config import ProcessGroupCollection

    from megatron_v2pe.parallel.config import ParallelConfig
    from megatron_v2pe.train.config import AdamWConfig
    from megatron_v2pe.train.ddp import wrap
    from megatron_v2pe.train.optimizer_step import build_optimizer, take_step
    from megatron_v2pe.train.step import HostFigures, finish_step, run_micro_batches

    device = Device(task.device)
    with _all_cores(task), model_of(task.step) as model:
        groups = ProcessGroupCollection.use_mpu_process_groups()
        wrapped = wrap(model, ParallelConfig(use_distributed_optimizer=False), groups, device.torch_device)
        _draw(model)
        optimizer = build_optimizer(wrapped, AdamWConfig(lr=1e-4), DTYPES[task.precision], False, False, groups)
        wrapped.train()
        host = micro_batch(task.step, model)

        def step() -> float:
            wrapped.zero_grad_buffer()
            optimizer.zero_grad()
            batch = host.mapped(lambda tensor: tensor.to(device.torch_device))
            batch = _typed(batch, DTYPES[task.precision])
            loss = run_micro_batches(wrapped, iter([batch]), 1, float(task.supervised))
            return finish_step(loss, take_step(optimizer), HostFigures(), ()).loss

        return _measured(task, device, step)


def theirs(task: Task) -> Measured:
    """Measure transformers' step in this process of a pool."""
    device = Device(task.device)
    with _all_cores(task):
        model = peer_model(task)
        parameters = list(model.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.05, fused=task.device == "cuda" or None)
        ids, labels, pixels = peer_batch(task)

        def step() -> float:
            loss = model(input_ids=ids, pixel_values=pixels, labels=labels, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            return loss.item()

        return _measured(task, device, step)


def peer_model(task: Task) -> Any:
    """Return transformers' InternVL in the task's shape and type, on its device, to be trained."""
    from transformers import AutoConfig, InternVLForConditionalGeneration, InternVLVisionConfig
    from transformers import InternVLConfig as PeerConfig

    config = task.shape.hf_config()
    llm, vision = config["llm_config"], config["vision_config"]
    names = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
        "rms_norm_eps",
    )
    model_type: str = llm["model_type"]
    kind = {"internlm2": "llama", "internlm3": "llama"}.get(model_type, model_type)
    text = AutoConfig.for_model(
        kind,
        **{name: llm[name] for name in (*names, "head_dim") if name in llm},
        max_position_embeddings=max(task.tokens, llm["max_position_embeddings"]),
        tie_word_embeddings=llm["tie_word_embeddings"],
    )
    tower = InternVLVisionConfig(
        **{name: vision[name] for name in (*names[:4], "image_size", "patch_size", "layer_norm_eps", "norm_type")},
        attention_bias=vision["qkv_bias"],
        use_qk_norm=vision["qk_normalization"],
    )
    whole = PeerConfig(
        vision_config=tower,
        text_config=text,
        image_token_id=task.image_token,
        tie_word_embeddings=llm["tie_word_embeddings"],
    )
    whole._attn_implementation = "sdpa"
    torch.manual_seed(0)
    with torch.device(Device(task.device).torch_device):
        model: Any = InternVLForConditionalGeneration(whole)
    model = model.to(DTYPES[task.precision]).train()
    if task.recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def peer_batch(task: Task) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids and labels [1, tokens] (in place, -100 where nothing is learned), and pixels [tiles, 3, 448, 448].

    The document is that of `perf._training.micro_batch`.
    """
    device, generator = Device(task.device).torch_device, torch.Generator().manual_seed(1)
    ids = torch.randint(3, task.shape.vocab - 10, (task.tokens,), generator=generator)
    room = (task.tokens - task.supervised - 1) // max(task.tiles, 1)
    assert task.tiles == 0 or room >= 256, f"{task.tiles} tiles do not fit {task.tokens} tokens"
    for number in range(task.tiles):
        start = number * room + (room - 256) // 2
        ids[start : start + 256] = task.image_token
    labels = torch.full((task.tokens,), -100)
    labels[-task.supervised :] = ids[-task.supervised :]
    pixels = torch.randn(task.tiles, 3, 448, 448, generator=generator).to(DTYPES[task.precision])
    return ids.unsqueeze(0).to(device), labels.unsqueeze(0).to(device), pixels.to(device)


def _measured(task: Task, device: Device, step: Callable[[], float]) -> Measured:
    """Take a first step that makes the optimizer's state, count a second on the CPU, and time the rest."""
    loss, peak = step(), 0
    if task.device == "cpu":
        gc.collect()
        before, memory = _alive(), TensorMemory()
        with memory:
            step()
        peak = before + memory.peak
    else:
        torch.cuda.reset_peak_memory_stats()
    times: list[float] = []
    for _ in range(task.repeats):
        device.synchronize()
        began = time.perf_counter()
        step()
        device.synchronize()
        times.append(time.perf_counter() - began)
    if task.device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Measured(min(times), peak, resident, loss)


def _alive() -> int:
    """Return the bytes of all tensors there are."""
    found = {}
    for one in gc.get_objects():
        if issubclass(type(one), torch.Tensor) and one.layout == torch.strided and one.device.type == "cpu":
            storage = one.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def alone(measure: Callable[[Task], Measured], task: Task) -> Measured:
    """Measure in a new process, whose memory is its own and is free afterwards."""
    from megatron_v2pe.workshop.worker_pool import WorkerPool

    pool = WorkerPool(1, 7200, task.device)
    try:
        return pool.run(measure, task=task)[0]
    finally:
        pool.close()


def _all_cores(task: Task) -> Any:
    return cores(len(os.sched_getaffinity(0))) if task.device == "cpu" else nullcontext()


def _draw(model: torch.nn.Module) -> None:
    """Fill weights in where they lie: norms and layer scales with ones, the others with noise."""
    generator = torch.Generator(next(model.parameters()).device).manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith((".ls1", ".ls2")) or ("norm" in name and name.endswith("weight")):
            parameter.data.fill_(1.0)
        else:
            parameter.data.normal_(0, 0.02, generator=generator)


def _typed(batch: Any, dtype: torch.dtype) -> Any:
    """Return a micro-batch with pixels of a type."""
    return batch if batch.pixel_values is None else replace(batch, pixel_values=batch.pixel_values.to(dtype))
