"""The tools on a checkpoint with a damaged weight: they stop with the weight named, and nothing is scored."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from helpers.tool_runs import command, run
from megatron_v2pe.checkpoint.hf.api import hf_to_mcore

NAME = "feed_forward.w1.weight"


@pytest.fixture(scope="module")
def damaged(tiny, tmp_path_factory):
    """A Megatron checkpoint that was converted on request, with one NaN in the first layer's gate."""
    folder = tmp_path_factory.mktemp("damaged")
    shutil.copytree(tiny / "hf", folder / "hf")
    for path in (folder / "hf").glob("*.safetensors"):
        state = load_file(path)
        for name, tensor in state.items():
            if name.endswith(f"layers.0.{NAME}"):
                tensor[0, 0] = float("nan")
        save_file(state, path, metadata={"format": "pt"})
    hf_to_mcore(folder / "hf", folder / "mcore", refuse_non_finite=False)
    return folder


def test_an_evaluation_stops_and_scores_nothing(damaged, tmp_path):
    (tmp_path / "mine.jsonl").write_text(json.dumps({"question": "what do you see", "answer": "red"}) + "\n")
    words = ["--checkpoint", damaged / "mcore", "--benchmarks", tmp_path / "mine.jsonl", "--out", tmp_path / "out"]
    finished = run(command("tools/evaluate.py", *map(str, words)), tmp_path / "log")
    assert finished.status == 2
    assert "logits of its new token 1 are not finite" in finished.output
    assert "language_model.decoder.layers.0.mlp.linear_fc1.weight (1 NaN" in finished.output
    assert not list((tmp_path / "out").rglob("results.json"))
    assert all(not path.read_text() for path in (tmp_path / "out").rglob("answers-*.jsonl"))


def test_a_generation_stops_and_writes_no_answer(damaged, tmp_path):
    (tmp_path / "in.jsonl").write_text(json.dumps({"id": "a", "prompt": "what do you see"}) + "\n")
    words = [
        "--checkpoint",
        damaged / "mcore",
        "--input",
        tmp_path / "in.jsonl",
        "--output",
        tmp_path / "out.jsonl",
        "--max-new-tokens",
        8,
    ]
    finished = run(command("tools/generate.py", *map(str, words)), tmp_path / "log")
    assert finished.status == 2 and "a: the logits of its new token 1 are not finite" in finished.output
    assert not (tmp_path / "out.jsonl").exists()


def test_an_hf_folder_is_refused_before_it_is_asked(damaged, tmp_path):
    words = ["--checkpoint", damaged / "hf", "--prompt", "what do you see", "--converted-dir", tmp_path / "converted"]
    finished = run(command("tools/generate.py", *map(str, words)), tmp_path / "log")
    assert finished.status == 2 and f"layers.0.{NAME}: 1 of " in finished.output
