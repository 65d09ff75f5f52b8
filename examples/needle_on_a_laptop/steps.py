"""The experiment's steps, each a command of the project's tools with a mark when it is done.

A step that has its mark is not run again; one that was interrupted is, after what it left is removed, unless its tool
goes on by itself: evaluation from the last answer, training from where a stop on request or the end of a part saved it.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pictures
import start_model
import train_vit
import write_data
from commands import Command, execute, execute_lanes, launcher, tool
from settings import LAYOUTS, ORDINARY, ROWS, SIDE_BY_SIDE, STRIDES, V2PE, Settings

from megatron_v2pe.checkpoint.checksums import CHECKSUMS
from megatron_v2pe.checkpoint.hf.random_weights import write_json
from megatron_v2pe.train.metrics_file import read_metrics
from megatron_v2pe.workshop.synthetic.small_families import small_family

TRAINING = Path(__file__).with_name("training.yaml")
PROCESSES = 2
MODELS = {"default": "ordinary positions", "v2pe": "V2PE, a stride drawn per image"}
"""The two that are compared: name -> what sets them apart."""
_PROCESSES = {"GPUS_PER_NODE": str(PROCESSES)}
_ONE_PROCESS = {"GPUS_PER_NODE": "1", "OMP_NUM_THREADS": "1"}
"""Environment of launchers that share the two cores, or have one of them."""
PACK_TOKENS = {"short": 2432, "long": 4096}
"""10 short or 16 long documents; two packs a step."""
BOUND = 0.1
"""Mean loss over the last `BOUND_OVER` steps below which names are bound to pictures. Where a model sees the digits but
not whose they are, it is 0.46: ln 4 on every third of the tokens that count."""
BOUND_OVER = 20


class StepError(Exception):
    """A step failed; the message says which and what to do."""


@dataclass
class Progress:
    """Which steps are done, and how long they took."""

    folder: Path
    total: int
    number: int = 0
    began: float = field(default_factory=time.monotonic)

    def step(self, name: str, title: str, action: Callable[[], object], leftovers: Sequence[Path] = ()) -> None:
        """Do a step unless it is done.

        Args:
            name: of its mark.
            title: for the console.
            action: what it does; a result is kept in the mark.
            leftovers: what an interrupted try may have left, to be removed before.
        """
        self.number += 1
        mark = self.folder / "done" / f"{name}.json"
        print(f"\n[{self.number}/{self.total}] {title}", flush=True)
        if mark.is_file():
            print("      done before")
            return
        for path in leftovers:
            if path.exists():
                shutil.rmtree(path)
        since = time.monotonic()
        try:
            result = action()
        except subprocess.CalledProcessError as error:
            raise StepError(
                f"step {self.number} ({title}) failed with status {error.returncode}; its messages stand above, what "
                f"it wrote is in {self.folder}. The same command goes on from here"
            ) from error
        seconds = time.monotonic() - since
        write_whole(mark, json.dumps({"seconds": round(seconds, 1), "result": result}) + "\n")
        print(f"      {seconds:.0f} s ({time.monotonic() - self.began:.0f} s in all)", flush=True)

    def result(self, name: str) -> object:
        """Return what a step that is done gave."""
        return json.loads((self.folder / "done" / f"{name}.json").read_text(encoding="utf-8"))["result"]


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def losses(run: Path) -> list[float]:
    """Return the losses a training run has logged, one a step.

    Raises:
        StepError: it has logged nothing.
    """
    path = run / "logs" / "metrics.jsonl"
    if not path.is_file():
        raise StepError(f"{path}: no such file; has the run come so far?")
    return [row["loss"] for row in read_metrics(path, numbers=("loss",))]


def _last(losses: Sequence[float]) -> float:
    return statistics.fmean(losses[-BOUND_OVER:])


def steps_of(settings: Settings) -> int:
    """Return how many steps an experiment has."""
    trainings = 2 if settings.parallel == SIDE_BY_SIDE else 3
    return 1 + settings.seeds * (4 + trainings + 2)


def run(out: Path, settings: Settings) -> None:
    """Do all steps of all seeds."""
    progress = Progress(out, steps_of(settings))
    progress.step("pictures", "real pictures: digits and photographs", lambda: pictures.write(out / "images"))
    for seed in range(settings.seeds):
        Seed(out, settings, seed, progress).run()


@dataclass(frozen=True)
class Seed:
    """One repetition of the experiment."""

    out: Path
    settings: Settings
    seed: int
    progress: Progress

    @property
    def folder(self) -> Path:
        """Return where it writes."""
        return self.out / f"seed_{self.seed}"

    def run(self) -> None:
        """Do its steps."""
        start = self.folder / "start"
        self._step(
            "vision", "a tiny InternVL2 and its tokenizer; the vision tower learns to see", self._vision, [start]
        )
        self._step("data", "documents to train on", self._data)
        for stage in ("short", "long"):
            index = self.folder / f"indexed_{stage}"
            self._step(f"index_{stage}", f"index of the {stage} documents", lambda s=stage: self._index(s), [index])
        self._step("train_short", "train on short documents, until names are bound to pictures", self._until_bound)
        for models in [tuple(MODELS)] if self.settings.parallel == SIDE_BY_SIDE else [(name,) for name in MODELS]:
            title = f"train on long documents with {' and with '.join(MODELS[name] for name in models)}"
            self._step(f"train_{'_'.join(models)}", title, lambda m=models: self._train_long(*m))
        self._step("export", "export the checkpoints", self._export, [self.folder / "exported"])
        longest = self.settings.lengths[-1]  # a mark for each, so that longer prompts can be asked later
        title = f"ask both models up to {longest} tokens, in two lanes (the second's messages go into ask_*.log)"
        self._step(f"ask_to_{longest}", title, self._ask)

    def _step(self, name: str, title: str, action: Callable[[], object], leftovers: Sequence[Path] = ()) -> None:
        heading = f"{title} (seed {self.seed})" if self.settings.seeds > 1 else title
        self.progress.step(f"seed_{self.seed}_{name}", heading, action, leftovers)

    def _vision(self) -> float:
        start, megatron = self.folder / "start", self.folder / "start_megatron"
        start_model.make(start, self.seed, self.settings.model)
        execute(tool("convert_checkpoint.py", "hf-to-mcore", start, megatron, "--overwrite"))
        ceiling = train_vit.train(megatron, start, self.settings.vision_steps, self.seed)
        shutil.rmtree(megatron)
        print(f"      digits never seen that the tower reads right: {ceiling:.1%}")
        return ceiling

    def _data(self) -> None:
        costs, images = start_model.measure(self.folder / "start", self.settings.model), self.out / "images"
        documents = {"short": self.settings.short_documents, "long": self.settings.long_documents}
        for stage, number in documents.items():
            write_data.write_training(self.folder, images, costs, stage, number, self.seed)

    def _index(self, stage: str) -> None:
        settings = ["--config", TRAINING, "--data.meta-path", self.folder / f"{stage}.json"]
        settings += ["--model.model-name-or-path", self.folder / "start"]
        settings += ["--data.max-packed-tokens", PACK_TOKENS[stage], *self._template]
        execute(
            tool("preprocess_data.py", "--out", self.folder / f"indexed_{stage}", "--workers", PROCESSES, *settings)
        )

    def _until_bound(self) -> dict[str, object]:
        """Train part after part until the loss says that binding is learned, and one part more; return steps and loss.

        Names bound last are confused with each other at first: a mistake that grows with the length of a document.
        """
        bound = False
        for part in range(1, self.settings.short_parts + 1):
            losses = self.train_short(part)
            before, bound = bound, _last(losses) < BOUND
            if before and bound:
                break
            state = "names are bound, one part more" if bound else "names are not bound yet"
            print(f"      loss {_last(losses):.2f} after {len(losses)} steps: {state}")
        return {"steps": len(losses), "loss": _last(losses), "bound": bound}

    def train_short(self, part: int) -> list[float]:
        """Train on short documents up to the end of a part; return the losses from the first step on.

        Positions are ordinary, as those of a model that V2PE is given to later. The rate is constant, because nobody
        knows when binding is learned, which happens all at once.
        """
        settings = self.settings
        arguments = ["--optimizer.lr-decay-style", "constant"]
        arguments += ["--train.train-steps", settings.short_part * settings.short_parts]
        arguments += self._training("short", self.folder / "start", "short", settings.short_part * part)
        execute(launcher("train_torchrun.sh", _PROCESSES, *arguments))
        return self._losses("short", settings.short_part * part)

    def train_long(self, *models: str) -> dict[str, list[float]]:
        """Go on on long documents with models of `MODELS`, all at the same time; return the losses of each.

        A model alone has two processes, several have one each: then no core waits for another.
        """
        steps, alone = self.settings.long_steps, len(models) == 1
        environment = _PROCESSES if alone else _ONE_PROCESS
        started = []
        for number, name in enumerate(models):
            arguments = self._training(name, self.folder / "short", "long", steps)
            arguments += ["--optimizer.min-lr", "2e-4", "--train.train-steps", steps]
            if name == "v2pe":
                arguments += ["--v2pe.rope-pos-id-version", "v2pe_rnd", "--v2pe.strides", *STRIDES]
            messages = self.folder / f"{name}.log" if number else None  # one progress bar on the console
            started.append(launcher("train_torchrun.sh", environment, *arguments, messages=messages))
        execute(*started)
        return {name: self._losses(name, steps) for name in models}

    def _train_long(self, *models: str) -> dict[str, float]:
        return {name: _last(found) for name, found in self.train_long(*models).items()}

    def _training(self, run: str, before: Path, stage: str, steps: int) -> list[object]:
        """Return arguments of tools/train.py: from one folder into another up to a step, on a stage's documents."""
        arguments = ["--config", TRAINING, *LAYOUTS[self.settings.parallel], "--train.seed", self.seed]
        arguments += ["--model.model-name-or-path", before, "--checkpoint.save", self.folder / run]
        arguments += ["--model.converted-dir", self.folder / "converted"]
        arguments += ["--data.indexed-path", self.folder / f"indexed_{stage}"]
        arguments += ["--data.max-packed-tokens", PACK_TOKENS[stage], "--train.global-batch-size", PROCESSES]
        return [*arguments, *self._template, "--train.exit-step", steps]

    @property
    def _template(self) -> list[object]:
        """Return the setting that names the family's conversation template."""
        return ["--data.template", small_family(self.settings.model).template]

    def _losses(self, run: str, steps: int) -> list[float]:
        logged = losses(self.folder / run)
        if len(logged) < steps:
            problem = f"training of {run} stopped after step {len(logged)} of {steps}"
            raise StepError(f"{problem}; the same command goes on from there")
        return logged[:steps]  # more, where a further part had begun before an interruption

    def _export(self) -> None:
        exported = self.folder / "exported"
        version = ["--rope-pos-id-version", "v2pe_fix", "--rope-pos-id-stride", "1"]
        targets = [("default", "default", []), ("v2pe", "v2pe", []), ("default", "default_read_as_v2pe", version)]
        execute(
            *(
                tool("convert_checkpoint.py", "mcore-to-hf", self.folder / run, exported / target, *more)
                for run, target, more in targets
            )
        )
        _scaled(exported / "default", exported / "default_dynamic", "dynamic", 1)

    def _ask(self) -> None:
        """Ask all rows of the table: in two lanes, a process each, so that no core waits for another."""
        lengths, pages, words = self.settings.lengths, self._files("pages"), self._files("words")
        costs, exported = start_model.measure(self.folder / "start", self.settings.model), self.folder / "exported"
        write_data.write_questions(self.folder, self.out / "images", costs, lengths, self.settings.questions, self.seed)
        here = [
            self._asking(ORDINARY.checkpoint, ORDINARY.checkpoint, pages + words),
            self._asking("default_dynamic", "default_dynamic", pages),
        ]
        for length, file in list(zip(lengths, pages, strict=True))[1:]:  # linear interpolation has a factor for each
            times = length // start_model.TRAINED_LENGTH
            _scaled(exported / "default", exported / f"default_linear_{times}", "linear", times)
            here.append(self._asking(f"default_linear_{times}", f"default_linear/{times}", [file]))
        strides = {
            checkpoint: [row.stride for row in ROWS if row.checkpoint == checkpoint]
            for checkpoint in ("default_read_as_v2pe", V2PE.checkpoint)
        }
        read_as_v2pe, trained = strides.items()
        here.append(self._asking(read_as_v2pe[0], read_as_v2pe[0], pages, "--strides", *read_as_v2pe[1]))
        # What goes into one folder of answers is asked in one lane: an evaluation holds its folder.
        beside = [
            self._asking(trained[0], trained[0], files, "--strides", *asked, messages=self.folder / f"ask_{what}.log")
            for what, files, asked in (("pages", pages, trained[1]), ("words", words, [V2PE.stride]))
        ]
        execute_lanes(here, beside)
        for path in sorted((self.folder / "answers").glob("**/results.json")):
            results = json.loads(path.read_text(encoding="utf-8"))
            if lost := len(results["missing"]) + len(results["failed"]):
                raise StepError(f"{path}: {lost} questions without an answer; the same command asks them again")

    def _files(self, haystack: str) -> list[Path]:
        return [self.folder / "questions" / f"{haystack}_{length}.jsonl" for length in self.settings.lengths]

    def _asking(
        self, checkpoint: str, answers: str, questions: Sequence[Path], *more: object, messages: Path | None = None
    ) -> Command:
        """Return the command that asks an exported checkpoint; `answers` is where below `answers/` it writes."""
        arguments = ["--batch-size", "16", "--converted-dir", self.folder / "converted", "--device", "cpu", *more]
        environment = {**_ONE_PROCESS, "GPUS": "1", "OUT": str(self.folder / "answers" / answers)}
        folder = self.folder / "exported" / checkpoint
        files = ",".join(map(str, questions))
        return launcher("evaluate.sh", environment, folder, files, *arguments, messages=messages)


def _scaled(source: Path, target: Path, kind: str, factor: int) -> None:
    """Copy an HF folder whose rotary embedding is to be scaled from now on; weights are linked, not copied."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, copy_function=_linked)
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    config["llm_config"]["rope_scaling"] = {"type": kind, "factor": float(factor)}
    (target / "config.json").unlink()
    (target / CHECKSUMS).unlink(missing_ok=True)  # of what was exported; this is another configuration
    write_json(target / "config.json", config)


def _linked(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)
    return target
