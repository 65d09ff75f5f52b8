"""Fine-tuning on real charts, questions and pictures with the real tokenizer: the loss falls at TP 2 and at PP 2.

At PP 2 the data are built first, and the run is stopped half-way and resumed.
"""

from __future__ import annotations

import shutil

import pytest

from helpers.shared import shared_path
from helpers.tool_runs import command, read_metrics, run
from megatron_v2pe.workshop.synthetic.checkpoint import internvl2_2b_config, write_hf_folder

STEPS = 20
LAYOUTS = {
    "tp2": ["parallel.tensor_model_parallel_size=2", "parallel.sequence_parallel=True"],
    "pp2": ["parallel.pipeline_model_parallel_size=2"],
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """InternVL2-2B's tokenizer, vocabulary and structure, all else small: 112-pixel tiles of 16 tokens."""
    folder = tmp_path_factory.mktemp("real") / "hf"
    config = internvl2_2b_config()
    config["force_image_size"] = config["vision_config"]["image_size"] = 112
    config["vision_config"].update(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128)
    config["llm_config"].update(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    config["llm_config"].update(intermediate_size=128)
    tokenizer = shared_path("golden/tokenizer")
    write_hf_folder(folder, config)
    for file in tokenizer.iterdir():
        shutil.copy(file, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_loss_falls(checkpoint, tmp_path, layout):
    settings = {
        "model.model_name_or_path": checkpoint,
        "data.meta_path": "train/annotation_train_real_small.json",
        "data.max_seq_length": 2048,
        "data.max_packed_tokens": 2048,
        "data.num_images_expected": 64,
        "data.max_dynamic_patch": 12,
        "data.loss_reduction": "square",
        "train.train_steps": STEPS,
        "optimizer.lr": 8e-3,
        "checkpoint.save": tmp_path / "run",
        "checkpoint.save_interval": STEPS // 2,
    }
    arguments = ["--recipe", "debug", *(f"{key}={value}" for key, value in settings.items()), *LAYOUTS[layout]]
    if layout == "pp2":
        tool = command("tools/preprocess_data.py", "--out", str(tmp_path / "set"), "--images", "embed", *arguments)
        built = run(tool, tmp_path / "log", cwd=shared_path("real"))
        assert built.status == 0 and "165 samples of" in built.output, built.output[-3000:]
        arguments += [f"data.indexed_path={tmp_path / 'set'}", f"train.exit_step={STEPS // 2}"]
    for more in ([], [f"train.exit_step={STEPS}"]) if layout == "pp2" else ([],):
        line = command("tools/train.py", *arguments, *more, processes=2)
        finished = run(line, tmp_path / "log", cwd=shared_path("real"))
        assert finished.status == 0, finished.output[-3000:]
    losses = [row["loss"] for row in read_metrics(tmp_path / "run")]
    assert len(losses) == STEPS
    first, last = sum(losses[:7]) / 7, sum(losses[-7:]) / 7
    assert last <= 0.8 * first, (first, last)  # measured 0.56 (TP 2) and 0.52 (PP 2)
    print(f"{layout}: {first:.3f} -> {last:.3f}")
