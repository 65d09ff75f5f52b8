"""Samples of validation that are trained on all the same: the same line of a file, or the same conversation and images.

What is compared depends on the training data. A data list is compared by what its lines say. The samples of an indexed
data set are compared by their tokens and the paths of their images; lengths, which are known for all of them, leave few
to look at.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import xxhash

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.data.annotations import Dataset
from megatron_v2pe.data.indexed.samples import IndexedSamples
from megatron_v2pe.data.types import EncodedSample, Sample, SampleId
from megatron_v2pe.data.validation_sets import ListedValidationSet, ValidationSet
from megatron_v2pe.errors import DataError
from megatron_v2pe.foreign.printable import printable

MOST_BYTES = 1 << 30
"""Annotations of a training list up to so large together are compared by content; larger ones by file and line."""
_BLOCK_LINES, _BLOCK_BYTES = 1000, 1 << 22
_SHOWN, _EXAMPLES = 5, 3
_log = get_logger(__name__)


@dataclass
class Overlap:
    """What of one validation set is trained on."""

    name: str
    """Name of the set."""
    samples: int
    """Samples of the set."""
    same_line: dict[int, str] = field(default_factory=dict)
    """Number of a sample whose very line is trained on -> where."""
    same_content: dict[int, str] = field(default_factory=dict)
    """Number of a sample whose conversation and images are trained on from another line -> where."""

    @property
    def count(self) -> int:
        """Return how many of its samples are trained on."""
        return len(self.same_line) + len(self.same_content)


@dataclass(frozen=True)
class IndexedTraining:
    """Samples of an indexed data set that train."""

    samples: IndexedSamples
    numbers: np.ndarray | None = None
    """Their numbers, int [n]; None: all of the set train."""


def find_overlap(
    sets: Sequence[ValidationSet],
    training: Sequence[Dataset] | IndexedTraining,
    tell: Callable[[], None] = lambda: None,
) -> list[Overlap]:
    """Return the validation sets that are trained on in part, with what of them.

    Args:
        sets: the data of the validation.
        training: what trains.
        tell: is called now and then; all of the training data are looked at.
    """
    listed = not isinstance(training, IndexedTraining)
    lines, contents = dict[tuple[str, int], list[tuple[int, int]]](), dict[bytes, list[tuple[int, int]]]()
    lengths = set[tuple[int, int]]()
    for place, one in enumerate(sets):
        for number in range(len(one)):
            tell()
            source = one.source(number)
            lines.setdefault((_file(source.file), source.line), []).append((place, number))
            try:
                if listed:
                    assert isinstance(one, ListedValidationSet), "an indexed set is validated on beside a data list"
                    key = content_of_line(one.dataset.read(number))
                else:
                    sample = one.encoded(number)
                    key = content_of_tokens(sample)
                    lengths.add(_lengths(sample))
            except DataError:
                continue  # it is not validated on either
            contents.setdefault(key, []).append((place, number))
    found = [Overlap(one.name, len(one)) for one in sets]
    if isinstance(training, IndexedTraining):
        seen = _samples_of(training, lengths, set(lines), tell)
    else:
        seen = _lines_of(training, tell)
    for source, content in seen:
        for place, number in lines.get((_file(source.file), source.line), ()):
            found[place].same_line.setdefault(number, str(source))
        for place, number in contents.get(content, ()) if content else ():
            found[place].same_content.setdefault(number, str(source))
    for one in found:
        one.same_content = {number: at for number, at in one.same_content.items() if number not in one.same_line}
    return [one for one in found if one.count]


def overlap_words(found: Sequence[Overlap], sets: Sequence[ValidationSet]) -> str:
    """Return an overlap in words: the counts of each data set, and an example."""
    by_name, parts = {one.name: one for one in sets}, list[str]()
    for one in found[:_SHOWN]:
        number, where = next(iter((one.same_line | one.same_content).items()))
        parts.append(
            f"{one.count} of {one.samples} validation samples of data set {one.name!r} are trained on "
            f"({len(one.same_line)} by their very line, {len(one.same_content)} by a line with the same conversation "
            f"and images), such as {by_name[one.name].source(number)}: trained as {where}"
        )
    more = [f"and {len(found) - _SHOWN} more data sets"] if len(found) > _SHOWN else []
    return "; ".join([*parts, *more])


def content_of_line(sample: Sample) -> bytes:
    """Return a digest of what a line says: its turns without blanks around them, its images, its video."""
    turns = tuple((role, text.strip()) for role, text in sample.conversations)
    files = tuple(_real(path) for path in (*sample.images, *([sample.video] if sample.video else [])))
    return xxhash.xxh3_128(repr((turns, files, sample.clip)).encode(errors="surrogatepass")).digest()


def content_of_tokens(sample: EncodedSample) -> bytes:
    """Return a digest of a sample's tokens, of what of them is learned, and of the paths of its images."""
    digest = xxhash.xxh3_128(np.ascontiguousarray(sample.text.ids, dtype="<i4").tobytes())
    digest.update(np.ascontiguousarray(sample.text.supervised, dtype="<i4").tobytes())
    digest.update(repr(tuple(_real(item.path) for item in sample.media)).encode(errors="surrogatepass"))
    return digest.digest()


def _lengths(sample: EncodedSample) -> tuple[int, int]:
    """Return the tokens of a text with each image as one, and how many of them are learned."""
    ranges = np.asarray(sample.text.supervised).reshape(-1, 2)
    return len(sample.text.ids), int((ranges[:, 1] - ranges[:, 0]).sum())


def _lines_of(datasets: Sequence[Dataset], tell: Callable[[], None]) -> Iterator[tuple[SampleId, bytes]]:
    """Yield every line that trains, and its content; b"" of one that cannot be read or is not looked at."""
    size = sum(os.path.getsize(dataset.annotation) for dataset in datasets)
    compares = size <= MOST_BYTES
    if not compares:
        _log.warning(
            "validation: %.1f GiB of training annotations are compared with it by file and line, not by content",
            size / 2**30,
        )
    for dataset in datasets:
        if not compares:
            yield from ((SampleId(dataset.name, int(line), dataset.annotation), b"") for line in dataset.line_numbers)
            continue
        for block in dataset.blocks(_BLOCK_LINES, _BLOCK_BYTES):
            tell()
            for number, text in block.read(dataset.annotation):
                line, _, _ = text.partition(b"\n")  # behind it stand lines that are held out
                try:
                    content = content_of_line(dataset.parse(line, number))
                except DataError:
                    content = b""
                yield SampleId(dataset.name, number, dataset.annotation), content


def _samples_of(
    training: IndexedTraining, lengths: set[tuple[int, int]], lines: set[tuple[str, int]], tell: Callable[[], None]
) -> Iterator[tuple[SampleId, bytes]]:
    """Yield, of the samples that train, those of the same lines or of the same lengths, and their content."""
    samples = training.samples
    table = np.stack([samples.num_ids, samples.supervised], axis=1).astype(np.int64)
    wanted = np.array(sorted(lengths), dtype=np.int64).reshape(-1, 2)
    factors = np.array([1 << 32, 1], dtype=np.int64)
    chosen = np.isin(table @ factors, wanted @ factors)
    for entry in samples.manifest.datasets:
        part, file = slice(entry.first, entry.first + entry.samples), _file(entry.annotation)
        chosen[part] |= np.isin(samples.lines[part], [line for name, line in lines if name == file])
    if training.numbers is not None:
        trains = np.zeros(len(chosen), dtype=bool)
        trains[training.numbers] = True
        chosen &= trains
    for number in np.flatnonzero(chosen).tolist():
        tell()
        try:
            yield samples.source(number), content_of_tokens(samples[number])
        except DataError:
            continue


def _real(path: str) -> str:
    """Return a path as the files of both data are compared by it; names of what is no local file stay as they are."""
    return path if "://" in path else os.path.normpath(os.path.join(os.getcwd(), path))


@lru_cache(maxsize=1024)
def _file(path: str) -> str:
    """Return an annotation file by its one true path."""
    return os.path.realpath(path)


def refusal(found: Sequence[Overlap], sets: Sequence[ValidationSet], held_out: bool) -> str:
    """Return the message that refuses an overlap, in lines: the counts of each data set, examples, what to do next."""
    by_name = {one.name: one for one in sets}
    lines = [f"{sum(one.count for one in found)} validation samples are trained on"]
    for one in found[:_SHOWN]:
        lines.append(
            f"  data set {one.name!r}: {one.count} of {one.samples} samples, {len(one.same_line)} by their very line, "
            f"{len(one.same_content)} by a line with the same conversation and images"
        )
        examples = [*(one.same_line | one.same_content).items()][:_EXAMPLES]
        lines += [f"    {by_name[one.name].source(number)}: trained as {where}" for number, where in examples]
        lines += [f"    and {one.count - len(examples)} more"] if one.count > len(examples) else []
    lines += [f"  and {len(found) - _SHOWN} more data sets"] if len(found) > _SHOWN else []
    remedies = (
        ["the training data hold these samples more than once: take the copies out"]
        if held_out
        else [
            "take them out of one of the two",
            "or validate on a share of the training data, which then never trains: --validation.share 0.01",
        ]
    )
    remedies.append("or go on all the same: --validation.allow-overlap")
    return "\n".join(map(printable, [*lines, "what to do next:", *(f"  {remedy}" for remedy in remedies)]))
