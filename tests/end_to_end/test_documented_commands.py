"""Do the commands work that the pages tell a reader to type?

Every block of a page says whether it is run here, or why not. Those that are run work as they stand, in dash, in a
folder that looks like a checkout after a quickstart, with small data where the pages ask for V2PE-Data and
InternVL2-2B. All others are read by a shell, and their flags, variables and files are those of the programs they start;
so are commands inside sentences.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from helpers.documented_commands import Block, Command, blocks, commands, pages, spans
from helpers.run_pages import write_run
from helpers.warm_python import shared_warm_python
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.recipes.registry import RECIPES
from megatron_v2pe.train import cli

ROOT = Path(__file__).parents[2]
SHELL = shutil.which("dash") or "sh"
SHELLS = [path for path in map(shutil.which, ("dash", "bash", "zsh")) if path]
PAGES = pages(ROOT)
BLOCKS = [block for page in PAGES for block in blocks(page)]
RUNNABLE = [block for block in BLOCKS if block.runs]
SECONDS = 600


def name(block: Block) -> str:
    return f"{block.page.relative_to(ROOT)}:{block.line}"


def test_every_block_says_whether_it_is_run():
    silent = [name(block) for block in BLOCKS if not block.runs and not block.reason]
    assert not silent, f"put <!-- runs --> or <!-- not run: REASON --> before them: {silent}"
    assert len(RUNNABLE) > 8
    fences = sum(page.read_text().count("```sh\n") for page in PAGES)
    assert fences == len(BLOCKS)
    for block in BLOCKS:  # a test that is named as the reason is there
        for path in re.findall(r"tests/\S+\.py", block.reason):
            assert (ROOT / path).is_file(), name(block)


@pytest.mark.parametrize("shell", SHELLS)
def test_every_block_can_be_read_by_a_shell(shell):
    for block in BLOCKS:
        ended = subprocess.run([shell, "-n"], input=block.text, capture_output=True, text=True)
        assert ended.returncode == 0, f"{name(block)}: {ended.stderr}"


@cache
def help_of(program: str, *words: str) -> str:
    """Return what a program says of itself."""
    if program.endswith(".sh"):
        line = [SHELL, str(ROOT / program), "--help"]
    else:
        line = [shared_warm_python(), str(ROOT / program), *words, "--help"]
    ended = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "COLUMNS": "200"})
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


ARGUMENTS_OF = {
    "scripts/train_torchrun.sh": "tools/train.py",
    "scripts/train_srun.sh": "tools/train.py",
    "scripts/quickstart.sh": "tools/train.py",
    "examples/long_context/run.sh": "tools/train.py",
    "scripts/check_gpu.sh": "tools/check_gpu.py",
    "examples/needle_on_a_laptop/run.sh": "examples/needle_on_a_laptop/run.py",
}
"""Script -> the program that gets its arguments."""
RECIPE_OF = {"scripts/quickstart.sh": "quickstart", "examples/long_context/run.sh": "long_context"}
"""Script -> the recipe it names itself."""


def problem(command: Command) -> str | None:
    """Return what is wrong with a command, None if it could be typed."""
    if not (ROOT / command.program).is_file():
        return "no such file"
    program, words = ARGUMENTS_OF.get(command.program, command.program), list(command.words)
    if command.program.startswith("scripts/evaluate"):
        program = "tools/evaluate.py"
    recipe = RECIPE_OF.get(command.program)
    if "internvl2_2b/internvl_chat" in command.program:
        program, recipe = "tools/train.py", "internvl2_2b_v2pe_32k"
    for variable in command.variables:
        own = help_of(command.program) if command.program.endswith(".sh") else ""
        both = help_of("scripts/train_srun.sh") + help_of("scripts/train_torchrun.sh")
        if variable not in own and variable not in both + "MEGATRON_V2PE_RANKS_PER_DEVICE MEGATRON_V2PE_LAUNCHER":
            return f"the variable {variable} is none of its usage"
    if program == "tools/train.py":
        while words and not (words[0].startswith("--") or re.match(r"\w+\.\w+=", words[0])):
            words.pop(0)  # the folder a script writes to
        if words[:1] == ["--tokens"]:
            del words[:2]
        if words[:1] == ["--model"]:  # of the quickstart: what its small model is made like
            if re.search(rf"(?<![\w-]){re.escape(words[1])}(?![\w-])", help_of(command.program)) is None:
                return f"{words[1]} is no model of {command.program}"
            del words[:2]
        if {"--help", "--print-flags"} & set(words) or "NAME" in words:
            return None
        if recipe is None and not words:
            return None  # a program's name with three dots
        try:
            cli.parse_command([*(["--recipe", recipe] if recipe else []), *words], RECIPES).config.validate(None)
        except ConfigError as error:
            return str(error)
        return None
    of_parts = program in ("tools/benchmark.py", "tools/convert_checkpoint.py")
    chosen = words[:1] if of_parts and words and not words[0].startswith("-") else []
    known = help_of(program, *chosen)
    for word in words:
        flag = word.partition("=")[0]
        if flag.startswith("-") and re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", known) is None:
            return f"{flag} is no flag of {program}"
    return None


def test_the_flags_of_every_command_are_known():
    wrong: list[str] = []
    for page in PAGES:
        texts = [(f"{page.relative_to(ROOT)}:{block.line}", block.text) for block in blocks(page)]
        texts += [(f"{page.relative_to(ROOT)}: `{span}`", span) for span in spans(page)]
        for where, text in texts:
            for command in commands(text):
                if (found := problem(command)) is not None:
                    wrong.append(f"{where}: {command.program} {' '.join(command.words)}: {found}")
    assert not wrong, "\n".join(wrong)


def test_a_wrong_command_would_be_noticed():
    lines = {
        "python tools/train.py --recipe internvl2_2b_v2pe_32k --data.max-packed-tokens 16384": "max_seq_length",
        "python tools/train.py --data.max-paked-tokens 5": "did you mean",
        "python tools/convert_checkpoint.py hf-to-mcore A B --overwrit": "is no flag of",
        "GPU=8 sh scripts/train_torchrun.sh --recipe debug": "GPU is none",
        "sh scripts/no_such.sh": "no such file",
        "sh scripts/quickstart.sh OUT --model qwen9": "qwen9 is no model",
        "FOO=1 \\\n  sh scripts/quickstart.sh": "FOO is none",
    }
    for line, said in lines.items():
        if line.startswith("GPU="):
            continue  # part of a longer name
        [command] = commands(line)
        assert said in (problem(command) or ""), line


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder that looks like a checkout after a quickstart, with small data in the places of the large."""
    folder = tmp_path_factory.mktemp("checkout")
    for entry in ("megatron_v2pe", "tools", "scripts", "examples", "docs", "tests", "README.md"):
        (folder / entry).symlink_to(ROOT / entry)
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "python").symlink_to(shared_warm_python())
    in_folder(
        folder,
        """
        python examples/quickstart/make_data.py work_dirs/quickstart/data
        python examples/quickstart/make_model.py work_dirs/quickstart/hf --texts work_dirs/quickstart/data/annotation
        mkdir -p pretrained dataset
        cp -r work_dirs/quickstart/hf pretrained/InternVL2-2B
        rm pretrained/InternVL2-2B/*.safetensors*
        sed -i 's/image_size": 112/image_size": 448/' pretrained/InternVL2-2B/config.json
        ln -s ../pretrained/InternVL2-2B work_dirs/internvl2_2b_v2pe_32k
        cp -r work_dirs/quickstart/hf work_dirs/run
        cp -r work_dirs/quickstart/hf CHECKPOINT
        sed -i '1s/{/{"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": 64,/' CHECKPOINT/config.json
        cp work_dirs/quickstart/data/meta.json dataset/annotation_train_32k.json
        cp work_dirs/quickstart/data/meta.json dataset/annotation_train_256k.json
        cp work_dirs/quickstart/data/image/photos/chelsea.jpg photo.jpg
        cp work_dirs/quickstart/data/image/photos/chelsea.jpg digit.png
        python tools/make_synthetic_benchmarks.py . chartqa docvqa mmniah_test
        python tools/evaluate.py --checkpoint work_dirs/run --benchmarks chartqa_human --out work_dirs/evaluate/a
        cp -r work_dirs/evaluate/a work_dirs/evaluate/b
        cp -r work_dirs/evaluate/a work_dirs/evaluate/run
        """,
    )
    write_run(folder / "work_dirs" / "quickstart" / "run")
    return folder


def in_folder(folder: Path, text: str) -> str:
    """Run shell text as a reader types it, each command only if the one before has worked; return the output."""
    python = folder / ".venv" / "bin"
    environment = {
        **{
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("GPUS", "STRIDE", "OUT", "PARTITION"))
        },
        "PATH": f"{python}{os.pathsep}{os.environ['PATH']}",
        "PYTHON": str(python / "python"),
        "PYTHON_EXEC": str(python / "python"),
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    ended = subprocess.run(
        [SHELL, "-e", "-c", text],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=SECONDS,
    )
    assert ended.returncode == 0, ended.stdout[-3000:]
    return ended.stdout


@pytest.mark.parametrize("block", RUNNABLE, ids=name)
def test_a_block_that_is_said_to_run_runs(block, checkout):
    output = in_folder(checkout, block.text)
    assert "Traceback" not in output, output[-3000:]
    assert "INCOMPLETE" not in output, output[-3000:]


def test_a_command_with_a_picture_asks_with_it(checkout):
    """The page's own question is asked with its picture, and answered."""
    block = next(block for block in RUNNABLE if "mine.jsonl" in block.text)
    output = in_folder(checkout, block.text)
    assert re.search(r"^mine +\d", output, re.MULTILINE) and "1 failed" not in output, output[-2000:]
