"""Evaluating a tiny checkpoint on made-up benchmarks: killed, resumed on other world sizes, scored; and bad input."""

from __future__ import annotations

import importlib.util
import json
import shutil

import pytest

from helpers.tool_runs import ROOT, command, run
from megatron_v2pe.base.run_lock import lock_folder
from megatron_v2pe.evaluate.benchmark_registry import BENCHMARKS
from megatron_v2pe.workshop.synthetic.benchmarks import write_benchmark
from megatron_v2pe.workshop.synthetic.small_data import write_checkpoint_copy

NAME = "chartqa_human"
FILE = "data/chartqa/test_human.jsonl"
DIES = """
import os, runpy, sys
import torch.distributed as dist
from megatron_v2pe.evaluate.runner import Runner
from megatron_v2pe.parallel import topology

ask = Runner._ask

def dies(self, benchmark, batch):
    if any(one.question.id == {id!r} for one in batch):
        dist.barrier(topology.model_copy_group())  # rank 0 has written its note, and would be ended before otherwise
        if os.environ["RANK"] == "1":
            os._exit(9)
    return ask(self, benchmark, batch)

Runner._ask = dies
sys.argv[0] = {tool!r}
runpy.run_path({tool!r}, run_name="__main__")
"""


@pytest.fixture
def root(tmp_path):
    write_benchmark(tmp_path / "root", NAME)
    return tmp_path / "root"


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluate") / "converted"


@pytest.fixture(scope="module")
def tool():
    """The tool as a module: for what it refuses before it starts anything."""
    spec = importlib.util.spec_from_file_location("evaluate_tool", ROOT / "tools" / "evaluate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def words(tiny, root, out, converted, *more):
    arguments = ["--checkpoint", tiny / "hf", "--benchmarks", NAME, "--out", out, "--root", root, "--window", 3000]
    return [str(word) for word in (*arguments, "--max-num", 2, "--converted-dir", converted, *more)]


def result(out):
    return json.loads((out / NAME / "results.json").read_text())


@pytest.mark.slow
def test_killed_and_resumed_elsewhere(tmp_path):
    check = command("scripts/check_evaluation_resume.py", str(tmp_path / "check"), "--kills", "2")
    finished = run(check, tmp_path / "log")
    assert finished.status == 0, finished.output[-3000:]
    assert '"differing": 0' in finished.output


@pytest.mark.slow
def test_a_question_that_fails_is_asked_again_by_the_same_command(tiny, root, converted, tmp_path):
    """One image is missing, one prompt too long, and only three of four questions are asked: all of it is told."""
    path = root / FILE
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[1]["question"] = "what " * 3000
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    image = root / rows[0]["image"]
    whole = image.read_bytes()
    image.unlink()
    line = command("tools/evaluate.py", *words(tiny, root, tmp_path / "out", converted))
    finished = run([*line, "--limit", "3"], tmp_path / "log")
    assert finished.status == 0, finished.output[-3000:]
    assert "LIMITED: only the first 3 questions  INCOMPLETE: 0 of 3 without an answer, 2 failed" in finished.output
    found = result(tmp_path / "out")
    assert "device: cpu, " in finished.output
    origin = json.loads((tmp_path / "out" / "run.json").read_text())
    assert origin["device"].startswith("cpu, ") and origin["later_devices"] == []
    assert (found["limit"], found["questions"], found["answered"]) == (3, 3, 1) and len(found["failed"]) == 2
    raw = (tmp_path / "out" / NAME / "answers-00000.jsonl").read_text()
    assert f"{image}: no such image" in raw and "more than the window of 3000" in raw

    image.write_bytes(whole)
    finished = run(line, tmp_path / "log2")
    assert finished.status == 0, finished.output[-3000:]
    assert "2 questions that ended in an error are asked again" in finished.output
    assert "ANOTHER VERSION: 4 questions, 1250 are published  INCOMPLETE: 0 of 4" in finished.output
    found = result(tmp_path / "out")
    assert (found["limit"], found["answered"], len(found["failed"]), found["duplicates"]) == (None, 3, 1, [])
    assert (tmp_path / "out" / NAME / "answers-00000.jsonl").read_text().startswith(raw)

    finished = run([*line, "--max-num", "1"], tmp_path / "log3")
    assert finished.status == 2 and "max_num 2 there, 1 now" in finished.output
    finished = run([*line, "--rope_pos_id_stride", "64"], tmp_path / "log4")
    assert finished.status == 2
    assert "rope_pos_id_stride 64 was asked for, but the checkpoint was trained with rope_pos_id_version default" in (
        finished.output
    )


@pytest.mark.slow
def test_a_question_that_kills_its_run_twice_is_given_up(tiny, root, converted, tmp_path):
    """A rank of a copy ends without a word, as one does that the system kills for its memory."""
    victim = "1002"
    script = tmp_path / "dies.py"
    script.write_text(DIES.format(id=victim, tool=str(ROOT / "tools" / "evaluate.py")))
    arguments = words(tiny, root, tmp_path / "out", converted, "--context-parallel-size", 2)
    for ends in (1, 2):
        finished = run(command(str(script), *arguments, processes=2), tmp_path / f"log{ends}")
        assert finished.status != 0
        note = json.loads((tmp_path / "out" / NAME / "asking-00000.json").read_text())
        assert (note["asking"], note["ended"]) == ([victim], {victim: 1} if ends == 2 else {}), finished.output[-2000:]
    finished = run(command(str(script), *arguments, processes=2), tmp_path / "log3")
    assert finished.status == 0, finished.output[-3000:]
    assert "INCOMPLETE: 0 of 4 without an answer, 1 failed" in finished.output
    found = result(tmp_path / "out")
    assert found["failed"] == [victim] and found["answered"] == 3
    raw = "".join(path.read_text() for path in (tmp_path / "out" / NAME).glob("answers-*.jsonl"))
    assert "the run ended 2 times while this question was asked" in raw
    line = command("tools/evaluate.py", *words(tiny, root, tmp_path / "out", converted, "--retry", "all"))
    finished = run(line, tmp_path / "log4")
    assert finished.status == 0 and "INCOMPLETE" not in finished.output, finished.output[-3000:]
    assert result(tmp_path / "out")["failed"] == []


@pytest.mark.slow
def test_several_strides_from_one_start(tiny, root, converted, tmp_path):
    """Each has a folder of its own, settled before the first question: a foreign one ends the run before any answer."""
    checkpoint = write_checkpoint_copy(tiny / "hf", tmp_path / "hf", rope_pos_id_version="v2pe_rnd")
    arguments = words(tiny, root, tmp_path / "out", converted, "--checkpoint", checkpoint, "--limit", "2")
    line = command("tools/evaluate.py", *arguments)
    foreign = tmp_path / "out" / "stride_1-2"
    foreign.mkdir(parents=True)
    (foreign / "run.json").write_text("{}")
    finished = run([*line, "--strides", "2", "1/2"], tmp_path / "log")
    assert finished.status == 2 and str(foreign) in finished.output, finished.output[-2000:]
    assert not list((tmp_path / "out").rglob("answers-*"))
    shutil.rmtree(foreign)
    finished = run([*line, "--strides", "2", "1/2"], tmp_path / "log2")
    assert finished.status == 0, finished.output[-3000:]
    positions = {}
    for stride in ("2", "1-2"):
        assert result(tmp_path / "out" / f"stride_{stride}")["answered"] == 2
        (raw,) = (tmp_path / "out" / f"stride_{stride}" / NAME).glob("answers-*.jsonl")
        positions[stride] = [json.loads(row)["positions"] for row in raw.read_text().splitlines()]
    assert all(large > small for large, small in zip(positions["2"], positions["1-2"], strict=True))


def test_what_is_missing_is_told_before_the_model_is_loaded(tool, tiny, golden, root, converted, tmp_path, capsys):
    def refused(*more, where=root):
        assert tool.main(words(tiny, where, tmp_path / "out", converted, *more)) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    told = refused(where=tmp_path)
    assert "data are missing" in told and f"{FILE}: download https://" in told and "unpack https://" in told
    told = refused("--checkpoint", golden / "reference_checkpoint")
    assert f"{golden / 'reference_checkpoint' / 'tokenizer.model'}: no such file" in told
    assert "no such folder" in refused("--checkpoint", tmp_path / "gone")
    assert "holds neither config.json" in refused("--checkpoint", tmp_path)
    assert "did you mean chartqa" in refused("--benchmarks", "chartqas")
    assert "rope_pos_id_stride -4 is not positive" in refused("--rope-pos-id-stride", "-4")
    assert "give one of them" in refused("--rope_pos_id_stride", "4", "--strides", "4", "8")
    assert "rope_pos_id_stride 0 is not positive" in refused("--strides", "4", "0")
    text = (root / FILE).read_text()
    (root / FILE).write_text(text.replace("question_id", "id"))
    assert "no 'question_id', only" in refused()
    lines = text.splitlines(keepends=True)
    (root / FILE).write_text("".join([*lines, lines[0]]))
    assert f"{FILE}:5: id" in refused().replace(str(root) + "/", "")
    shutil.rmtree(root / "data/chartqa/ChartQA Dataset")
    assert "ChartQA Dataset/test/png: unpack" in refused()


def test_one_evaluation_a_folder(tool, tiny, root, converted, tmp_path, capsys):
    with lock_folder(tmp_path / "out", "another evaluation"):
        assert tool.main(words(tiny, root, tmp_path / "out", converted)) == 2
    assert f"{tmp_path / 'out'} is in use" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_the_command_line(tool, root, capsys):
    assert tool.main(["--list", "--root", str(root)]) == 0
    told = capsys.readouterr().out
    assert "mmniah_long_1m" in told and f"{NAME:<34}   1,250  data here\n" in told and told.count("data here") == 1
    for more, expected in ((["--limit", "0"], 1), (["--batch-size", "-1"], 1), (["--image-workers", "-1"], 0)):
        with pytest.raises(SystemExit):
            tool.main(["--checkpoint", "a", "--benchmarks", NAME, "--out", "b", *more])
        assert f"expected {expected} or more" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tool.main(["--help"])
    assert "python tools/evaluate.py --checkpoint" in capsys.readouterr().out


FAMILIES = [
    name
    for name in BENCHMARKS
    if not name.startswith(("milebench_", "longvqa_", "mmniah_", "mmbench_"))
    or name in ("milebench_tqa", "longvqa_40k_gqa", "mmniah_val_reasoning_image", "mmniah_long_1m", "mmbench_dev_en")
]
"""One of each."""


@pytest.mark.slow
def test_a_model_answers_every_family(tiny, tmp_path):
    pytest.importorskip("av", reason="two families are videos")
    for name in FAMILIES:
        write_benchmark(tmp_path / "data", name)
    arguments = ["--checkpoint", tiny / "hf", "--benchmarks", ",".join(FAMILIES), "--out", tmp_path / "out"]
    arguments += ["--root", tmp_path / "data", "--limit", 1, "--max-num", 1, "--converted-dir", tmp_path / "converted"]
    finished = run(command("tools/evaluate.py", *map(str, arguments)), tmp_path / "log")
    assert finished.status == 0, finished.output[-3000:]
    for name in FAMILIES:
        result = json.loads((tmp_path / "out" / name / "results.json").read_text())
        assert (result["answered"], result["missing"], result["failed"]) == (1, [], []), name
        assert "score" in result or "submission" in result, name
