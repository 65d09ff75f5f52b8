"""All that a fine-tuning may ask for in one run: it goes on to the bit, and what it gives is a model that answers."""

from __future__ import annotations

import pytest

from helpers.tool_runs import command, read_metrics, run, settings
from megatron_v2pe.workshop.synthetic.benchmarks import write_benchmark

PICTURES = "longvqa_32k_gqa"
TP2 = {"parallel__tensor_model_parallel_size": 2, "parallel__sequence_parallel": True}
STEPS = 4


def words(tiny, place, save, **changes):
    """The command line of a run with adapters on the language model, a tower that learns, and the rest."""
    asked = {
        "adapter__kind": "lora",
        "adapter__rank": 4,
        "adapter__dropout": 0.1,
        "adapter__targets": "language_model.attention,language_model.mlp",
        "optimizer__adapter_lr": 1e-3,
        "optimizer__ema_decay": 0.9,
        "optimizer__lr_decay_style": "wsd",
        "validation__share": 0.25,
        "validation__interval": 2,
        "validation__keep_best": 1,
        "evaluation__benchmarks": PICTURES,
        "evaluation__root": place / "benchmarks",
        "evaluation__samples": 2,
        "evaluation__max_num": 2,
        "evaluation__interval": 2,
        "health__interval": 1,
        "health__attention_interval": 2,
        "health__divergence_interval": 2,
        "train__train_steps": STEPS,
        "train__global_batch_size": 2,
        "checkpoint__save_interval": 2,
    }
    return command("tools/train.py", *settings(tiny, save, **(asked | changes)), processes=2)


def told(rows):
    """What a row says, without times and memory, which differ from run to run."""
    loose = ("seconds", "_per_second", "memory", "time", "warm_up", "tflops", "mfu", "resumed", "device", "slowest")
    return [{name: value for name, value in row.items() if not any(word in name for word in loose)} for row in rows]


@pytest.mark.slow
def test_a_run_with_all_of_it_goes_on_to_the_bit_and_its_model_answers(tiny, tmp_path):
    write_benchmark(tmp_path / "benchmarks", PICTURES)
    for save, changes in (("whole", {}), ("parts", {"train__exit_step": 2}), ("parts", {})):
        finished = run(words(tiny, tmp_path, tmp_path / save, **TP2, **changes), tmp_path / "log")
        assert finished.status == 0, finished.output[-4000:]
    whole, parts = (told(read_metrics(tmp_path / name)) for name in ("whole", "parts"))
    assert len(whole) == STEPS and whole == parts
    for name in ("validation/loss", f"evaluation/{PICTURES}", "health/diverged", "health/weight_norm/adapters"):
        assert [name in row for row in whole][1::2] == [True, True], (name, sorted(whole[1]))
    assert (tmp_path / "whole" / "logs" / "run.html").is_file()

    checkpoint, merged = tmp_path / "whole" / f"iter_{STEPS:07d}", tmp_path / "hf"
    export = command("tools/convert_checkpoint.py", "mcore-to-hf", str(checkpoint), str(merged), "--dtype", "fp32")
    finished = run(export, tmp_path / "log")
    assert finished.status == 0, finished.output[-4000:]
    answers = []
    for folder in (checkpoint, merged):
        asked = ("--checkpoint", str(folder), "--prompt", "What is red?", "--max-new-tokens", "8")
        finished = run(command("tools/generate.py", *asked), tmp_path / "log")
        assert finished.status == 0, finished.output[-4000:]
        answers.append(finished.output.splitlines()[-1])
    assert answers[0] == answers[1] != "", "asked with the adapter beside its base, and merged"
