"""How often does the host read what a training step computes? Counted on a CPU, where a read costs nothing, or on CUDA.

On CUDA every read of a tensor (`item`, `tolist`, `nonzero`, `if tensor:`) waits for all that was asked of the device
before it, and so does every plain copy to it. Two ways to see them without a GPU, both inside a `WorkerPool`:
`read_by_steps` runs whole steps of the trainer and follows what comes from weights and moved batches; `copied_by_model`
runs forward and backward on PyTorch's `meta` device, whose tensors have no values to read. On CUDA the first of them
lists what PyTorch itself says of waits; not run where no GPU is at hand.
"""

from __future__ import annotations

import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helpers import parity
from megatron_v2pe.data.types import Batch, SampleId
from megatron_v2pe.device.device import Device
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.flops import StepCost
from megatron_v2pe.models.micro_batch import DocumentSets, MicroBatch, PackCutter, PixelSettings
from megatron_v2pe.models.transformer_config import ModelOptions
from megatron_v2pe.train.config import AdamWConfig
from megatron_v2pe.workshop.built_model import built

READING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "bincount"}
"""Operations whose result, or the shape of it, depends on values: the host has to wait for them."""
_SETS = ("one", "two")
_METHODS = ("tolist", "numpy", "cpu", "__array__")
"""Methods of a tensor that read it without an operation on the CPU."""


class HostReads(TorchDispatchMode):
    """Counts reads of what would lie on the device: tensors named to it, and all that is computed from them."""

    def __init__(self) -> None:
        """Nothing lies on the device yet."""
        super().__init__()
        self.found: list[str] = []
        """For each read, the operation and the line of the project or of Megatron-Core that asked for it."""
        self._there: weakref.WeakKeyDictionary[Any, None] = weakref.WeakKeyDictionary()
        self._undo = ExitStack()

    def put(self, tensors: Sequence[Tensor]) -> None:
        """Say that tensors lie on the device."""
        for tensor in tensors:
            self._there[tensor.untyped_storage()] = None

    def holds(self, tensor: Any) -> bool:
        """Tell whether a tensor lies on the device."""
        plain = isinstance(tensor, Tensor) and tensor.layout == torch.strided
        return plain and tensor.untyped_storage() in self._there

    def __enter__(self) -> HostReads:
        """Begin to count, in this thread."""
        for name in _METHODS:
            self._undo.enter_context(mock.patch.object(Tensor, name, self._counted(name, getattr(Tensor, name))))
        for owner in {torch, _torch_of_megatron_core()}:  # of tensors it makes one without asking this mode
            self._undo.enter_context(mock.patch.object(owner, "tensor", self._of_several(owner.tensor)))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        """Count no more."""
        super().__exit__(*error)
        self._undo.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation; what it makes of tensors on the device is there too."""
        given = [leaf for leaf in tree_leaves((args, kwargs)) if self.holds(leaf)]
        name = func.overloadpacket.__name__
        if given and (name in READING or (name == "index" and _by_booleans(args[1]))):
            self._note(name)
        result = func(*args, **(kwargs or {}))
        if given:
            self.put([leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)])
        return result

    def _counted(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def method(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self.holds(tensor):
                self._note(name)
            return original(tensor, *args, **kwargs)

        return method

    def _of_several(self, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def tensor(data: Any, *args: Any, **kwargs: Any) -> Tensor:
            for leaf in tree_leaves(data):
                if self.holds(leaf):
                    self._note("tensor")
            return original(data, *args, **kwargs)

        return tensor

    def _note(self, name: str) -> None:
        frames = [frame for frame in traceback.extract_stack() if "/megatron" in frame.filename]
        frames = [frame for frame in frames if frame.filename != __file__]
        where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "?"
        self.found.append(f"{name} at {where}")


def _torch_of_megatron_core() -> Any:
    from megatron.core import utils

    return utils.torch  # pyright: ignore[reportPrivateImportUsage]


def _by_booleans(indices: Sequence[Tensor | None]) -> bool:
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)


class _Feed:
    """The same packs in every step, as a feed would give them."""

    def __init__(self, batches: list[Batch]) -> None:
        self._batches = batches

    def step(self, count: int) -> Any:
        from megatron_v2pe.train.data_feed import StepBatches, Totals

        assert count == len(self._batches)
        return StepBatches(list(self._batches), Totals.of(self._batches, _SETS))

    def sets_of(self, batch: Batch) -> DocumentSets:
        return DocumentSets(tuple(_SETS.index(source.dataset) for source in batch.sources), len(_SETS))

    def commit(self, consumed: Any) -> None:
        """Nothing is saved."""


@dataclass
class _Silent:
    """In place of metrics and of signals."""

    rows: list[Any]
    asked: tuple[bool, bool] = (False, False)

    def write(self, row: Any, values: Any = None) -> None:
        self.rows.append(row)

    def agree(self, stopping: bool, interrupted: bool) -> bool:
        return stopping or interrupted


def read_by_steps(case: parity.Case, steps: int, planted: str | None = None) -> list[list[str]]:
    """Train a case with the trainer's own loop; return what the host has read in each step.

    On CUDA, a read is any wait that PyTorch's `set_sync_debug_mode` tells of.

    Args:
        case: a layout of one data-parallel rank.
        steps: how many.
        planted: a read to add, by its name in `PLANTED`.
    """
    from megatron.core.process_groups_config import ProcessGroupCollection

    from megatron_v2pe.train.ddp import wrap
    from megatron_v2pe.train.health.attention_logits import AttentionLogits
    from megatron_v2pe.train.health.part_norms import PartsOfGradients
    from megatron_v2pe.train.loop import Trainer
    from megatron_v2pe.train.optimizer_step import build_optimizer, build_scheduler

    options = ModelOptions(params_dtype=case.dtype, **case.options)
    found: list[list[str]] = []
    made = built(case.hf_config, case.layout, options, case.policy, case.image_token_id)
    with made as model, PLANTED[planted]() if planted else nullcontext():
        parity.load_full(model, case.weights)
        groups, settings = ProcessGroupCollection.use_mpu_process_groups(), AdamWConfig(warmup_ratio=0.0)
        device = torch.device(case.device, 0) if case.device == "cuda" else torch.device("cpu")
        wrapped = wrap(model, case.layout, groups, device)
        optimizer = build_optimizer(wrapped, settings, case.dtype, False, False, groups)
        per_tile, first_stage = model.internvl.tokens_per_tile, model.pre_process
        cutter = PackCutter(model.coordinates, case.image_token_id, per_tile, first_stage)
        trainer = Trainer(
            model=wrapped,
            optimizer=optimizer,
            scheduler=build_scheduler(optimizer, settings, steps),
            feed=_Feed([_batch(pack, model.internvl, model.coordinates) for pack in case.packs]),  # type: ignore[arg-type]
            device=Device(case.device),
            cutter=cutter,
            pixels=PixelSettings(device, case.dtype, ((0.5,) * 3, (0.5,) * 3)),
            num_micro_batches=len(case.packs),
            seed=case.drop_path_seed or 0,
            cost=StepCost.of(model.internvl),
            metrics=_Silent([]),  # type: ignore[arg-type]
            save=lambda step: None,
            save_interval=None,
            parts=PartsOfGradients(model, optimizer),
            logits=AttentionLogits(model, model.internvl.llm.num_layers, interval=1),
        )
        original = trainer.step

        def counted(*args: Any) -> Any:
            with (_waits if case.device == "cuda" else _followed)(model) as reads:
                result = original(*args)
            found.append(list(reads))
            return result

        with mock.patch.object(trainer, "step", counted):
            assert trainer.run(0, steps, None, _Silent([])) == steps  # type: ignore[arg-type]
    return found


@contextmanager
def _followed(model: torch.nn.Module) -> Iterator[list[str]]:
    """List reads of what comes from a model's weights, on the CPU."""
    reads = HostReads()
    reads.put(list(model.parameters()))
    reads.put([parameter.main_grad for parameter in model.parameters()])  # type: ignore[attr-defined]
    with reads, _arriving_on(reads):
        yield reads.found


@contextmanager
def _waits(_: torch.nn.Module) -> Iterator[list[str]]:
    """List what PyTorch says of waits for CUDA."""
    found: list[str] = []
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(before)
            found += [
                f"{one.message} at {one.filename}:{one.lineno}" for one in said if "synchroniz" in str(one.message)
            ]


@contextmanager
def _arriving_on(reads: HostReads) -> Iterator[None]:
    """Let a batch that is moved to the device lie there."""
    original = PixelSettings.ready

    def ready(pixels: PixelSettings, batch: MicroBatch) -> MicroBatch:
        copied = batch.mapped(torch.clone)
        copied.mapped(lambda tensor: (reads.put([tensor]), tensor)[1])
        return original(pixels, copied)

    with mock.patch.object(PixelSettings, "ready", ready):
        yield


def _batch(pack: parity.Pack, model: InternVLConfig, coordinates: Any) -> Batch:
    """Return a pack as a feed gives it, with tiles of noise."""
    tiles, side = pack.pixel_values.shape[0], model.tile_size
    mine = coordinates.tiles(tiles)
    noise = torch.randint(0, 255, (tiles, side, side, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Batch(
        input_ids=pack.input_ids,
        labels=pack.labels,
        loss_weights=pack.weights.float(),
        position_ticks=pack.position_ticks,
        seqlens=pack.seqlens,
        tiles=noise[mine.start : mine.stop],
        num_tiles=(tiles,) if tiles else (),
        sources=tuple(SampleId(_SETS[number % 2], number + 1, "") for number in range(len(pack.seqlens))),
        document_tiles=(0,) * len(pack.seqlens),
    )


def copied_by_model(case: parity.Case) -> list[str]:
    """Run forward and backward of every pack of a case on `meta`, one process; any read of a value raises.

    Returns:
        Plain copies from the host to the device, which wait for it: none is expected beside those of `to_device`.
    """
    from megatron_v2pe.device import transfer
    from megatron_v2pe.models import drop_path
    from megatron_v2pe.parallel import packed_sequence

    copies = _Copies()

    def allowed(tensor: Tensor, device: torch.device) -> Tensor:
        with copies.allowed():
            return transfer.to_device(tensor, device)

    options = ModelOptions(params_dtype=case.dtype, **case.options)
    made = built(case.hf_config, case.layout, options, case.policy, case.image_token_id)
    with made as model, ExitStack() as undo:
        micro_batches = [parity.micro_batch(case, index, model, by_set=True) for index in range(len(case.packs))]
        model.to("meta").train()
        for module in (drop_path, packed_sequence):
            undo.enter_context(mock.patch.object(module, "to_device", allowed))
        undo.enter_context(mock.patch.object(dist, "all_reduce", lambda *_, **__: None))  # gloo knows no such device
        undo.enter_context(copies)
        for batch in micro_batches:
            with copies.allowed():
                batch = batch.mapped(lambda tensor: tensor.to("meta"))
            model(batch=batch).total.backward()
    return copies.found


class _Copies(TorchDispatchMode):
    """Notes copies of tensors with axes from the host to `meta`."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._allowed = False

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Note none in here."""
        self._allowed = True
        try:
            yield
        finally:
            self._allowed = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        places = {
            leaf.device.type for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor) and leaf.dim()
        }
        if len(places) > 1 and not self._allowed:
            frames = [frame for frame in traceback.extract_stack() if "megatron_v2pe" in frame.filename]
            self.found.append(f"{func} at {frames[-2].filename}:{frames[-2].lineno}")
        return result


def _read_of_the_loss() -> AbstractContextManager[Any]:
    """Look at the loss of every micro-batch."""
    from megatron_v2pe.train import step

    original = step._loss

    def loss(output: Any, denominator: float) -> Any:
        loss_sum = output[0] if isinstance(output, tuple) else output
        assert loss_sum.item() == loss_sum.item()
        return original(output, denominator)

    return mock.patch.object(step, "_loss", loss)


def _targets_on_the_device() -> AbstractContextManager[Any]:
    """Look for supervised rows after the batch was moved."""
    original = PixelSettings.ready

    def ready(pixels: PixelSettings, batch: MicroBatch) -> MicroBatch:
        assert batch.targets is not None
        rows = (batch.targets.weights > -1).nonzero().squeeze(1)
        return original(pixels, replace(batch, targets=replace(batch.targets, rows=batch.targets.rows[rows])))

    return mock.patch.object(PixelSettings, "ready", ready)


def _norm_of_megatron_core() -> AbstractContextManager[Any]:
    """Let Megatron-Core measure the gradients."""
    from megatron_v2pe.train import loop

    def measure(optimizer: Any, parts: Any) -> Tensor:
        optimizer.prepare_grads()
        return torch.tensor([optimizer.get_grad_norm()] + [0.0] * parts.count, dtype=torch.float64)

    return mock.patch.object(loop, "measure_gradients", measure)


PLANTED: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "loss": _read_of_the_loss,
    "targets": _targets_on_the_device,
    "norm": _norm_of_megatron_core,
}
