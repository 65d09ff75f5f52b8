"""`tools/generate.py` as a user starts it: prompt, JSONL that is resumed, chat, processes together, and bad input."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess

import pytest

from helpers.tool_runs import ROOT, command, run

SHORT = ("--max-new-tokens", "4", "--device", "cpu")


@pytest.fixture(scope="module")
def answers(tiny, tmp_path_factory):
    """Run the tool on the tiny checkpoint, converted once for all tests; return what it has printed."""
    folder = tmp_path_factory.mktemp("generate")
    start = ("--checkpoint", str(tiny / "hf"), "--converted-dir", str(folder / "converted"), *SHORT)

    def ask(*arguments, processes=0):
        line = command("tools/generate.py", *start, *map(str, arguments), processes=processes)
        finished = run(line, folder / "log", timeout=600)
        return finished.status, finished.output

    return ask


@pytest.fixture(scope="module")
def image(tiny):
    return tiny / "data" / "image" / "3.png"


@pytest.fixture(scope="module")
def tool():
    """The tool as a module: for what it refuses before it starts anything."""
    spec = importlib.util.spec_from_file_location("generate_tool", ROOT / "tools" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_lines_of_a_file_are_answered_once(answers, image, tmp_path):
    questions = [
        {"id": "a", "prompt": "what do you see", "image": str(image)},
        {"id": 7, "prompt": "one <image>\ntwo <image>", "image": [str(image), str(image.with_name("1.png"))]},
        {
            "conversations": [
                {"from": "human", "value": "a"},
                {"from": "gpt", "value": "b"},
                {"from": "human", "value": "c"},
            ]
        },
        {"id": "long", "prompt": "what do you see in picture one two three"},
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, questions)) + "\n")
    output = tmp_path / "out.jsonl"
    files = ("--input", tmp_path / "in.jsonl", "--output", output, "--batch-size", 3, "--window", 256)
    assert answers(*files)[0] == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["a", "7", "3", "long"]
    assert all(row["num_tokens"] == 4 or row["finish_reason"] == "stop_token" for row in rows)

    whole = output.read_text().splitlines(keepends=True)
    output.write_text(whole[0] + whole[2] + whole[1][:20])  # killed while it wrote
    assert answers(*files, "--context-parallel-size", 2, processes=2)[0] == 0  # and resumed in another layout
    assert sorted(output.read_text().splitlines()) == sorted(line.rstrip("\n") for line in whole)


def test_chat(answers, image, tiny, tmp_path):
    lines = [
        f"/image {image}",
        "what do you see",
        "and",
        "/image gone.png",
        "what " * 300,
        "<image> <image>",
        "/reset",
        "what",
        "/exit",
        "never read",
    ]
    (tmp_path / "typed").write_text("\n".join(lines) + "\n")
    arguments = ("--checkpoint", str(tiny / "hf"), "--converted-dir", str(tmp_path / "converted"), *SHORT, "--chat")
    with (tmp_path / "typed").open() as typed:
        talk = subprocess.run(
            command("tools/generate.py", *arguments), stdin=typed, capture_output=True, text=True, cwd=ROOT, timeout=600
        )
    assert talk.returncode == 0, talk.stderr
    assert "130 x 60" in talk.stdout
    assert "error: gone.png: no such image" in talk.stdout
    assert "error: turn 2: the prompt has" in talk.stdout and "more than the window of 256" in talk.stdout
    assert "error: turn 2: 3 <image> placeholders in the conversation, but 1 images" in talk.stdout
    assert talk.stdout.count("\n> ") >= len(lines) - 4  # asked again after each; what an answer holds is no matter


def test_one_prompt(answers, image):
    pictures = ("--image", image, image.with_name("1.png"))
    status, output = answers("--prompt", "what do you see", *pictures, "--temperature", 1, "--seed", 3)
    assert status == 0, output
    assert "error" not in output
    assert "device: cpu, " in output and " threads" in output
    assert output.count("positions: default, one for every token") == 1


BAD = {
    "no image of a chat": (["--chat", "--image", "gone.png"], "--image: gone.png: no such image"),
    "empty prompt": (["--prompt", "  "], "the prompt is empty"),
    "no image": (["--prompt", "what", "--image", "gone.png"], "gone.png: no such image"),
    "no checkpoint": (["--prompt", "what", "--checkpoint", "gone"], "--checkpoint gone: no such folder"),
    "no questions": (["--input", "gone.jsonl", "--output", "out.jsonl"], "gone.jsonl: cannot be read"),
    "too many processes": (["--prompt", "what", "--context-parallel-size", "2"], "world size 1 is not a multiple"),
    "temperature": (["--prompt", "what", "--temperature", "-1"], "temperature is -1.0"),
    "window": (["--prompt", "what", "--max-new-tokens", "0"], "max_new_tokens is 0"),
    "stride": (["--prompt", "what", "--rope-pos-id-stride", "-4"], "rope_pos_id_stride -4 is not positive"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_before_the_start(tool, tiny, name, capsys, monkeypatch, tmp_path):
    arguments, message = BAD[name]
    monkeypatch.chdir(tmp_path)
    assert tool.main(["--checkpoint", str(tiny / "hf"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_damaged_files_are_refused_before_the_start(tool, tiny, golden, image, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    hf = str(tiny / "hf")
    (tmp_path / "broken.png").write_bytes(b"no image")
    assert tool.main(["--checkpoint", hf, "--prompt", "what", "--image", "broken.png"]) == 2
    assert "prompt: broken.png: not an image (8 bytes)" in capsys.readouterr().err
    shutil.copytree(golden / "reference_checkpoint", tmp_path / "no_tokenizer")
    assert tool.main(["--checkpoint", "no_tokenizer", "--prompt", "what"]) == 2
    assert "tokenizer.model: no such file" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert tool.main(["--checkpoint", "empty", "--prompt", "what"]) == 2
    assert "holds neither config.json" in capsys.readouterr().err
    for line, message in {
        "{": "in.jsonl:2: not valid JSON",
        '{"id": 1}': "in.jsonl:2: neither prompt nor conversations",
        '{"prompt": " "}': "in.jsonl:2: the prompt is empty",
        '{"id": 1, "prompt": "b"}': "in.jsonl:2: the id 1 was there before",
        '{"id": 2, "prompt": "b", "image": "gone.png"}': "gone.png: no such image",
        '{"id": 2, "prompt": "b", "image": 0}': "in.jsonl:2: image: found 0, expected text",
        '{"id": 2, "prompt": "\\ud800"}': "in.jsonl:2: '\\\\ud800' holds half a character",
    }.items():
        (tmp_path / "in.jsonl").write_text('{"id": 1, "prompt": "a"}\n' + line + "\n")
        assert tool.main(["--checkpoint", hf, "--input", "in.jsonl", "--output", "out.jsonl"]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "out.jsonl").write_text("{}\n")
    assert tool.main(["--checkpoint", hf, "--input", "in.jsonl", "--output", "out.jsonl"]) == 2
    assert "out.jsonl:1: field 'id' is missing. Not an answer of an earlier run" in capsys.readouterr().err


def test_a_prompt_beyond_the_window_is_refused_before_the_start(answers, tmp_path):
    lines = [{"id": 1, "prompt": "what"}, {"id": 2, "prompt": "what " * 300}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    status, output = answers("--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl")
    assert status == 2
    assert "error: 2: the prompt has" in output and "more than the window of 256" in output
    assert not (tmp_path / "out.jsonl").exists()


def test_help_has_an_example(tool, capsys):
    with pytest.raises(SystemExit):
        tool.main(["--help"])
    assert "python tools/generate.py --checkpoint" in capsys.readouterr().out
