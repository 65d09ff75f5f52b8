"""Pickles that name nothing and yet would never end, or end the process: keys that take for ever to hash."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import pytest

from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.foreign.pickles import load_archive, unpickle

TWICE_IN_THE_NEXT = b")" + b"2\x86" * 60
IN_ONE_ANOTHER = b")" + b"\x85" * 400_000
SIZE = b"ctorch\nSize\n"
BOMBS = {
    "doubled": b"\x80\x02}" + TWICE_IN_THE_NEXT + b"K\x01s.",
    "deep": b"\x80\x02}" + IN_ONE_ANOTHER + b"K\x01s.",
    "several": b"\x80\x02}(K\x01K\x02" + TWICE_IN_THE_NEXT + b"K\x01u.",
    "a dictionary at once": b"\x80\x02(" + TWICE_IN_THE_NEXT + b"K\x01d.",
    "a set": b"\x80\x04\x8f(" + TWICE_IN_THE_NEXT + b"\x90.",
    "a set that stays": b"\x80\x04(" + TWICE_IN_THE_NEXT + b"\x91.",
    "a size": b"\x80\x02}" + SIZE + TWICE_IN_THE_NEXT + b"\x85RK\x01s.",
    "bytes of a petabyte": b"\x80\x05\x96" + (1 << 50).to_bytes(8, "little") + b".",
}
ORDERED = b"\x80\x02ccollections\nOrderedDict\n]]" + TWICE_IN_THE_NEXT + b"aK\x01aa\x85R."
STORAGE = b"\x80\x02(X\x07\0\0\0storagectorch\nFloatStorage\n" + TWICE_IN_THE_NEXT + b"X\x03\0\0\0cpuK\x01tQ."


def archive(pickled: bytes) -> memoryview:
    """Return a `torch.save` archive of a pickle."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("a/data.pkl", pickled)
    return memoryview(stream.getvalue())


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_refused(kind: str) -> None:
    """It would not end, or end the process, wherever a pickle is read."""
    with pytest.raises(CheckpointError, match="refused"):
        unpickle(BOMBS[kind], (), "file", CheckpointError)
    with pytest.raises(CheckpointError, match="refused"):
        load_archive(archive(BOMBS[kind]), "file", CheckpointError)


@pytest.mark.parametrize("inner", [TWICE_IN_THE_NEXT, IN_ONE_ANOTHER])
def test_a_bomb_as_a_value_is_refused(inner: bytes) -> None:
    """Settings of an optimizer that would never be compared or shown to the end."""
    with pytest.raises(CheckpointError, match="refused: nested deeper"):
        load_archive(archive(b"\x80\x02}X\x09\0\0\0optimizer" + inner + b"s."), "file", CheckpointError)


@pytest.mark.parametrize("pickled", [ORDERED, STORAGE])
def test_a_bomb_in_an_archive_is_refused(pickled: bytes) -> None:
    """Items given to a dictionary as it is made; the name of a tensor's data."""
    with pytest.raises(CheckpointError, match="damaged"):
        load_archive(archive(pickled), "file", CheckpointError)


def test_plain_values_are_read(tmp_path: Path) -> None:
    """What programs write is still understood: dictionaries in order, nested, tensors, sizes."""
    import collections

    import torch

    value: dict[str, Any] = {"a": [1, (2, 3.5)], "o": collections.OrderedDict(x=torch.ones(2)), "s": torch.Size((4, 5))}
    torch.save({**value, 7: None}, tmp_path / "file")
    found = load_archive(memoryview(bytearray((tmp_path / "file").read_bytes())), "file", CheckpointError)
    assert found["a"] == value["a"] and found["s"] == (4, 5) and 7 in found
    assert torch.equal(found["o"]["x"], torch.ones(2))
