"""Tools on adapters as a user starts them: generate, evaluate, merge, convert, inspect, verify; and what they refuse.

The kinds of fault: an adapter that answers for another, results of two adapters in one folder, a refusal that comes
after something was written.
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from helpers import low_rank
from helpers.tool_runs import command, run, settings
from megatron_v2pe.checkpoint.hf.api import hf_to_mcore
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.workshop.synthetic.benchmarks import write_benchmark

ALONE = ParallelConfig(use_distributed_optimizer=False)
SHORT = ("--max-new-tokens", "6", "--device", "cpu")


@pytest.fixture(scope="module")
def tools(tiny, tmp_path_factory, pools):
    """Start a tool in a folder that holds a base and a run that trained an adapter of it."""
    root = tmp_path_factory.mktemp("adapters")
    hf_to_mcore(tiny / "hf", root / "base")
    pools[1].run(low_rank.save_run, base=root / "base", run=root / "run", layout=ALONE, average_factor=0.0)

    def start(tool, *arguments, status=0):
        found = run(command(f"tools/{tool}.py", *map(str, arguments)), root / "log", timeout=600)
        assert found.status == status, found.output[-3000:]
        return found.output

    return root, start


@pytest.fixture(scope="module")
def peft_folder(tools):
    root, start = tools
    start("convert_checkpoint", "mcore-to-hf", root / "run", root / "peft", "--adapter", "beside", "--layout", "native")
    return root / "peft"


def test_named_adapters_answer_as_the_run_and_as_the_merged_model(tools, peft_folder, tmp_path):
    root, start = tools
    start("merge_adapter", root / "base", root / "run", tmp_path / "merged")
    questions = [{"id": name, "prompt": "what do you see", "adapter": name} for name in ("a", "none", "b", "a")]
    questions[-1]["id"] = "again"
    lines = "\n".join(map(json.dumps, [*questions, {"id": "first", "prompt": "what do you see"}]))
    (tmp_path / "in.jsonl").write_text(lines + "\n")
    adapters = ("--adapter", f"a={root / 'run'}", "--adapter", f"b={peft_folder}", "--adapter-name", "b")
    files = ("--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl", "--batch-size", 3)
    start("generate", "--checkpoint", root / "base", *adapters, *files, *SHORT)
    answers = {row["id"]: row["answer"] for row in map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())}
    assert answers["a"] == answers["b"] == answers["again"] and answers["a"] != answers["none"]
    ask = ("--prompt", "what do you see", *SHORT)
    for checkpoint in (root / "run", tmp_path / "merged"):
        assert start("generate", "--checkpoint", checkpoint, *ask).splitlines()[-1].strip() == answers["a"]
    assert answers["first"] == answers["a"]  # it follows one that `a` has answered
    averaged = (*adapters[:2], "--adapter-weights", "ema", *ask)
    said = start("generate", "--checkpoint", root / "base", *averaged).splitlines()[-1].strip()
    assert said == answers["none"], "the average is 0 here"
    unknown = start("generate", "--checkpoint", root / "base", *adapters[:-1], "c", *ask, status=2)
    assert "--adapter-name: no adapter 'c' is loaded (--adapter [NAME=]FOLDER); known here: a, b, none" in unknown
    twice = start(
        "generate", "--checkpoint", root / "base", *adapters[:2], "--adapter", f"a={peft_folder}", *ask, status=2
    )
    assert "two adapters are called 'a'" in twice
    both = start("generate", "--checkpoint", root / "run", *adapters[:2], *ask, status=2)
    assert "holds an adapter itself; name its base as --checkpoint" in both
    alone = start("generate", "--checkpoint", peft_folder, *ask, status=2)
    assert "name the model that it belongs to here, and it with --adapter" in alone


def test_each_adapter_has_its_results(tools, peft_folder, tmp_path):
    root, start = tools
    write_benchmark(tmp_path / "data", "chartqa_human")
    asked = ("--benchmarks", "chartqa_human", "--root", tmp_path / "data", "--limit", 3, "--device", "cpu")
    asked = ("--checkpoint", root / "base", *asked, "--out", tmp_path / "out", "--window", 3000, "--max-num", 1)
    both = ("--adapter", f"a={root / 'run'}", "--adapter", f"b={peft_folder}")
    start("evaluate", *asked, *both)
    found = {}
    for name in "ab":
        folder = tmp_path / "out" / f"adapter_{name}"
        assert json.loads((folder / "chartqa_human" / "results.json").read_text())
        answers = sorted((folder / "chartqa_human").glob("answers-*.jsonl"))
        found[name] = [json.loads(line)["answer"] for path in answers for line in path.read_text().splitlines()]
    assert len(found["a"]) == 3 and found["a"] == found["b"]
    other = start("evaluate", *asked[:-6], "--out", tmp_path / "out" / "adapter_a", *asked[-4:], status=2)
    assert "holds answers of another run: adapter" in other


def test_what_is_in_an_adapter(tools, peft_folder, tmp_path):
    root, start = tools
    shown = start("inspect_checkpoint", root / "run")
    assert "adapter: LoRA" in shown and "rank 3" in shown and str(root / "base") in shown
    facts = json.loads(start("inspect_checkpoint", peft_folder, "--json"))
    assert facts["kind"] == "PEFT adapter" and facts["adapter"]["ranks"] == {"2": 9, "3": 28}
    assert "lora_A" in start("inspect_checkpoint", peft_folder, "--tensors", "--filter", "layers.0.*q_proj")
    start("merge_adapter", root / "base", root / "run", tmp_path / "merged", "--to", "hf")
    same = start("verify_checkpoint", tmp_path / "merged", root / "run", "--logits", "--converted-dir", tmp_path / "c")
    assert "0 different" in same and "the same tokens are chosen: yes" in same
    assert "different" in start("verify_checkpoint", root / "base", root / "run", status=1)
    beside = ("mcore-to-hf", root / "run", tmp_path / "no", "--adapter", "beside", "--max-shard-size", "1GB")
    refused = start("convert_checkpoint", *beside, status=2)
    assert "--max-shard-size goes with --adapter merge, not with beside: PEFT reads one file of weights" in refused
    assert not (tmp_path / "no").exists()


def test_a_run_begins_with_an_adapter_in_peft_form(tools, tiny, tmp_path):
    """A step at a rate of 1e-30 leaves every factor as it was: there, trained and back is the same to the bit."""
    root, start = tools
    pieces = ("--adapter", "beside", "--layout", "original")
    start("convert_checkpoint", "mcore-to-hf", root / "run", tmp_path / "peft", *pieces)
    ours = {
        "model.model_name_or_path": root / "base",
        "adapter.kind": "lora",
        "adapter.targets": "language_model.attention,language_model.mlp,vision_model.linear_qkv",
        "adapter.rank": 3,
        "adapter.alpha": 6,
        "adapter.backbone_rank": 2,
        "adapter.start": tmp_path / "peft",
        "optimizer.lr": 1e-30,
        "train.train_steps": 1,
        "checkpoint.save_interval": 1,
    }
    start("train", *settings(tiny, tmp_path / "again", **ours))
    start("convert_checkpoint", "mcore-to-hf", tmp_path / "again", tmp_path / "back", *pieces)
    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("peft", "back"))
    assert before.keys() == after.keys()
    # The tower's alpha is another one in this run, which has one for all parts: it is in `lora_B`, 3/2 over 6/2.
    scale = {name: 0.5 if "vision_model" in name and "lora_B" in name else 1.0 for name in before}
    assert all(torch.equal(after[name], value * scale[name]) for name, value in before.items())
    small = start("train", *settings(tiny, tmp_path / "no", **ours, **{"adapter.llm_rank": 2}), status=2)
    assert "have rank 3, this run's 2: set adapter.llm_rank 3, or more" in small
    ours["adapter.targets"] = "language_model.mlp"
    del ours["adapter.backbone_rank"]
    few = start("train", *settings(tiny, tmp_path / "no", **ours), status=2)
    assert "linears that are no targets of this run" in few and not list(tmp_path.glob("no/iter_*"))
