"""What a user does wrong: the message names the place and the numbers, the status is not 0, nothing is written."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from helpers.sealing import seal
from helpers.tool_runs import command, run, settings
from megatron_v2pe.workshop.synthetic.small_data import write_dataset

ASK = [{"from": "human", "value": "what"}, {"from": "gpt", "value": "yes"}]


def one_line(folder: Path, line: str) -> Path:
    folder.mkdir()
    Image.new("RGB", (28, 28)).save(folder / "good.png")
    whole = Path(folder / "good.png").read_bytes()
    (folder / "corrupt.png").write_bytes(whole[:60])
    (folder / "a.jsonl").write_text(line + "\n")
    entry = {"annotation": str(folder / "a.jsonl"), "root": str(folder), "data_augment": False, "repeat_time": 1}
    (folder / "meta.json").write_text(json.dumps({"mine": entry}))
    return folder / "meta.json"


def sample(text="what", **fields):
    return json.dumps({**fields, "conversations": [{"from": "human", "value": text}, ASK[1]]})


DATA = {
    "missing_image": (sample(image="gone.png"), r"a.jsonl:1 \(mine\): \S*gone.png: no such image"),
    "corrupt_image": (sample(image="corrupt.png"), r"a.jsonl:1 \(mine\): \S*corrupt.png: (damaged|not an) image"),
    "malformed_line": ('{"conversations": [', r"a.jsonl:1 \(mine\): the line: not valid JSON"),
    "placeholders": (sample("<image> <image>", image=["good.png"]), r"2 <image> placeholders .* but 1 images"),
    "too_long": (sample("what " * 300), r"a.jsonl:1 \(mine\): \d+ tokens, longer than data.max_seq_length 400"),
}
SETTINGS = {
    "stride_missing": (["v2pe.rope_pos_id_version=v2pe_fix"], "v2pe.rope_pos_id_stride is missing"),
    "unknown_key": (["data.max_packed_token=5"], "max_packed_token.*max_packed_tokens"),
    "unknown_section": (["dat.max_packed_tokens=5"], "dat.*data"),
    "world_size": (["parallel.tensor_model_parallel_size=2"], "world size 1 is not a multiple of .* 2 x"),
    "context_parallel": (["parallel.context_parallel_size=2"], "world size 1 is not a multiple"),
    "no_checkpoint": (["model.model_name_or_path=gone"], "gone: no such folder"),
    "no_data_list": (["data.meta_path=gone.json"], "gone.json: cannot be read"),
}
CHECKPOINTS = {
    "truncated_safetensors": r"model-00002-of-00004.safetensors.*\d+.*\d+",
    "pickle": "pytorch_model.bin",
    "other_architecture": "FalconForCausalLM.*is not supported",
    "missing_tensor": "language_model.output.weight",
    "half_written": r".metadata is missing; the checkpoint was not finished",
    "malicious": r".metadata: refused: it asks for \S+system",
}


class _Malicious:
    def __reduce__(self):
        import os

        return os.system, ("touch pwned",)


def damage(name: str, hf: Path, converted: Path) -> Path:
    """Damage a copy of a checkpoint; return the folder to start from."""
    if name == "truncated_safetensors":
        shard = hf / "model-00002-of-00004.safetensors"
        shard.write_bytes(shard.read_bytes()[:-1000])
    elif name == "pickle":
        for file in hf.glob("*.safetensors*"):
            file.unlink()
        (hf / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))
    elif name == "other_architecture":
        config = json.loads((hf / "config.json").read_text())
        config["llm_config"]["architectures"] = ["FalconForCausalLM"]
        (hf / "config.json").write_text(json.dumps(config))
    elif name == "missing_tensor":
        index = json.loads((hf / "model.safetensors.index.json").read_text())
        del index["weight_map"]["language_model.output.weight"]
        (hf / "model.safetensors.index.json").write_text(json.dumps(index))
    elif name == "half_written":
        (converted / ".metadata").unlink()
        return converted
    else:
        (converted / ".metadata").write_bytes(pickle.dumps(_Malicious()))
        return seal(converted)  # as whoever sends it would
    return hf


@pytest.fixture(scope="module")
def results(tiny, tmp_path_factory):
    """All wrong commands, run in one process: name -> status, output, folder the run would have saved to."""
    root = tmp_path_factory.mktemp("bad")
    converted = root / "converted"
    tool = command("tools/convert_checkpoint.py", "hf-to-mcore", str(tiny / "hf"), str(converted))
    assert run(tool, root / "convert.log").status == 0
    commands: dict[str, list[str]] = {}
    for name, (row, _) in DATA.items():
        meta = one_line(root / f"data_{name}", row)
        commands[name] = [
            *settings(tiny, root / name),
            f"data.meta_path={meta}",
            f"model.model_name_or_path={converted}",
        ]
    for name, (arguments, _) in SETTINGS.items():
        commands[name] = [*settings(tiny, root / name), *arguments]
    for name in CHECKPOINTS:
        copies = [shutil.copytree(tiny / "hf", root / f"{name}_hf"), shutil.copytree(converted, root / f"{name}_mcore")]
        commands[name] = [*settings(tiny, root / name), f"model.model_name_or_path={damage(name, *copies)}"]
    commands["good"] = [*settings(tiny, root / "good", train__train_steps=1), "data.num_workers=0"]
    (root / "commands.json").write_text(json.dumps(list(commands.values())))
    script = [sys.executable, "-m", "helpers.many_commands", "commands.json", "results.json"]
    finished = run(script, root / "log", cwd=root)
    assert finished.status == 0, finished.output[-3000:]
    outcomes = json.loads((root / "results.json").read_text())
    assert not (root / "pwned").exists(), "a pickle was run"
    return {name: (*outcome, root / name) for name, outcome in zip(commands, outcomes, strict=True)}


MESSAGES = {
    **{name: message for name, (_, message) in (DATA | SETTINGS).items()},
    **CHECKPOINTS,
}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_clear_error_and_nothing_written(results, name):
    status, output, folder = results[name]
    assert status not in (0, -1), output
    assert re.search(MESSAGES[name], output), output
    assert "Traceback" not in output
    assert not list(folder.glob("iter_*")) and not list(folder.glob("**/*.writing"))


def test_the_same_command_without_the_mistake_works(results):
    status, output, folder = results["good"]
    assert status == 0, output
    assert (folder / "iter_0000001" / ".metadata").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "value", "layout", "message"),
    [
        ("num_key_value_heads", 1, "tensor", "tensor_model_parallel_size 2 does not divide the 1 query groups"),
        ("num_hidden_layers", 3, "pipeline", "3 decoder layers do not fit pipeline_model_parallel_size 2"),
    ],
)
def test_a_layout_that_does_not_fit_the_model(tmp_path, golden, field, value, layout, message):
    from megatron_v2pe.workshop.synthetic.checkpoint import write_hf_folder
    from megatron_v2pe.workshop.synthetic.small_data import write_tokenizer

    config = json.loads((golden / "reference_checkpoint" / "config.json").read_text())
    config["llm_config"][field] = value
    write_hf_folder(tmp_path / "hf", config, shards=1)
    write_tokenizer(tmp_path / "hf")
    write_dataset(tmp_path / "data")
    arguments = settings(tmp_path, tmp_path / "run", **{f"parallel__{layout}_model_parallel_size": 2})
    finished = run(command("tools/train.py", *arguments, processes=2), tmp_path / "log")
    assert finished.status != 0 and message in finished.output, finished.output[-3000:]
    assert not list((tmp_path / "run").glob("iter_*"))
