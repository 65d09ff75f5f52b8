"""What does a user's mistake look like where several processes are asked for? One message, the last on the screen.

Kinds: a folder, a file or a package that is not there, settings and layouts that cannot be, arguments that are none; of
every tool that is started so. Our launcher finds them before it starts anything; PyTorch's torchrun shows the message
at its end.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from helpers.tool_runs import ROOT, command, free_port, run, settings
from megatron_v2pe.base import last_words
from megatron_v2pe.device import launch_checks
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.workshop.synthetic.small_data import write_checkpoint_copy, write_dataset


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, golden):
    folder = tmp_path_factory.mktemp("tiny")
    write_checkpoint_copy(golden / "reference_checkpoint", folder / "hf")
    write_dataset(folder / "data")
    return folder


def mistakes(tiny: Path) -> dict[str, tuple[str, list[str], str]]:
    """Return kinds of mistakes: tool, arguments, what the message says and what to do next."""

    def train(*more: str, **changes: object) -> list[str]:
        return [*settings(tiny, tiny / "run", **changes), *more]

    ask, hf = ["--checkpoint", str(tiny / "hf")], str(tiny / "hf")
    evaluate = [*ask, "--out", str(tiny / "out"), "--root", str(tiny), "--benchmarks"]
    return {
        "no checkpoint": ("train", train(model__model_name_or_path="/gone/InternVL2-2B"), "huggingface-cli download"),
        "no data list": ("train", train(data__meta_path="gone.json"), "gone.json: cannot be read"),
        "no indexed set": ("train", train(data__indexed_path="gone"), "tools/preprocess_data.py makes one"),
        "a value": ("train", train(data__max_packed_tokens=0), "expected between 1 and"),
        "a flag": ("train", train("--data.max-paked-tokens", "5"), "did you mean --data.max-packed-tokens"),
        "a layout": ("train", train(parallel__tensor_model_parallel_size=4), "--nproc-per-node 4"),
        "no package": ("train", train(logging__wandb=True), "setup_venv.sh wandb"),
        "no checkpoint to ask": ("generate", ["--checkpoint", "/gone", "--prompt", "a"], "/gone: no such folder"),
        "no image": ("generate", [*ask, "--prompt", "a", "--image", "gone.jpg", *CP], "gone.jpg: no such image"),
        "two copies": ("generate", ["--checkpoint", hf, "--prompt", "a"], "--context-parallel-size 2"),
        "two flags": ("generate", [*ask, "--prompt", "a", "--chat"], "not allowed with argument --prompt"),
        "no benchmark": ("evaluate", [*evaluate, "nonsense"], "nonsense: no such benchmark"),
        "no data": ("evaluate", [*evaluate, "scienceqa"], "download"),
    }


CP = ("--context-parallel-size", "2")
KINDS = tuple(mistakes(Path()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_mistake_is_one_message_before_anything_starts(kind, tiny, tmp_path):
    tool, arguments, said = mistakes(tiny)[kind]
    ended = run(command(f"tools/{tool}.py", *arguments, processes=2), tmp_path / "log")
    assert ended.status == 2, ended.output
    lines = ended.output.splitlines()
    assert sum("error: " in line for line in lines) == 1 and said in ended.output, ended.output
    assert "Traceback" not in ended.output and "rank" not in ended.output and "device:" not in ended.output
    if kind not in ("two flags", "no data"):  # a usage of some lines; a list of files
        assert len(lines) == 1, ended.output


def test_help_is_printed_once(tmp_path):
    for tool in ("train", "generate", "evaluate"):
        ended = run(command(f"tools/{tool}.py", "--help", processes=2), tmp_path / "log")
        assert ended.status == 0 and ended.output.count("usage: ") == 1


def test_looking_starts_nothing(tiny, tmp_path):
    line = command("tools/train.py", *settings(tiny, tmp_path / "run"), processes=2)
    ended = run([*line[:3], "--check", *line[3:]], tmp_path / "log")
    assert ended.status == 0 and ended.output == "" and not (tmp_path / "run").exists()


def test_a_program_of_somebody_else_is_not_looked_at(tmp_path):
    (tmp_path / "train.py").write_text("raise SystemExit(9)\n")
    launch_checks.check_arguments(str(tmp_path / "train.py"), ["--help"], 2)
    launch_checks.check_arguments("no_such_program", [], 2)


def test_pytorchs_torchrun_shows_the_message_last(tiny, tmp_path):
    place = ["--rdzv_backend", "static", "--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", *place]
    line += command("tools/train.py", *settings(tiny, tmp_path / "run", model__model_name_or_path="/gone"))[1:]
    ended = run(line, tmp_path / "log")
    assert ended.status == 1
    assert "error: model.model_name_or_path" in ended.output.rstrip().splitlines()[-2], ended.output[-2000:]


def test_the_command_for_more_processes_is_told(monkeypatch):
    layout = ParallelConfig(tensor_model_parallel_size=2)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(sys, "argv", [str(ROOT / "tools" / "train.py"), "--recipe", "a b"])
    with pytest.raises(ConfigError, match=r"start 2 processes: python -m \S+ --nproc-per-node 2 \S+train.py .*'a b'$"):
        layout.data_parallel_size(1)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match=r"start 4 processes: --nproc-per-node 4, or GPUS=4"):
        layout.data_parallel_size(5)


def test_the_first_words_are_left(monkeypatch, tmp_path):
    monkeypatch.setenv(last_words.ERROR_FILE, str(tmp_path / "error.json"))
    last_words.leave("error: a\n")
    last_words.leave("error: b")
    assert json.loads((tmp_path / "error.json").read_text())["message"]["message"] == "error: a"
    monkeypatch.setenv(last_words.ERROR_FILE, "")
    last_words.leave("error: nobody listens")


def test_a_program_that_is_not_there_is_named_once_with_the_one_that_is():
    with pytest.raises(ConfigError, match=r"tools/trian.py: no such program; did you mean tools/train.py\?"):
        launch_checks.check_arguments("tools/trian.py", [], 2)
