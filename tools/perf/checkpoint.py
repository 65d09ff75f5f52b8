"""How long a training checkpoint takes to save and to load, with checksums and without, beside Megatron-Core's own."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from megatron_v2pe.errors import ConfigError

DESCRIPTION = "a training checkpoint of one process saved and loaded, with checksums and without, beside Megatron-Core"


def run(argv: list[str]) -> dict[str, Any]:
    """Save and load; see `--help` for the arguments."""
    parser = argparse.ArgumentParser(prog="python tools/benchmark.py checkpoint", description=DESCRIPTION)
    parser.add_argument("--work", type=Path, default=Path("work_dirs"), help="folder with 4 GB free; emptied after")
    parser.add_argument("--hidden", type=int, default=768, help="width of the language model (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=8, help="its layers (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="in turn; the median counts (default: %(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.hidden % 64 or arguments.hidden < 64 or arguments.layers < 1 or arguments.repeats < 1:
        raise ConfigError("--hidden takes a multiple of 64, --layers and --repeats 1 or more")
    arguments.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="checkpoint_", dir=arguments.work) as folder:
        return checkpoint_benchmark(Path(folder), arguments.hidden, arguments.layers, arguments.repeats)


def checkpoint_benchmark(folder: Path, hidden: int, layers: int, repeats: int) -> dict[str, Any]:
    """Measure in `folder`.

    Returns:
        Bytes of a checkpoint; per way the median seconds of a save and of a load, and their ratio to Megatron-Core's.
    """
    from megatron.core import dist_checkpointing

    from megatron_v2pe.checkpoint import optimizer_state, store
    from megatron_v2pe.device import launch
    from megatron_v2pe.device.device import Device
    from megatron_v2pe.models.build import build_model
    from megatron_v2pe.models.config import InternVLConfig
    from megatron_v2pe.models.transformer_config import ModelOptions
    from megatron_v2pe.parallel import topology
    from megatron_v2pe.parallel.config import ParallelConfig
    from megatron_v2pe.train.config import AdamWConfig
    from megatron_v2pe.train.ddp import wrap
    from megatron_v2pe.train.optimizer_step import build_optimizer
    from megatron_v2pe.v2pe.settings import StridePolicy
    from megatron_v2pe.workshop.synthetic.checkpoint import internvl2_2b_config

    config = internvl2_2b_config()
    heads = hidden // 64
    config["llm_config"] |= {"hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": 4 * hidden}
    config["llm_config"] |= {"num_attention_heads": heads, "num_key_value_heads": heads, "vocab_size": 20_096}
    config["vision_config"]["num_hidden_layers"] = 1
    start = folder / "start"
    (start / "hf").mkdir(parents=True)
    (start / "hf" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    device, layout = Device.choose("cpu"), ParallelConfig()
    launch.initialize(launch.World(), device)
    try:
        groups = topology.initialize(layout, 1)
        options = ModelOptions(params_dtype=torch.bfloat16)
        model = build_model(InternVLConfig.from_hf(config), layout, options, StridePolicy("default"), 5, groups)
        wrapped = wrap(model, layout, groups, device.torch_device)
        optimizer = build_optimizer(wrapped, AdamWConfig(), torch.bfloat16, True, False, groups)
        for parameter in wrapped.parameters():
            if hasattr(parameter, "main_grad"):
                parameter.main_grad.normal_()  # type: ignore[operator]
        optimizer.step()

        def described(loading: bool) -> dict[str, Any]:
            metadata = store._metadata()
            tensors = {"model": model.sharded_state_dict(metadata=metadata)}
            describe = optimizer_state.state_to_load if loading else optimizer_state.state_to_save
            return {**tensors, "optimizer": describe(optimizer, tensors["model"], metadata)}

        def save_theirs(target: Path) -> None:
            target.mkdir(parents=True)
            dist_checkpointing.save(described(loading=False), str(target))

        def load_theirs(target: Path) -> None:
            loaded: Any = dist_checkpointing.load(described(loading=True), str(target))  # noqa: TID251  (the peer)
            model.load_state_dict(loaded["model"])
            optimizer_state.load_state(optimizer, loaded["optimizer"])

        state = store.TrainingState(1, {}, {})
        ways: dict[str, tuple[Callable[[Path], Any], Callable[[Path], Any]]] = {
            "Megatron-Core": (save_theirs, load_theirs),
            "checksums": (
                lambda target: store.save(target, model, optimizer, state, start),
                lambda target: store.load_training(target / "iter_0000001", model, optimizer),
            ),
            "unchecked": (
                lambda target: store.save(target, model, optimizer, state, start),
                lambda target: store.load_training(target / "iter_0000001", model, optimizer, verify=False),
            ),
        }
        seconds: dict[tuple[str, str], list[float]] = {(way, what): [] for way in ways for what in ("save", "load")}
        size = 0
        for _ in range(repeats):
            for way, (save, load) in ways.items():
                target = folder / "run"
                shutil.rmtree(target, ignore_errors=True)
                for what, action in (("save", save), ("load", load)):
                    began = time.perf_counter()
                    action(target)
                    seconds[way, what].append(time.perf_counter() - began)
                size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    finally:
        topology.destroy()
        launch.shutdown()
    medians = {key: sorted(values)[len(values) // 2] for key, values in seconds.items()}
    rows = [
        {
            "way": way,
            **{f"{what} s": medians[way, what] for what in ("save", "load")},
            **{f"{what} ratio": medians[way, what] / medians["Megatron-Core", what] for what in ("save", "load")},
        }
        for way in ways
    ]
    return {"bytes": size, "repeats": repeats, "ways": rows}
