"""A language model is one folder: the files of docs/add_a_language_model.md, outside of the package, convert and train.

The model differs from InternLM2 in every name, in biases and in how its projections are cut. What it computes is held
against a forward pass written down here a second time, from the HF names alone.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from helpers.documented_commands import blocks
from helpers.tool_runs import ROOT, command, read_metrics, run, settings
from megatron_v2pe.workshop.synthetic.small_data import SPECIAL, write_dataset, write_tokenizer

PAGE = ROOT / "docs" / "add_a_language_model.md"
NAME, VARIABLE = "brook", "MEGATRON_V2PE_PLUGINS"
_FILE = re.compile(rf"^`{NAME}/([\w.]+)`:\n\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WIDTH, DEPTH, HEADS, KEY_HEADS, MLP, VOCABULARY = 64, 2, 4, 2, 96, 500
HEAD_DIM, EPS, WAVELENGTH = WIDTH // HEADS, 1e-5, 5000.0
TOKENS = ("<|system|>", "<|user|>", "<|brook|>", "<|end|>")


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """The folder of the page."""
    folder = tmp_path_factory.mktemp("plugins") / NAME
    folder.mkdir()
    for name, text in _FILE.findall(PAGE.read_text(encoding="utf-8")):
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def language_tensors():
    """HF name -> shape of the language model's tensors, written down once more."""
    yield "language_model.embed.weight", (VOCABULARY, WIDTH)
    for number in range(DEPTH):
        block = f"language_model.blocks.{number}"
        for name, rows in (("query", WIDTH), ("key", KEY_HEADS * HEAD_DIM), ("value", KEY_HEADS * HEAD_DIM)):
            yield f"{block}.attention.{name}.weight", (rows, WIDTH)
            yield f"{block}.attention.{name}.bias", (rows,)
        yield f"{block}.attention.out.weight", (WIDTH, WIDTH)
        yield f"{block}.mlp.gate.weight", (MLP, WIDTH)
        yield f"{block}.mlp.up.weight", (MLP, WIDTH)
        yield f"{block}.mlp.down.weight", (WIDTH, MLP)
        yield f"{block}.norm1.weight", (WIDTH,)
        yield f"{block}.norm2.weight", (WIDTH,)
    yield "language_model.last_norm.weight", (WIDTH,)
    yield "language_model.head.weight", (VOCABULARY, WIDTH)


@pytest.fixture(scope="module")
def checkpoint(golden, tmp_path_factory):
    """An HF folder of the model: the golden tower and projector, a random language model, its own tokens."""
    folder = tmp_path_factory.mktemp("brook") / "hf"
    folder.mkdir()
    source = golden / "reference_checkpoint"
    config = json.loads((source / "config.json").read_text())
    config["llm_config"] = {
        "architectures": ["BrookForCausalLM"],
        "model_type": "brook",
        "width": WIDTH,
        "depth": DEPTH,
        "heads": HEADS,
        "key_heads": KEY_HEADS,
        "mlp_width": MLP,
        "vocabulary": VOCABULARY,
        "context": 2048,
        "norm_epsilon": EPS,
        "wavelength": WAVELENGTH,
    }
    config |= {"template": "brook-chat", "hidden_size": WIDTH}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = {
        name: tensor
        for path in sorted(source.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
        if not name.startswith("language_model.")
    }
    generator = torch.Generator().manual_seed(3)
    assert weights["mlp1.3.weight"].shape == (WIDTH, WIDTH), "the projector of the golden checkpoint fits"
    for name, shape in language_tensors():
        drawn = torch.randn(shape, generator=generator)
        weights[name] = 1 + 0.1 * drawn if "norm" in name else drawn / (WIDTH**0.5 if len(shape) > 1 else 4)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer = write_tokenizer(folder)
    size = len(tokenizer) - len(SPECIAL)
    (folder / "added_tokens.json").write_text(json.dumps({t: size + i for i, t in enumerate((*SPECIAL, *TOKENS))}))
    return folder


@pytest.fixture(scope="module")
def outputs(plugin, checkpoint, tmp_path_factory):
    """The folder in which the commands of the page have run, and what each has printed."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "plugins").symlink_to(plugin.parent)
    (folder / "BROOK").symlink_to(checkpoint)
    (folder / "DATA").symlink_to(write_dataset(folder / "data"))
    (block,) = (block for block in blocks(PAGE) if VARIABLE in block.text)
    export, *lines = block.text.replace("\\\n", " ").strip().split("\n")
    assert export == f"export {VARIABLE}=plugins/{NAME}"
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, f"plugins/{NAME}")
        patch.setenv("MEGATRON_V2PE_CONVERTED_DIR", str(folder / "converted"))
        for number, line in enumerate(lines):
            python, tool, *arguments = shlex.split(line)
            assert python == "python"
            finished = run(command(tool, *arguments), folder / f"log{number}", folder)
            assert finished.status == 0, finished.output[-3000:]
            said.append(finished.output)
    return folder, said


def contents(folder: Path):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_page_has_every_file_of_the_folder(plugin):
    assert {path.name for path in plugin.iterdir()} == {"__init__.py", "config.py", "hf_table.py", "template.py"}


@pytest.mark.slow
def test_it_converts_there_and_back_to_the_byte(outputs, checkpoint):
    folder, _ = outputs
    assert contents(folder / "work_dirs" / "brook_hf") == contents(checkpoint)


@pytest.mark.slow
def test_it_trains_answers_and_is_exported(outputs, checkpoint):
    folder, said = outputs
    rows = read_metrics(folder / "work_dirs" / "run")
    assert [row["iteration"] for row in rows] == [1, 2] and all(row["grad_norm"] > 0 for row in rows)
    assert sum(row["tiles"] for row in rows) > 0
    assert said[3].strip(), "an answer"
    before = load_file(checkpoint / "model.safetensors")
    after = load_file(folder / "work_dirs" / "run_hf" / "model.safetensors")
    assert {name: tensor.shape for name, tensor in after.items()} == {n: t.shape for n, t in before.items()}
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert {name for name, _ in language_tensors()} <= changed, "the second step has a learning rate"
    exported = json.loads((folder / "work_dirs" / "run_hf" / "config.json").read_text())
    assert exported["llm_config"]["architectures"] == ["BrookForCausalLM"] and exported["template"] == "brook-chat"


def rms(hidden, weight):
    return hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + EPS) * weight


def turned(heads):
    """Rotate [S, heads, d]: the first half of a head with its second."""
    half = HEAD_DIM // 2
    angles = torch.arange(len(heads))[:, None] * WAVELENGTH ** (-torch.arange(half) / half)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    first, second = heads[..., :half], heads[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def forward(weights, ids):
    """Logits [S, vocabulary] of a text, by nothing but the HF tensors."""
    hidden = weights["language_model.embed.weight"][ids]
    past = torch.ones(len(ids), len(ids)).tril().bool()
    for number in range(DEPTH):
        block = f"language_model.blocks.{number}"
        normed = rms(hidden, weights[f"{block}.norm1.weight"])
        query, key, value = (
            F.linear(normed, weights[f"{block}.attention.{part}.weight"], weights[f"{block}.attention.{part}.bias"])
            .view(len(ids), -1, HEAD_DIM)
            for part in ("query", "key", "value")
        )  # fmt: skip
        query, key = turned(query), turned(key)
        seen = []
        for head in range(HEADS):
            shared = head * KEY_HEADS // HEADS
            scores = query[:, head] @ key[:, shared].T / HEAD_DIM**0.5
            seen.append(scores.masked_fill(~past, -torch.inf).softmax(-1) @ value[:, shared])
        hidden = hidden + torch.cat(seen, -1) @ weights[f"{block}.attention.out.weight"].T
        normed = rms(hidden, weights[f"{block}.norm2.weight"])
        gate = F.silu(normed @ weights[f"{block}.mlp.gate.weight"].T)
        gated = gate * (normed @ weights[f"{block}.mlp.up.weight"].T)
        hidden = hidden + gated @ weights[f"{block}.mlp.down.weight"].T
    return rms(hidden, weights["language_model.last_norm.weight"]) @ weights["language_model.head.weight"].T


OURS = """
import sys, torch
from megatron_v2pe.base.logging import quiet_expected_warnings
quiet_expected_warnings()
from megatron_v2pe.generate.generation import GenerationOptions
from megatron_v2pe.generate.pretrained import ChatQuestion, open_pretrained
from megatron_v2pe.generate.prompt import checkpoint_tiling
from megatron_v2pe.models.micro_batch import PackCutter, TensorPack
from megatron_v2pe.v2pe.position_ids import Ticks
ids = torch.load(sys.argv[2])
with open_pretrained(sys.argv[1], device="cpu") as pretrained, torch.no_grad():
    model, per_tile = pretrained.engine.model, pretrained.config.tokens_per_tile
    denominator = pretrained.policy.denominator(per_tile)
    pack = TensorPack(ids, Ticks(torch.arange(len(ids)) * denominator, denominator), (len(ids),))
    logits = model(PackCutter(model.coordinates, -1, per_tile).cut(pack))
    questions, tiling = [ChatQuestion([("human", "what do you see")])], checkpoint_tiling(pretrained.config)
    prompt = pretrained.encode(questions, tiling, 12)[0].input_ids
    answer = torch.tensor(pretrained.ask(questions, tiling, GenerationOptions(12))[0].token_ids)
    torch.save((logits, prompt, answer), sys.argv[3])
"""


@pytest.mark.slow
def test_it_computes_what_its_own_code_computes(outputs, plugin, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(plugin))
    ids = torch.randint(3, 300, (50,), generator=torch.Generator().manual_seed(1))
    torch.save(ids, tmp_path / "ids.pt")
    arguments = [outputs[0] / "work_dirs" / "brook", tmp_path / "ids.pt", tmp_path / "result.pt"]
    finished = run([sys.executable, "-c", OURS, *map(str, arguments)], tmp_path / "log")
    assert finished.status == 0, finished.output[-3000:]
    ours, prompt, answer = torch.load(tmp_path / "result.pt")
    weights = load_file(checkpoint / "model.safetensors")
    expected = forward(weights, ids)
    assert ours.shape == (50, VOCABULARY)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)  # measured: 4e-6, of logits up to 4.4
    for name in ("query.bias", "key.weight", "value.bias"):  # the comparison would see each of them
        changed = {n: t.flip(0) if n.endswith(name) else t for n, t in weights.items()}
        assert (forward(changed, ids) - expected).abs().max() > 1e-2, name
    whole = torch.cat([prompt, answer])
    likeliest = forward(weights, whole)[len(prompt) - 1 : -1].argmax(-1)
    assert len(answer) and torch.equal(answer, likeliest), "generation, which has layers of its own, is greedy"


@pytest.mark.slow
def test_other_layouts_train_the_same(outputs, plugin, tmp_path, monkeypatch):
    """Tensor-parallel ranks each have a query group with its biases; stages each have a layer."""
    folder, _ = outputs
    monkeypatch.setenv(VARIABLE, str(plugin))
    monkeypatch.setenv("MEGATRON_V2PE_CONVERTED_DIR", str(folder / "converted"))
    tiny = tmp_path / "tiny"
    tiny.mkdir()
    (tiny / "hf").symlink_to(folder / "BROOK")
    (tiny / "data").symlink_to(folder / "data")
    layouts = {"alone": {}} | {name: {f"parallel__{name}_model_parallel_size": 2} for name in ("tensor", "pipeline")}
    steps = {"train__train_steps": 2, "train__global_batch_size": 2, "data__template": "brook-chat"}
    for name, layout in layouts.items():
        arguments = settings(tiny, tmp_path / name, **layout, **steps)
        finished = run(command("tools/train.py", *arguments, processes=2 if layout else 0), tmp_path / f"{name}.log")
        assert finished.status == 0, finished.output[-3000:]
        for ours, theirs in zip(read_metrics(tmp_path / name), read_metrics(tmp_path / "alone"), strict=True):
            assert ours["tokens"] == theirs["tokens"]
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)


@pytest.mark.slow
def test_without_the_folder_its_checkpoint_is_refused_by_name(checkpoint, tmp_path):
    line = command("tools/convert_checkpoint.py", "hf-to-mcore", str(checkpoint), str(tmp_path / "mcore"))
    finished = run(line, tmp_path / "log")
    assert finished.status != 0
    assert "'BrookForCausalLM' is not supported; supported is InternVLChatModel" in finished.output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("hf_table.py", "rows=Stacked(1, 2)", "rows=Stacked(0, 2)", "linear_fc1.weight: row 0 is filled twice"),
        ("config.py", "import Rest", "import Best", "family brook: config.py fails: ImportError: cannot import name"),
        ("config.py", "model_types=", "model_type=", "family brook: config.py fails: TypeError"),
        ("hf_table.py", ".gate.weight", ".gate", "1 tensors are missing: language_model.blocks.0.mlp.gate"),
    ],
)
def test_a_mistake_in_the_folder_is_named(plugin, checkpoint, tmp_path, monkeypatch, name, old, new, message):
    broken = tmp_path / NAME
    shutil.copytree(plugin, broken, ignore=shutil.ignore_patterns("__pycache__"))
    text = (broken / name).read_text()
    assert old in text
    (broken / name).write_text(text.replace(old, new))
    monkeypatch.setenv(VARIABLE, str(broken))
    line = command("tools/convert_checkpoint.py", "hf-to-mcore", str(checkpoint), str(tmp_path / "mcore"))
    finished = run(line, tmp_path / "log")
    assert finished.status != 0 and "Traceback" not in finished.output
    assert re.sub(r"\d tensors are", "1 tensors are", finished.output).count(message), finished.output


def test_a_template_is_read_without_torch(plugin):
    """So that workers that read data start at once."""
    script = """
import sys
from megatron_v2pe.data.conversation import get_template
turns = [("human", "a"), ("gpt", "b")]
text = "".join(message.text for message in get_template("brook-chat").render(turns))
assert text == "<|system|>You are Brook. You answer in few words.<|end|><|user|>a<|end|><|brook|>b<|end|>", text
said = get_template("brook-chat").render([("system", "S"), *turns])[0].text
assert said == "<|system|>S<|end|>", said
assert not {"torch", "megatron"} & set(sys.modules)
"""
    environment = {**os.environ, VARIABLE: str(plugin)}
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, env=environment)
