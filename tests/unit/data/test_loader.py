"""Loading: exact resume under any number of ranks and workers, and bad samples counted, never replaced."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import struct
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from multiprocessing.connection import Connection

import pytest
import torch

from helpers.data_cases import assert_same_batches
from megatron_v2pe.data.batch import PackReader
from megatron_v2pe.data.loader import build_loader
from megatron_v2pe.data.reader_processes import Patience
from megatron_v2pe.errors import ConfigError, DataError, LostProcessError
from megatron_v2pe.v2pe.settings import StridePolicy
from megatron_v2pe.workshop.synthetic.small_data import FACTS, config_for, write_dataset

POLICY = StridePolicy("v2pe_rnd", strides=(1, 2, 4), seed=5)


@pytest.fixture
def open_loader(tokenizer):
    def run(meta, rank=0, size=1, state=None, seed=5, **changes):
        state = json.loads(json.dumps(state)) if state is not None else None
        config = config_for(meta, **changes)
        return build_loader(
            config,
            tokenizer,
            FACTS,
            POLICY,
            seed=seed,
            dp_rank=rank,
            dp_size=size,
            state=state,
        )

    return run


@pytest.mark.parametrize("after", [1, 2])
def test_a_frozen_reader_is_ended_and_named(meta, tokenizer, monkeypatch, after):
    """Frozen at any moment, in the middle of an answer too, where PyTorch itself would wait without end."""
    watches = []

    def patient(seconds, readers):  # until the reader is frozen: it may be slow to begin
        watches.append(Patience(600, readers))
        return watches[-1]

    monkeypatch.setattr("megatron_v2pe.data.loader.Patience", patient)
    config = config_for(meta, num_workers=1)
    loader = build_loader(config, tokenizer, FACTS, POLICY, seed=5, dp_rank=0, dp_size=1, read_seconds=1.5)
    others = set(multiprocessing.active_children())  # of a pool that tests before this one have used
    batches = iter(loader)
    next(batches)
    (reader,) = set(multiprocessing.active_children()) - others
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's raises wherever the test is by then
    try:
        began = time.monotonic()
        with pytest.raises((LostProcessError, RuntimeError), match="not answered for 2 s|DataLoader worker"):
            for number in range(1, 21):  # what it had read before comes first
                if number == after:
                    os.kill(reader.pid, signal.SIGSTOP)
                    watches[0]._seconds = 1.5
                next(batches)
        assert time.monotonic() - began < 120  # measured: 2.5 s
        reader.join(60)
        assert not reader.is_alive()
    finally:
        signal.signal(signal.SIGCHLD, handler)


def test_a_reader_killed_in_the_middle_of_an_answer_is_noticed_by_a_thread(meta, tokenizer, monkeypatch):
    """The rest of the answer never comes, and the signal of its end is for the main thread, which does not read."""
    read, calls, send, sent = PackReader.__getitem__, [], Connection._send_bytes, []

    def noted(self, content):
        send(self, content)
        sent.append(self)

    def half_an_answer(self, pack):  # in the reader: it is forked and has this
        calls.append(pack)
        if len(calls) > 2:
            frame = sys._getframe()
            while "data_queue" not in frame.f_locals:
                frame = frame.f_back
            writer = frame.f_locals["data_queue"]._writer
            while sum(one is writer for one in sent) < 2:  # a thread sends whole answers, behind this one perhaps
                time.sleep(0.01)
            os.write(writer.fileno(), struct.pack("!i", 1000) + b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, pack)

    monkeypatch.setattr(Connection, "_send_bytes", noted)
    monkeypatch.setattr(PackReader, "__getitem__", half_an_answer)
    usual = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's, from a loader read by the main thread before
    loader = build_loader(
        config_for(meta, num_workers=1), tokenizer, FACTS, POLICY, seed=5, dp_rank=0, dp_size=1, read_seconds=600
    )
    try:
        with ThreadPoolExecutor(1) as thread:
            batches = thread.submit(iter, loader).result()
            with pytest.raises(LostProcessError, match="without a word.*(middle of an answer|DataLoader worker)"):
                for _ in range(20):
                    thread.submit(next, batches).result(120)  # measured: 0.3 s
    finally:
        gc.collect()  # the loader forgets the reader here: PyTorch's handler would raise its end in any test after this
        signal.signal(signal.SIGCHLD, usual)


def take(loader, count):
    return list(islice(iter(loader), count))


def test_micro_batches_are_consistent(meta, open_loader, tokenizer):
    for batch in take(open_loader(meta), 8):
        length = batch.input_ids.shape[0]
        assert sum(batch.seqlens) == length and length <= 700
        assert (batch.input_ids == tokenizer.img_context_id).sum() == sum(batch.num_tiles) * 4
        assert batch.tiles.shape == (sum(batch.num_tiles), 28, 28, 3) and batch.tiles.dtype == torch.uint8
        assert ((batch.labels != -100) == (batch.loss_weights > 0)).all()
        learned = batch.labels != -100
        assert torch.equal(batch.labels[learned], batch.input_ids.roll(-1)[learned])


def test_every_sample_once_per_epoch(meta, open_loader):
    seen = [source.line for batch in take(open_loader(meta), 40) for source in batch.sources]
    counts = [seen.count(line) for line in range(1, 24)]
    assert min(counts) >= 2 and max(counts) - min(counts) <= 2


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 2), (2, 1), (1, 2)])
def test_resume_is_exact_under_any_number_of_ranks(meta, open_loader, before, after):
    whole = take(open_loader(meta), 12)
    loaders = [open_loader(meta, rank, before) for rank in range(before)]
    parts = [take(loader, 4 // before) for loader in loaders]
    assert_same_batches([parts[i % before][i // before] for i in range(4)], whole[:4])
    state = loaders[0].state_dict()
    assert all(loader.state_dict() == state for loader in loaders)
    parts = [take(open_loader(meta, rank, after, state), 8 // after) for rank in range(after)]
    assert_same_batches([parts[i % after][i // after] for i in range(8)], whole[4:])


def test_workers_change_nothing(meta, open_loader):
    whole = take(open_loader(meta), 8)
    loader = open_loader(meta, num_workers=2)
    assert_same_batches(take(loader, 5), whole[:5])
    assert_same_batches(take(open_loader(meta, state=loader.state_dict()), 3), whole[5:])


def test_another_seed_is_another_order(meta, open_loader):
    one, two = take(open_loader(meta), 2), take(open_loader(meta, seed=6), 2)
    assert one[0].sources != two[0].sources


def test_a_state_of_other_data_is_refused(meta, open_loader, tmp_path):
    state = open_loader(meta).state_dict()
    with pytest.raises(ConfigError, match="'samples': {'all': 23}.*now .*'samples': {'all': 24}"):
        open_loader(write_dataset(tmp_path / "other", lines=24), state=state)
    with pytest.raises(ConfigError, match="other data"):
        open_loader(meta, state=state, seed=6)


def test_bad_samples_stop_the_run_with_file_line_and_cause(meta, open_loader):
    (meta.parent / "image" / "3.png").unlink()
    message = r"all.jsonl:\d+ \(all\): .*3.png: no such image\n1 bad samples, .* allows 0 .*tools/check_data.py --full"
    with pytest.raises(DataError, match=message):
        take(open_loader(meta), 8)


def test_bad_samples_are_counted_and_left_out(meta, open_loader):
    (meta.parent / "image" / "3.png").unlink()
    loader = open_loader(meta, max_skipped_samples=100)
    batches = take(loader, 12)
    state = loader.state_dict()
    assert list(state["skipped"]) == ["FILE: no such image"] and state["skipped"]["FILE: no such image"] > 3
    many = take(open_loader(meta, max_skipped_samples=100), 30)
    assert_same_batches(batches, many[:12])
    lines = {source.line for batch in many for source in batch.sources}
    assert lines == {line for line in range(1, 24) if (line - 1) % 3 == 2 or 3 not in images_of(line - 1)}
    resumed = open_loader(meta, max_skipped_samples=100, state=state)
    assert_same_batches(take(resumed, 4), many[12:16])
    assert resumed.state_dict()["skipped"]["FILE: no such image"] > state["skipped"]["FILE: no such image"]


def images_of(number):
    return {number % 6} if number % 3 == 0 else {number % 6, (number + 1) % 6}


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_damaged_inside_leaves_the_pack(meta, open_loader, workers):
    whole = take(open_loader(meta), 8)
    path = meta.parent / "image" / "3.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="damaged image"):
        take(open_loader(meta, num_workers=workers), 8)
    loader = open_loader(meta, max_skipped_samples=100, num_workers=workers)
    batches = take(loader, 8)
    for batch, complete in zip(batches, whole, strict=True):
        kept = [s for s in complete.sources if (s.line - 1) % 3 == 2 or 3 not in images_of(s.line - 1)]
        assert list(batch.sources) == kept
    lost = sum(len(b.sources) for b in whole) - sum(len(b.sources) for b in batches)
    assert sum(loader.state_dict()["skipped"].values()) == lost > 0


def test_nothing_usable_is_an_error_not_an_endless_loop(meta, open_loader):
    with pytest.raises(DataError, match="none of the 23 samples .*tools/check_data.py --full"):
        take(open_loader(meta, max_seq_length=10, max_skipped_samples=10**6), 1)


def test_a_batch_says_which_files_its_images_come_from(open_loader, meta):
    """As the annotation names them, document by document; a step that is skipped is looked into by these."""
    found = 0
    for batch in islice(open_loader(meta), 6):
        assert len(batch.images) == len(batch.sources)
        for source, images in zip(batch.sources, batch.images, strict=True):
            with open(source.file, encoding="utf-8") as file:
                record = json.loads(file.readlines()[source.line - 1])
            named = record.get("image", [])
            named = [named] if isinstance(named, str) else named
            assert [os.path.basename(path) for path in images] == [
                os.path.basename(name) for name in dict.fromkeys(named)
            ]
            assert all(os.path.isfile(path) for path in images)
            found += len(images)
    assert found > 5
