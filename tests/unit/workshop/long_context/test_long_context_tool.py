"""tools/build_long_context.py: the files it makes, the same bytes from the same seed, and errors in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from long_context_world import write_text

from helpers.shared import shared_path
from megatron_v2pe.data.config import DataConfig
from megatron_v2pe.data.data_list import read_data_list
from megatron_v2pe.data.encode import DocumentEncoder, ModelFacts
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.v2pe.settings import StridePolicy
from megatron_v2pe.workshop.long_context.needles import TASKS
from megatron_v2pe.workshop.synthetic.checkpoint import internvl2_2b_config

TOOLS = Path(__file__).parents[4] / "tools"


@pytest.fixture
def tool(monkeypatch, capsys):
    """Calls the tool in this process: status, output, errors."""
    monkeypatch.syspath_prepend(str(TOOLS))
    import build_long_context

    def call(*argv: object) -> tuple[int, str, str]:
        status = build_long_context.main([str(argument) for argument in argv])
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


@pytest.fixture
def given(world, tokenizer):
    """The options every call takes: a checkpoint with the test's tokenizer and tiles, and the world's annotation."""
    checkpoint = world.folder / "checkpoint"
    shutil.copytree(Path(tokenizer.model_file).parent, checkpoint)
    config = internvl2_2b_config()
    config["force_image_size"] = config["vision_config"]["image_size"] = 28
    config["vision_config"]["patch_size"] = 7
    (checkpoint / "config.json").write_text(json.dumps(config))
    options = ["--checkpoint", checkpoint, "--annotation", world.folder / "all.jsonl", "--root", world.folder / "image"]
    return [*options, "--max-dynamic-patch", "6", "--reuse-images", "--text", world.folder / "text.txt"]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


VQA = ["--target-tokens", "400:500", "--form", "paste", "--paste-grid", "2x2", "--samples", "6"]
NEEDLES = ["--target-tokens", "1000:1200", "--samples", "8"]


@pytest.mark.parametrize("command", ["long-vqa", "long-mr"])
def test_the_same_seed_gives_the_same_bytes_however_many_processes(tool, given, world, tmp_path, command):
    options = VQA if command == "long-vqa" else [*NEEDLES, "--needle-images", world.folder / "needles"]
    made = []
    for run, more in enumerate([[], ["--workers", "2"], ["--seed", "1"]]):
        status, said, complaints = tool(command, tmp_path / "out", *given, *options, *more)
        assert status == 0, complaints
        made.append(contents(tmp_path / "out"))
        shutil.move(tmp_path / "out", tmp_path / f"run{run}")
    assert made[0] == made[1]
    assert made[0]["annotation.jsonl"] != made[2]["annotation.jsonl"]
    assert f"{len(made[0]['annotation.jsonl'].splitlines())} samples of" in said and "--data.meta-path" in said


def test_what_is_written_is_a_data_list_and_a_report(tool, given, world, tmp_path):
    assert tool("long-mr", tmp_path / "out", *given, *NEEDLES)[0] == 0
    lengths = world.lengths(tmp_path / "out" / "meta.json")
    [dataset] = read_data_list(tmp_path / "out" / "meta.json")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (dataset.name, len(dataset), dataset.max_dynamic_patch) == ("out", 8, 6)
    assert report["tokens"] == {"min": min(lengths), "max": max(lengths), "total": sum(lengths)}
    assert report["samples"] == report["exactly_at_target"] == sum(bin["samples"] for bin in report["lengths"]) == 8
    assert report["categories"] == {
        "text_counting": 2,
        "text_reasoning": 2,
        "text_retrieval": 2,
        "text_retrieval_fake": 2,
    }
    assert sum(report["depths"]) >= 8 and len(report["depths"]) == 10
    assert report["settings"]["target_tokens"] == [1000, 1200] and report["encoding"]["tokens_per_tile"] == 4


def test_nothing_is_replaced_unasked_and_nothing_is_left_of_a_failure(tool, given, tmp_path):
    out = tmp_path / "out"
    assert tool("long-vqa", out, *given, *VQA)[0] == 0
    before = contents(out)
    status, _, complaints = tool("long-vqa", out, *given, *VQA)
    assert status == 2 and "out: exists and is not empty; use --overwrite" in complaints
    status, _, complaints = tool("long-vqa", out, *given, *VQA, "--overwrite", "--target-tokens", "60")
    assert status == 2 and complaints.count("\n") == 1 and complaints.startswith("error: sample 0, 60 tokens: ")
    assert contents(out) == before and not [path for path in tmp_path.iterdir() if path.name.startswith(".out")]
    assert tool("long-vqa", out, *given, *VQA, "--overwrite", "--seed", "9")[0] == 0
    assert contents(out) != before
    (out / "report.json").unlink()
    status, _, complaints = tool("long-vqa", out, *given, *VQA, "--overwrite")
    assert status == 2 and "not replaced" in complaints


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("long-vqa", ["--target-tokens", "many"], "target tokens 'many'"),
        ("long-vqa", ["--samples", "0"], "--samples 0: expected 1 or more"),
        ("long-vqa", ["--questions", "0"], "--questions 0: expected 1 or more"),
        ("long-vqa", ["--paste-grid", "3"], "paste grid '3'"),
        ("long-vqa", ["--annotation", "gone.jsonl"], "gone.jsonl: no such annotation file"),
        ("long-vqa", ["--meta-path", "list.json"], "give either --meta-path or --annotation"),
        ("long-vqa", ["--checkpoint", "gone"], "--checkpoint gone: no such folder"),
        ("long-vqa", ["--template", "gone"], "conversation template 'gone'"),
        ("long-mr", ["--text", "gone.txt"], "gone.txt: text cannot be read"),
        ("long-mr", ["--tasks", "image_counting"], "give --needle-images"),
        ("long-mr", ["--tasks", "poetry"], "--tasks poetry"),
        ("long-mr", ["--needle-images", "gone"], "gone: no such folder of images"),
    ],
)
def test_mistakes_are_told_in_one_line(tool, given, tmp_path, command, options, message):
    defaults = VQA if command == "long-vqa" else NEEDLES
    status, _, complaints = tool(command, tmp_path / "out", *given, *defaults, *options)
    assert status == 2 and complaints.startswith("error: ") and complaints.count("\n") == 1
    assert message in complaints and not (tmp_path / "out").exists()


def test_an_image_damaged_inside_is_named_by_a_worker_too(tool, given, world, tmp_path):
    path = world.folder / "image" / "5.png"
    path.write_bytes(path.read_bytes()[:50])
    for workers in (0, 1):
        status, _, complaints = tool("long-vqa", tmp_path / "out", *given, *VQA, "--workers", workers)
        assert status == 2 and "5.png: damaged image" in complaints


def test_help_names_every_task(tool):
    import build_long_context

    assert build_long_context.TASKS_HELP == ", ".join(TASKS)


def test_help_shows_examples(tool, capsys):
    for arguments in (["--help"], ["long-vqa", "--help"], ["long-mr", "--help"]):
        with pytest.raises(SystemExit) as ended:
            tool(*arguments)
        assert ended.value.code == 0
        assert "python tools/build_long_context.py long-mr work_dirs/long_mr --checkpoint" in capsys.readouterr().out


@pytest.fixture
def real(tmp_path, monkeypatch):
    """InternVL2-2B's tokenizer and tiles, real charts, questions and photographs."""
    monkeypatch.chdir(shared_path("real"))
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(shared_path("golden/tokenizer"), checkpoint)
    (checkpoint / "config.json").write_text(json.dumps(internvl2_2b_config()))
    write_text(tmp_path / "text.txt", 1500)
    return ["--checkpoint", checkpoint, "--text", tmp_path / "text.txt", "--reuse-images"]


@pytest.mark.parametrize(
    "options",
    [
        ["long-vqa", "--questions", "2", "--mix-annotations"],
        ["long-vqa", "--form", "paste"],
        ["long-mr", "--needle-images", "photos/coco_val2017"],
    ],
)
def test_real_data(tool, real, tmp_path, options):
    command, *rest = options
    data_list = "train/annotation_train_real_small.json"
    arguments = [*rest, "--meta-path", data_list, "--target-tokens", "8192:16384", "--samples", "8"]
    status, _, complaints = tool(command, tmp_path / "out", *real, *arguments)
    assert status == 0, complaints
    [dataset] = read_data_list(tmp_path / "out" / "meta.json")
    config = DataConfig(
        meta_path=data_list, max_seq_length=16384, max_packed_tokens=16384, num_images_expected=64, max_dynamic_patch=1
    )
    facts, tokenizer = ModelFacts(448, 256), Tokenizer.from_folder(tmp_path / "checkpoint")
    encoder = DocumentEncoder(config, tokenizer, facts, StridePolicy("v2pe_rnd", strides=(1, 64, 256), seed=0), 0)
    for number, text in enumerate((tmp_path / "out" / "annotation.jsonl").read_text().splitlines()):
        row = json.loads(text)
        numbers = row.get("metadata") or row["meta"]
        document = encoder.document(dataset, number, 0, number)
        assert document.num_tokens == numbers["context_length"] and document.num_tiles == numbers["num_tiles"]
        assert 8192 <= document.num_tokens <= 16384
