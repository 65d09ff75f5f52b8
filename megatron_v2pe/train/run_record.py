"""What a run writes down of itself beside its metrics: settings, where it ran, what it drew of its data, some packs.

`run_record.json` lies beside `metrics.jsonl` and is written anew at every checkpoint, every `logging.page_interval`
steps and at the end; then the run's page is made (`train/page/`). Counts are kept in the checkpoint, so that a run that
goes on counts every step once. Whatever fails here is logged, and the run goes on.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from megatron.core import parallel_state

from megatron_v2pe.base.config_tree import to_dict
from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.base.whole_files import put_in_place, write_bytes, write_text
from megatron_v2pe.data.loader import PackLoader
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.data.types import Batch
from megatron_v2pe.errors import DataError
from megatron_v2pe.train.after_step import AfterStep
from megatron_v2pe.train.data_counts import DataCounts
from megatron_v2pe.train.data_feed import DataFeed
from megatron_v2pe.train.header import layout_words, parameter_words
from megatron_v2pe.train.memory import MemoryBudget
from megatron_v2pe.train.pack_samples import PackSample, is_kept, sample_of
from megatron_v2pe.train.page.record_file import PACKS, RECORD, WrittenRecord, read_record
from megatron_v2pe.version import __version__

UNREADABLE = "run_record.unreadable.json"
"""What a record is renamed to that a run cannot go on with."""
_PACKAGES = ("torch", "megatron-core", "transformer-engine", "flash-attn", "triton", "numpy")
_log = get_logger(__name__)


@dataclass(frozen=True)
class RunFacts:
    """What a record says of a run from its first step on."""

    settings: Mapping[str, Any]
    """All settings, as nested plain values."""
    model: str
    """The checkpoint it started from, and its parameters, in words."""
    where: str
    """What it runs on, in words."""
    layout: str
    """How it is divided over ranks, in words."""
    start: int
    """Steps done when this process began."""
    train_steps: int
    micro_batches: int
    """Packs that a rank takes in a step."""
    asked: Mapping[str, int] = field(default_factory=dict)
    """Samples of an epoch that the settings ask for, by data set; on the first rank."""


class RunRecord(AfterStep):
    """Keeps the record of a run, and has its page made of it, on the first rank."""

    name = "record"

    def __init__(
        self,
        logs: Path | None,
        facts: RunFacts,
        feed: DataFeed,
        tokenizer: Tokenizer,
        interval: int | None,
        make_page: Callable[[], None],
    ) -> None:
        """Begin, or go on with, a record.

        Args:
            logs: folder of the run's log, on the first rank; None: nothing is written.
            facts: of the run.
            feed: counts what is drawn; on the first rank it hands every micro-batch over.
            tokenizer: makes text of packs.
            interval: steps between two times that the record is written; None: with checkpoints alone.
            make_page: makes the page of the run's files.
        """
        self._logs, self._facts, self._feed, self._tokenizer = logs, facts, feed, tokenizer
        self._interval, self._make_page = interval, make_page
        self._writes = logs is not None
        self._done = facts.start
        self._seen = 0
        self._waiting: list[PackSample] = []
        self._record = WrittenRecord()
        if self._writes:
            self._attempt("read", self._open)
            feed.watch = self._look

    def is_due(self, iteration: int, is_last: bool) -> bool:
        """Return whether so many steps have passed."""
        self._done = iteration
        return self._interval is not None and iteration % self._interval == 0

    def run(self, iteration: int) -> Mapping[str, float]:
        """Write the record and the page; nothing is logged of it."""
        self._done = iteration
        self._write()
        return {}

    def saved(self, iteration: int) -> None:
        """Write the record beside a checkpoint."""
        self._done = iteration
        if self._writes:
            self._attempt("written", self._write_record)

    def state_dict(self) -> dict[str, Any]:
        """Return what has been drawn."""
        return self._feed.drawn.to_json()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the counts of an earlier process; damaged ones raise a CheckpointError."""
        self._feed.drawn = DataCounts.from_json(state, self._feed.drawn.names, "the counts of the data")

    def close(self) -> None:
        """Write the record and the page for the last time."""
        self._write()

    def _open(self) -> None:
        """Go on with the record that is there, or begin one."""
        assert self._logs is not None
        path = self._logs / RECORD
        if path.is_file():
            self._attempt("gone on with, and begins anew", lambda: self._read(path))
        self._record.sessions.append(
            {
                "from": self._facts.start,
                "time": time.time(),
                "host": socket.gethostname(),
                "where": self._facts.where,
                "layout": self._facts.layout,
                "versions": versions(),
                "command": " ".join(sys.argv),
                "process": os.getpid(),
            }
        )

    def _read(self, path: Path) -> None:
        """Take over a record; one that cannot be read is kept under another name.

        Raises:
            DataError: it is damaged, or of another version.
        """
        try:
            self._record = read_record(path).until(self._facts.start)
        except DataError:
            put_in_place(path, path.with_name(UNREADABLE))
            raise

    def _look(self, batch: Batch) -> None:
        """Keep the first micro-batch of some steps; called by the thread that reads."""
        step, index = divmod(self._seen, self._facts.micro_batches)
        self._seen += 1
        step += self._facts.start + 1
        if index == 0 and is_kept(step):
            self._attempt("kept of a pack", lambda: self._waiting.append(sample_of(batch, step, self._tokenizer)))

    def _write(self) -> None:
        if self._writes:
            self._attempt("written", self._write_record)
            self._attempt("made a page of", self._make_page)

    def _write_record(self) -> None:
        assert self._logs is not None
        record, facts = self._record, self._facts
        ready, self._waiting = list(self._waiting), []
        for sample in ready:
            if sample.step > self._done:  # read ahead
                self._waiting.append(sample)
                continue
            (self._logs / PACKS).mkdir(parents=True, exist_ok=True)
            for name, content in sample.pictures.items():
                write_bytes(self._logs / PACKS / name, content)
            record.packs.append(sample.content)
        record.steps, record.train_steps = self._done, facts.train_steps
        record.settings, record.model, record.asked = dict(facts.settings), facts.model, dict(facts.asked)
        record.drawn = self._feed.drawn.to_json()
        record.skipped, examples = self._feed.skipped()
        known = {(one["sample"], one["error"]) for one in record.examples}
        record.examples += [one for one in examples if (one["sample"], one["error"]) not in known]
        record.sessions[-1] |= {"to": self._done, "ended": time.time()}
        write_text(self._logs / RECORD, json.dumps(record.to_json(), ensure_ascii=False) + "\n")

    def _attempt(self, what: str, action: Callable[[], object]) -> None:
        """Do something that may fail without harm to the run."""
        try:
            action()
        except Exception as error:
            _log.warning("the run's record is not %s, training goes on: %s: %s", what, type(error).__name__, error)


def open_record(
    budget: MemoryBudget, tokenizer: Tokenizer, where: str, logs: Path | None, start: int, feed: DataFeed
) -> RunRecord:
    """Return what keeps the record of a run, and makes its page.

    Args:
        budget: settings, model and ranks of the run, its steps counted.
        tokenizer: of its model.
        where: what it runs on, in words.
        logs: folder of its log, on the rank that writes; None: nothing is written.
        start: steps done.
        feed: its data.
    """
    config, loader = budget.config, feed.loader
    facts = RunFacts(
        settings=to_dict(config),
        model=f"{config.model.model_name_or_path}, {parameter_words(budget.model, budget.learning)}",
        where=where,
        layout=layout_words(config.parallel, budget.world_size),
        start=start,
        train_steps=config.train.train_steps,
        micro_batches=config.train.micro_batches(parallel_state.get_data_parallel_world_size()),
        asked=loader.plan.mixture.samples_of_epoch if isinstance(loader, PackLoader) else {},
    )

    def make_page() -> None:
        from megatron_v2pe.train.page.build import write_page  # of files, once in a run

        assert logs is not None
        write_page(logs)

    return RunRecord(logs, facts, feed, tokenizer, config.logging.page_interval, make_page)


def versions() -> dict[str, str]:
    """Return the versions of what computes, by name."""
    found = {"megatron-v2pe": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
