"""What does a refusal of the first day end with? The next thing to type: kinds of what is missing, and what gets it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_v2pe.checkpoint.hf.api import hf_to_mcore
from megatron_v2pe.checkpoint.resolve import find_checkpoint
from megatron_v2pe.data.data_list import read_data_list
from megatron_v2pe.errors import V2PEError, how_to_install
from megatron_v2pe.evaluate import benchmark as benchmark_module
from megatron_v2pe.evaluate.benchmark_names import create
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.train.config import LoggingConfig, TrainConfig
from megatron_v2pe.train.writers import check_writers

ROOT = Path(__file__).parents[2]
LIST = "dataset/annotation_train_32k.json"
DOWNLOAD = r"huggingface-cli download OpenGVLab/InternVL2-2B --local-dir pretrained/InternVL2-2B$"
WANDB = r"setup_venv\.sh wandb, or pip install -e '\.\[wandb\]'"
REFUSALS = {
    "a checkpoint to train": (lambda: find_checkpoint("pretrained/InternVL2-2B", "model"), DOWNLOAD),
    "a checkpoint to convert": (lambda: hf_to_mcore(Path("pretrained/InternVL2-2B"), Path("out")), DOWNLOAD),
    "a run to start from": (
        lambda: find_checkpoint("work_dirs/internvl2_2b_v2pe_32k", "model"),
        "train that run first",
    ),
    "the published data list": (
        lambda: read_data_list(LIST),
        r"mkdir -p dataset && cp \S*32k.json dataset$",
    ),
    "another data list": (lambda: read_data_list("my.json"), r"docs/data\.md$"),
    "processes": (lambda: ParallelConfig(context_parallel_size=2).data_parallel_size(1), "--nproc-per-node 2"),
    "a batch": (lambda: TrainConfig(global_batch_size=3).micro_batches(2), "take 4"),
    "wandb": (lambda: check_writers(LoggingConfig(wandb=True)), WANDB),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_what_to_type_next_is_said(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("megatron_v2pe.train.tracking.find_spec", lambda name: None)
    work, said = REFUSALS[kind]
    with pytest.raises(V2PEError) as refused:
        work()
    assert re.search(said, str(refused.value)), refused.value


def test_the_command_for_the_data_list_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(V2PEError) as refused:
        read_data_list(LIST)
    line = str(refused.value).partition("is ready: ")[2]
    subprocess.run(["sh", "-c", line], check=True)
    with pytest.raises(V2PEError, match=r"annotation \S+: no such file"):  # the list is read, the data are not there
        read_data_list(LIST)


def test_packages_for_scoring_are_told_with_an_install_that_works(monkeypatch):
    monkeypatch.setattr(benchmark_module, "find_spec", lambda name: None)
    with pytest.raises(V2PEError, match="pip install -e '.\\[eval\\]'"):
        benchmark_module.check_packages([create("pope")])
    extras = (ROOT / "setup.py").read_text()
    for path in (ROOT / "megatron_v2pe").rglob("*.py"):
        for extra in re.findall(r"how_to_install\(['\"](\w+)['\"]\)", path.read_text()):
            assert f'"{extra}": ' in extras, path
        assert "pip install 'megatron-v2pe[" not in path.read_text(), path
    assert "scripts/setup_venv.sh eval" in how_to_install("eval")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("scripts/train_srun.sh --recipe debug", "GPUS=N sh scripts/train_torchrun.sh --recipe debug"),
        ("examples/internvl2_2b/internvl_chat_v2_internlm2_2b_dynamic_res_v2pe_32k.sh", "LAUNCHER=pytorch"),
        ("scripts/evaluate_auto.sh .", "without PARTITION"),
        ("scripts/evaluate_auto.sh gone/InternVL2-2B", "huggingface-cli download OpenGVLab/InternVL2-2B"),
    ],
)
def test_scripts_without_slurm_say_how_to_start(line, said, tmp_path):
    """On a machine whose shell finds the plain tools and no srun."""
    for name in ("dirname", "sed", "cat", "tr", "env"):
        (tmp_path / name).symlink_to(shutil.which(name) or "/bin/false")
    shell = shutil.which("dash") or shutil.which("sh") or "sh"
    (tmp_path / "sh").symlink_to(shell)
    script, *words = line.split()
    environment = {"PATH": str(tmp_path), "PARTITION": "p", "PYTHON": sys.executable}
    ended = subprocess.run(
        [shell, str(ROOT / script), *words], env=environment, capture_output=True, text=True, cwd=ROOT
    )
    assert ended.returncode == 2 and said in ended.stderr, ended.stderr
    assert len(ended.stderr.splitlines()) == 1
