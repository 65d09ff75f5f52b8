"""Checksums of a checkpoint folder: made while it is written, compared with what is read.

`checksums.json` names every file of the folder with its size and the XXH3 (128 bits) of its content; of a data file
(`.distcp`) the checksum of every tensor shard in place of one over all, so that a reader checks what it reads and no
more. It ends with a checksum of itself. Checksums find damage, not malice: who can change a file can change its
checksum too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol

import xxhash

from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.foreign.files import check_regular, read_bytes
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Range, typed
from megatron_v2pe.foreign.text import parse_json

CHECKSUMS = "checksums.json"
ALGORITHM = "xxh3_128"
_BLOCK = 1 << 22
_BESIDE = 1 << 20
"""Bytes from which on a checksum is worth another thread."""
_LARGEST = 1 << 30
_Count = Annotated[int, Range(0)]


class Sink(Protocol):
    """What bytes are written to."""

    def write(self, content: Any, /) -> Any:
        """Write bytes."""
        ...


@dataclass(frozen=True)
class ShardSum:
    """The checksum of a part of a data file."""

    offset: _Count
    length: _Count
    digest: str


@dataclass(frozen=True)
class FileSum:
    """Size and checksum of a file; of a data file the checksums of its parts."""

    size: _Count
    digest: str | None = None
    shards: tuple[ShardSum, ...] = ()


@dataclass(frozen=True)
class Checksums:
    """The checksums of a folder."""

    files: dict[str, FileSum] = field(default_factory=dict)
    """Path relative to the folder, with `/` -> size and checksum."""
    algorithm: str = ALGORITHM
    format_version: int = 1

    def write(self, folder: Path) -> None:
        """Write `checksums.json`; the other files are there already."""
        content = asdict(self)
        text = json.dumps({**content, "digest": _own_digest(content)}, ensure_ascii=False, separators=(",", ":"))
        with open(folder / CHECKSUMS, "w", encoding="utf-8") as stream:
            stream.write(text + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    @classmethod
    def read(cls, folder: Path) -> Checksums | None:
        """Read the checksums of a folder; None where it has none: it was written before there were any.

        Raises:
            CheckpointError: the file is damaged, or of another kind.
        """
        path = folder / CHECKSUMS
        if not os.path.lexists(path):
            return None
        content = parse_json(read_bytes(path, CheckpointError, _LARGEST), printable(path), CheckpointError)
        digest = content.pop("digest", None) if isinstance(content, dict) else None
        if digest is None or digest != _own_digest(content):
            raise CheckpointError(f"{path}: damaged: its content does not have the checksum it ends with")
        sums = typed(cls, content, printable(path), CheckpointError)
        if sums.algorithm != ALGORITHM or sums.format_version != 1:
            raise CheckpointError(
                f"{path}: {printable(sums.algorithm)[:40]!r} of format {sums.format_version}, "
                f"this program knows {ALGORITHM!r} of format 1"
            )
        return sums

    def check_file(self, folder: Path, name: str) -> None:
        """Compare a file that is no data file with its checksum; one that is not listed was added later and passes.

        Raises:
            CheckpointError: it is gone, of another size or has another content; names it.
        """
        known = self.files.get(name)
        if known is None:
            return
        path = folder / name
        if not os.path.lexists(path):
            raise CheckpointError(f"{folder}: {name} is missing; the checkpoint was not finished or not copied whole")
        size = check_regular(path, CheckpointError)
        if size != known.size:
            raise CheckpointError(f"{path}: damaged: {size} bytes, {known.size} were written{_REMEDY}")
        if known.digest is not None and (found := file_digest(path)) != known.digest:
            raise CheckpointError(f"{path}: damaged: checksum {found}, {known.digest} when it was written{_REMEDY}")

    def check_files(self, folder: Path) -> None:
        """Compare every file that is no data file with its checksum, and sizes of data files; errors as above."""
        for name in self.files:
            self.check_file(folder, name)

    def shards_of(self, name: str) -> dict[tuple[int, int], str]:
        """Return the checksums of a data file's parts, by first byte and length."""
        known = self.files.get(name)
        return {} if known is None else {(shard.offset, shard.length): shard.digest for shard in known.shards}


class SummedStream:
    """A stream that is written to, and the checksum of what was written since the last look."""

    def __init__(self, stream: Sink, name: str) -> None:
        """Write to `stream`, the file called `name`."""
        self._stream, self._name = stream, name
        self.failed: OSError | None = None
        """Why a write failed: who writes through a library may see another error than this."""
        self._hash = xxhash.xxh3_128()
        self._helper = ThreadPoolExecutor(1, "checksums")
        self.place = 0
        """Bytes written."""

    def write(self, content: Any) -> int:
        """Write bytes and add them to the checksum."""
        hashed = None
        if len(content) >= _BESIDE:  # by another core, while this one writes
            hashed = self._helper.submit(self._hash.update, content)
        else:
            self._hash.update(content)
        try:
            self._stream.write(content)
        except OSError as error:
            self.failed = OSError(error.errno, error.strerror, self._name)
            raise self.failed from error
        finally:
            if hashed is not None:
                hashed.result()  # what is written may be gone once this returns
        self.place += len(content)
        return len(content)

    def flush(self) -> None:
        """Do nothing: who opened the stream flushes it."""

    def close(self) -> None:
        """End the thread that helps; the stream stays open."""
        self._helper.shutdown()

    def take(self) -> str:
        """Return the checksum of what was written since the last call."""
        digest = self._hash.hexdigest()
        self._hash.reset()
        return digest


def file_digest(path: Path) -> str:
    """Return the checksum of a file's content.

    Raises:
        CheckpointError: it cannot be read.
    """
    digest = xxhash.xxh3_128()
    try:
        with open(path, "rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def digest_of(content: memoryview) -> str:
    """Return the checksum of some bytes."""
    return xxhash.xxh3_128_hexdigest(content)


def sums_of_files(folder: Path, but: Iterable[str] = ()) -> dict[str, FileSum]:
    """Return size and checksum of every file of a folder, `but` some; reads them."""
    left_out = {*but, CHECKSUMS}
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {
        name: FileSum(path.stat().st_size, file_digest(path)) for name, path in names.items() if name not in left_out
    }


_REMEDY = "; copy the checkpoint again, or, if the file was changed on purpose, read it with --no-verify"


def _own_digest(content: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())
