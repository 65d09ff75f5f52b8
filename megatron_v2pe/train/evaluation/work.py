"""Benchmarks asked between two steps, in the processes of the run, of the weights as they are.

The model that is asked has modules of its own around the training's parameters (`models/same_weights.py`), speaks over
process groups of its own (`parallel/side_groups.py`), and is gone when the scores are there, with its caches. Nothing
that a step reads is touched. Questions are dealt out, asked, judged and written by the same code as in
`tools/evaluate.py`, into `<checkpoint.save>/evaluation/iter_XXXXXXX`, a folder that the report tool reads.

An error never ends the run. One that belongs to a question is its answer's error, as in the tool. Any other ends the
asking of its benchmark on all ranks: each piece of work is done under `Agreement`, which gathers what every rank met
before the next piece begins, over a group in which ranks wait as long as it takes.
"""

from __future__ import annotations

import gc
import hashlib
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_v2pe.base.config_tree import to_dict
from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.checkpoint.resolve import hf_folder
from megatron_v2pe.checkpoint.trained import model_of_run
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.device import watchdog
from megatron_v2pe.device.agreement import Agreement, Outcome
from megatron_v2pe.device.device import Device
from megatron_v2pe.device.rank_errors import raise_on_all_ranks
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.evaluate.batching import default_workers
from megatron_v2pe.evaluate.crash_notes import remove_notes
from megatron_v2pe.evaluate.provenance import settle
from megatron_v2pe.evaluate.results import as_line, score
from megatron_v2pe.evaluate.runner import Runner
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.generate.end_tokens import end_tokens
from megatron_v2pe.generate.policy import inference_policy
from megatron_v2pe.generate.pretrained import Pretrained, asked_in_training
from megatron_v2pe.generate.prompt import asked_with, checkpoint_tiling
from megatron_v2pe.models.layer_specs import choose_spec
from megatron_v2pe.models.same_weights import asked_beside_training
from megatron_v2pe.models.vlm import InternVLModel
from megatron_v2pe.models.weights_digest import weights_digest
from megatron_v2pe.parallel.side_groups import SideGroups, patient_world
from megatron_v2pe.train.after_step import AfterStep
from megatron_v2pe.train.config import ExperimentConfig
from megatron_v2pe.train.ddp import gather_parameters
from megatron_v2pe.train.evaluation.benchmarks import Asked, read
from megatron_v2pe.v2pe.settings import Stride

FOLDER = "evaluation"
"""Folder of a run in which answers and scores are kept, one folder for each step."""
_log = get_logger(__name__)


@dataclass(frozen=True)
class _Place:
    """Where the answers at one stride go."""

    stride: Stride | None
    """None: the run's positions have none."""
    folder: Path
    suffix: str
    """What follows the benchmark's name in the name of its score."""


@dataclass(frozen=True)
class Trained:
    """What is asked: the model of a run, where it comes from and where it is."""

    config: ExperimentConfig
    """Settings of the run."""
    start: Path
    """Megatron checkpoint the run starts from."""
    tokenizer: Tokenizer
    vocab_size: int
    """Rows of the vocabulary, without padding."""
    model: InternVLModel
    wrapped: DistributedDataParallel
    groups: ProcessGroupCollection
    device: Device
    dtype: torch.dtype
    """Type of the parameters."""


class Evaluation(AfterStep):
    """Asks the benchmarks of a run."""

    name = "evaluation"

    def __init__(self, run: Trained) -> None:
        """Read the questions; every rank calls this before the first step.

        Args:
            run: what is asked.

        Raises:
            ConfigError: an unknown benchmark, or settings that do not go together.
            DataError: data of a benchmark are missing or damaged; names it.
        """
        settings = run.config.evaluation
        assert run.config.checkpoint.save is not None, "see EvaluationConfig.validate"
        self._run, self._settings = run, settings
        self._folder = Path(run.config.checkpoint.save) / FOLDER

        def prepared() -> list[Asked]:
            on_cuda = run.device.kind == "cuda"
            if not run.config.adapter.is_on and choose_spec(run.config.model.spec, on_cuda) != "local":
                raise ConfigError(
                    "evaluation.benchmarks asks layers of model.spec local, but auto chose te on this machine: set "
                    "model.spec local"
                )
            return read(settings)

        self._asked = raise_on_all_ranks(prepared)
        model = model_of_run(run.start, to_dict(run.config))
        llm = replace(model.llm, vocab_size=run.vocab_size)
        self._model = replace(model, llm=llm)
        self._ends = end_tokens(hf_folder(run.start), run.tokenizer, self._model.template, llm.vocab_size)
        self._strides = settings.parsed_strides() or [inference_policy(self._model).stride]
        for stride in self._strides:
            inference_policy(self._model, stride)
        self._agreement = Agreement(patient_world())

    def is_due(self, iteration: int, is_last: bool) -> bool:
        """See `AfterStep`."""
        interval = self._settings.interval
        return (interval is not None and iteration % interval == 0) or (self._settings.at_end and is_last)

    def run(self, iteration: int) -> Mapping[str, float] | None:
        """Ask all benchmarks; return their scores in percent, how many have none, and what it took.

        Args:
            iteration: steps done.

        Returns:
            `evaluation/<benchmark>` for each that has a score; `evaluation/failed`, the benchmarks without one;
            `evaluation/failed_questions`, the questions that ended in an error; `evaluation/seconds`; and on CUDA
            `evaluation/memory_gib`, the peak of this rank while it was asking. None where a rank was asked to stop.
        """
        began = time.monotonic()
        gather_parameters(self._run.wrapped)
        _give_memory_back(reset_peak=False)
        values: dict[str, float] = {}
        failed = failed_questions = 0
        places = self._places(self._folder / f"iter_{iteration:07d}")
        prepared = self._prepare(places)
        opened = _Opened(self)
        try:
            for place in places:
                for asked in self._asked:
                    if self._is_left(iteration):
                        return None
                    outcome = Outcome[dict[str, Any]](problem=prepared)
                    if prepared is None:
                        outcome = self._ask(asked, place, opened, began)
                    name = f"{asked.benchmark.name}{place.suffix}"
                    result = outcome.result or {}
                    failed_questions += len(result.get("failed", ()))
                    if outcome.problem is None and not result["missing"] and "score" in result:
                        values[f"{FOLDER}/{name}"] = result["score"]
                        continue
                    if outcome.problem is None and self._is_left(iteration):
                        return None
                    failed += 1
                    self._warn(iteration, name, outcome)
        finally:
            opened.close()
        values |= {f"{FOLDER}/failed": failed, f"{FOLDER}/failed_questions": failed_questions}
        values[f"{FOLDER}/seconds"] = time.monotonic() - began
        if self._run.device.kind == "cuda":
            values[f"{FOLDER}/memory_gib"] = self._run.device.peak_memory_bytes() / 2**30
        _give_memory_back(reset_peak=True)
        return values

    def _is_left(self, iteration: int) -> bool:
        """Tell whether a rank has been asked to stop; the same on every rank."""
        asked = self._agreement.of_all(lambda: self.is_asked_to_stop()).result or []
        if any(asked):
            _log.info(
                "evaluation after step %d is left: the run was asked to stop, and goes on with it later", iteration
            )
        return any(asked)

    def close(self) -> None:
        """See `AfterStep`."""
        self._agreement.close()

    def _places(self, folder: Path) -> list[_Place]:
        if not self._settings.strides:
            return [_Place(self._strides[0], folder, "")]
        names = {stride: f"stride_{str(stride).replace('/', '-')}" for stride in self._strides}
        return [_Place(stride, folder / name, f"/{name}") for stride, name in names.items()]

    def _prepare(self, places: Sequence[_Place]) -> str | None:
        """Note in each folder what its answers come from; answers of other weights are removed.

        A run that was killed in the middle of an evaluation comes to the same step again. Where it has the same weights
        to the bit, it goes on with the answers that are there.

        Returns:
            Why nothing can be asked; None where all is ready.
        """
        weights = self._agreement.of_all(lambda: weights_digest(self._run.model))
        if weights.problem is not None or weights.result is None:
            return weights.problem
        digest = hashlib.blake2b(" ".join(weights.result).encode(), digest_size=32).hexdigest()
        settings = {
            "checkpoint": digest,
            "rope_pos_id_version": inference_policy(self._model).version,
            "max_num": self._settings.max_num or "each benchmark's own",
            "mode": self._settings.mode,
            "dtype": self._run.config.train.precision,
            "window": self._settings.window or "any",
            **asked_with(self._model),
        }
        device = self._run.device.describe()

        def settled() -> None:
            for place in places:
                stated = {**settings, "rope_pos_id_stride": str(place.stride)}
                try:
                    settle(place.folder, stated, device)
                except ConfigError:  # of other weights, or damaged
                    shutil.rmtree(place.folder)
                    settle(place.folder, stated, device)

        return self._agreement.on_first_rank(settled).problem

    def _ask(self, asked: Asked, place: _Place, opened: _Opened, began: float) -> Outcome[dict[str, Any]]:
        """Ask one benchmark at one stride, and score it; the result is that of `results.score`."""
        benchmark, folder = asked.benchmark, place.folder / asked.benchmark.name
        agree = self._agreement
        if (problem := opened.make_ready(place.stride)) is not None:
            return Outcome(problem=problem)
        looked = agree.on_first_rank(lambda: opened.runner(began).look(benchmark, asked.questions, folder))
        if looked.problem is not None or looked.result is None:
            return Outcome(problem=looked.problem)
        settled, ended = looked.result
        watchdog.progress(f"asking {benchmark.name}")
        done = agree.everywhere(
            lambda: opened.runner(began).ask_share(benchmark, asked.questions, settled, ended, folder),
            opened.give_up,
        )
        if done.problem is not None:
            opened.close()
            return Outcome(problem=done.problem)
        watchdog.progress(f"scoring {benchmark.name}")
        return agree.on_first_rank(lambda: self._scored(asked, folder))

    def _scored(self, asked: Asked, folder: Path) -> dict[str, Any]:
        remove_notes(folder)
        limit = asked.limit
        root = Path(self._settings.root)
        result = score(
            asked.benchmark, asked.questions, folder, root, self._settings.mode, limit, sampled=limit is not None
        )
        _log.info("%s", printable(as_line(result)))
        return {name: result[name] for name in ("score", "unscored", "missing", "failed") if name in result}

    def _warn(self, iteration: int, name: str, outcome: Outcome[dict[str, Any]]) -> None:
        if dist.get_rank():
            return
        result = outcome.result or {}
        why = outcome.problem or result.get("unscored") or f"{len(result.get('missing', ()))} questions were not asked"
        if outcome.problem is None and result.get("missing"):
            why += ", for evaluation.minutes was over"
        _log.warning("evaluation after step %d: no score of %s, training goes on: %s", iteration, name, printable(why))


class _Opened:
    """The model that is asked and its process groups, opened when they are needed first, or again after a failure."""

    def __init__(self, work: Evaluation) -> None:
        self._work = work
        self._sides: SideGroups | None = None
        self._pretrained: Pretrained | None = None

    def make_ready(self, stride: Stride | None) -> str | None:
        """Open what is not open, at a stride; every rank calls this, and has the same open.

        Returns:
            What went wrong on any rank; None where the model can be asked.
        """
        work = self._work
        if self._sides is None:
            self._sides = SideGroups.open(work._run.groups)
        done = work._agreement.everywhere(lambda: self._build(stride), self.give_up)
        if done.problem is not None:
            self.close()
        return done.problem

    def _build(self, stride: Stride | None) -> None:
        work, run = self._work, self._work._run
        if self._pretrained is None:
            assert self._sides is not None
            twin = asked_beside_training(run.model, self._sides.replaces)
            settings = work._settings
            sizes = settings.prefill_tokens, settings.vision_cache_mb << 20
            self._pretrained = asked_in_training(
                twin, work._model, run.tokenizer, work._ends, run.device, run.dtype, *sizes
            )
        if stride is not None and stride != self._pretrained.policy.stride:
            self._pretrained = self._pretrained.at_stride(stride)

    def runner(self, began: float) -> Runner:
        """Return what asks the model, until `evaluation.minutes` are over."""
        work, settings, pretrained = self._work, self._work._settings, self._pretrained
        assert pretrained is not None
        workers, minutes = settings.image_workers, settings.minutes
        return Runner(
            pretrained,
            checkpoint_tiling(work._model, settings.max_num),
            settings.batch_size,
            max_num=settings.max_num,
            window=settings.window,
            image_workers=default_workers(pretrained.device.torch_device) if workers is None else workers,
            enough=lambda: work.is_asked_to_stop() or minutes is not None and time.monotonic() - began > 60 * minutes,
        )

    def give_up(self) -> None:
        """Let go of everything on a rank that failed, so that those that wait for it learn of it."""
        self._release()
        if self._sides is not None:
            self._sides.give_up()

    def close(self) -> None:
        """Let go of everything; what it took is given back."""
        self._release()
        if self._sides is not None:
            self._sides.close()
            self._sides = None
        _give_memory_back(reset_peak=False)

    def _release(self) -> None:
        if self._pretrained is not None:
            self._pretrained.engine.release()
            self._pretrained = None


def _give_memory_back(reset_peak: bool) -> None:
    """Return cached blocks of the device to it, and count its peak anew where asked."""
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        if reset_peak:
            torch.cuda.reset_peak_memory_stats()
