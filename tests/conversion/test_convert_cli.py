"""The command line: both ways, help with a command that works, errors without a traceback."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from pathlib import Path

import pytest

from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.workshop.synthetic.checkpoint import internvl2_2b_config, write_hf_folder

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("convert_checkpoint", REPOSITORY / "tools" / "convert_checkpoint.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_ways_as_the_help_shows(tool, golden, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        tool.main(["hf-to-mcore", "--help"])
    assert stop.value.code == 0
    shown = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  python tools/")]
    tests = tmp_path / "tests" / "golden"
    tests.mkdir(parents=True)
    (tests / "reference_checkpoint").symlink_to(golden / "reference_checkpoint")
    monkeypatch.chdir(tmp_path)
    for line in shown[:2]:
        assert tool.main(shlex.split(line)[2:]) == 0
    back = tmp_path / "work_dirs" / "converted" / "hf"
    for path in (golden / "reference_checkpoint").iterdir():
        assert (back / path.name).read_bytes() == path.read_bytes(), path.name


def test_errors_are_one_line_and_status_one(tool, converted, tmp_path, capsys):
    assert tool.main(["hf-to-mcore", str(tmp_path / "nowhere"), str(tmp_path / "out")]) == 2
    arguments = ["mcore-to-hf", str(converted["odd"]), str(tmp_path / "out"), "--rope-pos-id-version", "v2pe_fix"]
    assert tool.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == 2 and "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_converted_already_is_told_the_other_direction(tool, converted, tmp_path, capsys):
    assert tool.main(["hf-to-mcore", str(converted["odd"]), str(tmp_path / "out")]) == 2
    assert f"mcore-to-hf {converted['odd']} OUT" in capsys.readouterr().err


def test_the_benchmark_sees_memory_and_differences(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "tools"))
    from perf import conversion

    holds, seen, memory, looked = tmp_path / "holds", tmp_path / "seen", conversion._memory, {}

    def watched(pid, field):
        """Tell the command that its memory was looked at, both fields in turn, while it held it."""
        looked[field] = holds.exists()
        found = memory(pid, field)
        if looked["VmHWM"] and field == "RssAnon":
            seen.touch()
        return found

    monkeypatch.setattr(conversion, "_memory", watched)
    code = f"""
import os, time
held = b'x' * (64 << 20)
open({str(holds)!r}, 'w').close()
while not os.path.exists({str(seen)!r}):
    time.sleep(0.02)
"""
    seconds, resident, anonymous = conversion._measure([sys.executable, "-S", "-c", code])
    assert seconds > 0
    if sys.platform == "linux":
        assert 64 << 20 <= anonymous <= resident < 100 << 20
    with pytest.raises(CheckpointError, match="exit status 3"):
        conversion._measure([sys.executable, "-S", "-c", "raise SystemExit(3)"])
    for name in ("ours", "theirs"):
        write_hf_folder(tmp_path / name, small_config(), shards=2)
    assert conversion._identical(tmp_path / "ours", tmp_path / "theirs")
    shard = tmp_path / "theirs" / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    with pytest.raises(CheckpointError, match="differs.*model-00002"):
        conversion._identical(tmp_path / "ours", tmp_path / "theirs")


def small_config():
    config = internvl2_2b_config()
    config["llm_config"] |= {"vocab_size": 509, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    config["vision_config"] |= {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    return config
