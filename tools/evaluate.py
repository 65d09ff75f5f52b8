"""Ask a checkpoint the questions of benchmarks, on any number of processes, and score its answers."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

EXAMPLES = """examples, from the folder that holds `data/` and `dataset/` as the published README lays them out:
  python tools/evaluate.py --checkpoint work_dirs/run --benchmarks chartqa,docvqa --out work_dirs/evaluate/run
  torchrun --nproc_per_node 8 tools/evaluate.py --checkpoint pretrained/InternVL2-2B --benchmarks general --out OUT
  torchrun --nproc_per_node 8 tools/evaluate.py --checkpoint work_dirs/run --benchmarks mmniah_long_1m --out OUT \\
      --context-parallel-size 8 --rope_pos_id_stride 64
  python tools/make_synthetic_benchmarks.py --help     tiny sets in every benchmark's format, to try it

Answers are kept in OUT/BENCHMARK/answers-*.jsonl, one by one; the same command goes on where it was stopped, also on
another number of processes. Processes beyond one copy of the model are further copies that share the questions.
OUT/BENCHMARK/results.json has the scores; --list names all benchmarks and groups."""


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=formatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, metavar="FOLDER", help="HF folder, Megatron checkpoint, or run")
    add("--benchmarks", nargs="+", default=[], metavar="NAME", help="benchmarks or groups of them")
    add("--out", type=Path, metavar="FOLDER", help="where answers and scores are kept")
    add("--root", type=Path, default=Path(), metavar="FOLDER", help="what data paths are relative to (default: here)")
    add("--list", action="store_true", help="name all benchmarks and groups, and stop")
    add("--limit", type=int, metavar="N", help="only the first N questions of each; the result says so")
    add("--batch-size", type=int, default=1, help="questions answered together (default: %(default)s)")
    add("--mode", choices=("corrected", "reference"), default="corrected", help="of prompts and scores")
    add("--max-num", type=int, help="most tiles of an image (default: the checkpoint's)")
    add("--rope-pos-id-version", "--rope_pos_id_version", choices=("default", "v2pe_fix"))
    add("--rope-pos-id-stride", "--rope_pos_id_stride", metavar="STRIDE", help="positions a tile spans: 64, 1/2")
    add("--window", type=int, help="positions prompt and answer may reach (default: max_position_embeddings)")
    add("--tensor-model-parallel-size", type=int, default=1, metavar="N", help="(default: 1)")
    add("--pipeline-model-parallel-size", type=int, default=1, metavar="N", help="(default: 1)")
    add("--context-parallel-size", type=int, default=1, metavar="N", help="(default: 1)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: %(default)s)")
    add("--dtype", choices=("fp32", "bf16"), help="(default: bf16 on CUDA, fp32 on CPU)")
    add("--converted-dir", type=Path, default=Path("work_dirs/converted"), help="(default: %(default)s)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 0, or 1 for what the user can mend."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    from megatron_v2pe.logging import quiet_expected_warnings

    quiet_expected_warnings()
    from megatron_v2pe.errors import V2PEError  # torch takes seconds to import; --help need not
    from megatron_v2pe.evaluate.registry import BENCHMARKS, GROUPS

    if arguments.list:
        print("\n".join([*BENCHMARKS, "", "groups: " + ", ".join(GROUPS)]))
        return 0
    if arguments.checkpoint is None or arguments.out is None or not arguments.benchmarks:
        parser.error("--checkpoint, --benchmarks and --out are needed")
    try:
        _run(arguments)
    except (V2PEError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _run(arguments: argparse.Namespace) -> None:
    import torch

    from megatron_v2pe.device import launch
    from megatron_v2pe.device.device import Device
    from megatron_v2pe.evaluate.provenance import checkpoint_digest, settle
    from megatron_v2pe.evaluate.registry import create, expand
    from megatron_v2pe.evaluate.results import as_line, score
    from megatron_v2pe.evaluate.runner import Runner
    from megatron_v2pe.generate.pretrained import open_pretrained
    from megatron_v2pe.generate.prompt import checkpoint_tiling
    from megatron_v2pe.logging import setup_logging
    from megatron_v2pe.parallel.config import ParallelConfig
    from megatron_v2pe.train.start import on_first_rank, start_folder
    from megatron_v2pe.v2pe.stride import parse_stride

    world = launch.read_environment()
    setup_logging(world.rank)
    layout = ParallelConfig(
        tensor_model_parallel_size=arguments.tensor_model_parallel_size,
        pipeline_model_parallel_size=arguments.pipeline_model_parallel_size,
        context_parallel_size=arguments.context_parallel_size,
    )
    layout.validate(world.world_size)
    benchmarks = [create(name, arguments.mode) for name in expand(arguments.benchmarks)]
    for benchmark in benchmarks:  # missing data are told before the model is loaded
        benchmark.check(arguments.root)
    questions = {
        benchmark.name: list(benchmark.questions(arguments.root))[: arguments.limit] for benchmark in benchmarks
    }
    stride = None if arguments.rope_pos_id_stride is None else parse_stride(arguments.rope_pos_id_stride)
    device = Device.choose(arguments.device, world.local_rank)
    launch.initialize(world, device)
    try:
        folder = start_folder(str(arguments.checkpoint), str(arguments.converted_dir))
        dtype = arguments.dtype or ("bf16" if device.torch_device.type == "cuda" else "fp32")
        with open_pretrained(
            folder,
            stride,
            arguments.device,
            {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype],
            version=arguments.rope_pos_id_version,
            layout=layout,
            world=world,
            window=arguments.window,
        ) as pretrained:
            tiling = checkpoint_tiling(pretrained.config, arguments.max_num)
            settings: dict[str, Any] = {
                "checkpoint": checkpoint_digest(folder) if world.rank == 0 else "",
                "rope_pos_id_version": pretrained.policy.version,
                "rope_pos_id_stride": str(pretrained.policy.stride),
                "max_num": tiling.max_num,
                "mode": arguments.mode,
                "dtype": dtype,
                "window": pretrained.window,
            }
            on_first_rank(lambda: settle(arguments.out, settings))
            runner = Runner(pretrained, tiling, arguments.batch_size)
            for benchmark in benchmarks:
                mine = questions[benchmark.name]
                runner.run(benchmark, mine, arguments.out / benchmark.name)
                if world.rank == 0:
                    result = score(benchmark, mine, arguments.out / benchmark.name, arguments.root, arguments.mode)
                    note = f"  (the first {arguments.limit} only)" if arguments.limit else ""
                    print(as_line(result) + note)
    finally:
        launch.shutdown()


if __name__ == "__main__":
    sys.exit(main())
