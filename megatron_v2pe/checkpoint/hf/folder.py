"""An HF checkpoint folder: its shards, its index, its other files, and the record that lets it be written again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from torch import Tensor

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.checkpoint.checksums import CHECKSUMS, Checksums
from megatron_v2pe.checkpoint.hf.adapter_files import adapter_file
from megatron_v2pe.checkpoint.hf.safetensors_io import Header, SafetensorsFile, TensorPlace
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.foreign.files import check_links, check_name, check_regular
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Fields, Range, typed
from megatron_v2pe.foreign.text import read_json, read_json_object

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
_WEIGHTS = {".safetensors", ".gguf", ".h5", ".msgpack", ".onnx", *_PICKLES}
_FILES = {".json", ".model", ".safetensors"}
"""Endings of names that no folder has."""
_DEEPEST = 16
"""Folders inside one another, at most."""
_UNFINISHED = (".aria2", ".incomplete", ".part", ".partial", ".crdownload", ".download", ".tmp")
"""What downloaders add to the name of a file for what they have, or know, of it while it is not whole."""
_log = get_logger(__name__)


@dataclass(frozen=True)
class _Shard:
    """A shard as `FileLayout` is stored."""

    file: str
    header: str


@dataclass(frozen=True)
class _StoredLayout:
    shards: tuple[_Shard, ...]
    format_version: Annotated[int, Range(1, 1)]


@dataclass(frozen=True)
class FileLayout:
    """How an HF checkpoint was cut into files."""

    shards: tuple[tuple[str, Header], ...]
    """File names and headers."""

    def save(self, path: Path) -> None:
        """Write as JSON; see `to_text`."""
        path.write_text(self.to_text(), encoding="utf-8")

    def to_text(self) -> str:
        """Return it as JSON: per shard its file name and its header to the byte, from which order and types follow."""
        shards = [{"file": file, "header": header.text} for file, header in self.shards]
        return json.dumps({"format_version": 1, "shards": shards}, indent=1) + "\n"

    @classmethod
    def load(cls, path: Path) -> FileLayout:
        """Read what `save` wrote.

        Raises:
            CheckpointError: missing or damaged.
        """
        content = read_json_object(path, CheckpointError, unique=True)
        stored = typed(_StoredLayout, content, printable(path), CheckpointError)
        shards: dict[str, Header] = {}
        seen: set[str] = set()
        for shard in stored.shards:
            file = check_name(shard.file, printable(path), CheckpointError)
            if file in shards or not file.endswith(".safetensors"):
                raise CheckpointError(f"{path}: refused: {file!r} stands twice or is no safetensors file")
            shards[file] = Header.parse(shard.header, f"{path}: {file}")
            for place in shards[file].tensors:
                if place.name in seen:
                    raise CheckpointError(f"{path}: {file}: {place.name} is in two shards")
                seen.add(place.name)
        return cls(tuple(shards.items()))

    def places(self) -> dict[str, TensorPlace]:
        """Return every tensor by name."""
        return {place.name: place for _, header in self.shards for place in header.tensors}


class HFWeights:
    """The weights of an HF folder, mapped, not loaded."""

    def __init__(self, folder: Path) -> None:
        """Open every shard and check headers and index, and where the folder holds `checksums.json`, the files.

        Raises:
            CheckpointError: no weights, only pickles, two sets of them, a shard missing or damaged, an index that
                disagrees, or a link that leaves the folder.
        """
        self.folder = folder
        index = _read_index(folder)
        verify_checksums(folder)
        names = sorted(set(index.values())) if index is not None else [SINGLE]
        self._files: dict[str, SafetensorsFile] = {}
        self._shards: list[tuple[str, Header]] = []
        for name in names:
            file = SafetensorsFile(folder / name)
            self._shards.append((name, file.header))
            for place in file.header.tensors:
                if place.name in self._files:
                    raise CheckpointError(
                        f"{folder}: {place.name} is in {self._files[place.name].path.name} and {name}"
                    )
                self._files[place.name] = file
        if index is not None:
            self._check_index(index)
            self._check_total()

    @property
    def layout(self) -> FileLayout:
        """How the weights are cut into files."""
        return FileLayout(tuple(self._shards))

    def tensor(self, name: str) -> Tensor:
        """Return a tensor that lies in the mapped file."""
        return self._files[name].tensor(name)

    def read_into(self, name: str, begin: int, out: memoryview) -> None:
        """Read bytes of a tensor, see `SafetensorsFile.read_into`."""
        self._files[name].read_into(name, begin, out)

    def _check_index(self, index: dict[str, str]) -> None:
        for name, file in index.items():
            found = self._files.get(name)
            if found is None or found.path.name != file:
                where = f"that file does not hold it; {found.path.name} does" if found else "no shard holds it"
                raise CheckpointError(f"{self.folder / INDEX}: {name} is said to be in {file}, but {where}")
        if unlisted := sorted(self._files.keys() - index.keys()):
            raise CheckpointError(
                f"{self.folder / INDEX}: lists {len(index)} tensors, the shards hold {len(self._files)}; "
                f"not listed: {', '.join(unlisted[:8])}"
            )

    def _check_total(self) -> None:
        """Say where the index states another size than the shards have; some programs write it before they share."""
        path = self.folder / INDEX
        stated = _index(self.folder).get("metadata", dict, {}).get("total_size")
        found = sum(place.nbytes for _, header in self._shards for place in header.tensors)
        if stated is not None and stated != found:
            shown = printable(stated)[:40]
            _log.warning("%s: metadata.total_size is %s, the shards hold %d bytes", printable(path), shown, found)


def other_files(folder: Path, depth: int = 1) -> Iterator[Path]:
    """Yield, relative to `folder`, every file that belongs to a checkpoint and is no weight file.

    Left out are hidden files and folders but for `.gitattributes`, caches, intermediate checkpoints of a training run,
    and weights in other formats, pickles among them.

    Args:
        folder: the checkpoint's.
        depth: how many folders deep this one is; given by the function itself.

    Raises:
        CheckpointError: a pipe, a device, a folder where a file belongs, a link to a folder, or folders nested too
            deeply.
    """
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            if path.name.startswith((".", "checkpoint-", "__pycache__", "runs", "global_step", "iter_")):
                continue
            if path.suffix in _FILES:
                check_regular(path, CheckpointError)
            if path.is_symlink() or depth == _DEEPEST:
                what = "a link to a folder" if path.is_symlink() else f"folders nested deeper than {_DEEPEST}"
                raise CheckpointError(f"{printable(path)}: refused: {what}")
            yield from (path.relative_to(folder) / inner for inner in other_files(path, depth + 1))
        elif path.suffix in _PICKLES:
            _log.warning("%s: a pickle; it is not read and not carried along", printable(path))
        elif path.suffix not in _WEIGHTS and (not path.name.startswith(".") or path.name == ".gitattributes"):
            check_regular(path, CheckpointError)
            yield path.relative_to(folder)


def copy_other_files(source: Path, target: Path, but: Collection[str] = ()) -> None:
    """Copy every file that is no weight file, `but` some of the folder itself; `target` exists."""
    for relative in other_files(source):
        if str(relative) not in but:
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / relative, target / relative)


def verify_checksums(folder: Path) -> None:
    """Compare the files of an HF folder with its `checksums.json`, as exports have it; other programs write none.

    Raises:
        CheckpointError: a file is gone or has changed, or `checksums.json` itself is damaged; names the file.
    """
    path = folder / CHECKSUMS
    if not os.path.lexists(path):
        return
    content = read_json(path, CheckpointError)
    if not isinstance(content, dict) or not {"files", "algorithm", "digest", "format_version"} & content.keys():
        return  # of another program
    sums = Checksums.read(folder)
    assert sums is not None
    for name in sums.files:
        for part in name.split("/"):
            check_name(part, printable(path), CheckpointError)
        try:
            sums.check_file(folder, name)
        except CheckpointError as error:
            reason = str(error).partition("; copy")[0]
            raise CheckpointError(
                f"{reason}; copy the folder again, or, if it was changed on purpose, remove {CHECKSUMS}"
            ) from error


def weight_map(folder: Path) -> dict[str, str] | None:
    """Return tensor name -> file as the index of an HF folder says, None where it has none; no file is looked at.

    Raises:
        CheckpointError: the index is damaged.
    """
    return _index(folder).get("weight_map", dict[str, str]) if os.path.lexists(folder / INDEX) else None


def _index(folder: Path) -> Fields:
    path = folder / INDEX
    return Fields(read_json_object(path, CheckpointError, 1 << 26, unique=True), printable(path), CheckpointError)


def _read_index(folder: Path) -> dict[str, str] | None:
    """Return tensor name -> file, None for an unsharded checkpoint."""
    if not folder.is_dir():
        raise CheckpointError(f"{printable(folder)}: no such folder")
    check_links(folder, CheckpointError)
    path = folder / INDEX
    if not os.path.lexists(path):
        _need_single(folder)
        _check_one_set(folder, None)
        return None
    fields = _index(folder)
    metadata = Fields(fields.get("metadata", dict, {}), f"{fields.source}: metadata", CheckpointError)
    metadata.whole("total_size", None, 0)
    index: dict[str, str] = fields.get("weight_map", dict[str, str])
    if not index:
        raise CheckpointError(f"{fields.source}: damaged: weight_map is empty")
    for name, file in index.items():
        if Path(file).name != file or not file.endswith(".safetensors") or printable(file) != file:
            raise CheckpointError(
                f"{fields.source}: refused: {printable(name)[:200]} is said to be in {printable(file)[:200]!r}, no "
                "safetensors file beside it"
            )
    _check_one_set(folder, index)
    for file in dict.fromkeys(index.values()):
        if not (folder / file).exists():
            of_file = [printable(name)[:200] for name, other in index.items() if other == file]
            raise CheckpointError(
                f"{folder / file}: missing; the index names it for {len(of_file)} tensors, {of_file[0]} first"
                f"{_begun(folder / file)}. The folder was not copied whole: the same download goes on"
            )
    return index


def _check_one_set(folder: Path, index: dict[str, str] | None) -> None:
    """Check that a folder holds one set of weights, and name what of its weight files is not read.

    Of `model.safetensors` beside an index, transformers loads the single file, other programs what the index names;
    they may differ in age. Files that no program would load, such as shards of an earlier export, are named in a
    warning and left.
    """
    used = {SINGLE} if index is None else set(index.values())
    if SINGLE not in used and os.path.lexists(folder / SINGLE):
        shards = sorted(used)
        gone = sum(not (folder / shard).exists() for shard in shards)
        missing = f"; {gone} of them missing" if gone else ""
        raise CheckpointError(
            f"{printable(folder)}: two sets of weights: {SINGLE}, and {len(shards)} shards that {INDEX} names "
            f"({shards[0]}, ...{missing}). transformers loads the first, other programs the second: move one of the "
            f"two elsewhere (the shards with {INDEX})"
        )
    for name in sorted(used):
        if os.path.lexists(folder / f"{name}.aria2"):  # others give a file its name at the end, this one its size first
            raise CheckpointError(
                f"{printable(folder / name)}: its download is not at its end{_begun(folder / name)}: the same download "
                "goes on; where the file is known to be whole, remove what lies beside it"
            )
    if adapter := adapter_file(folder):
        raise CheckpointError(
            f"{printable(folder / adapter)}: an adapter beside the weights {min(used)}: transformers adds it to them, "
            "this program does not. Move it into a folder of its own, and merge it "
            "(tools/merge_adapter.py BASE ADAPTER OUT) or name it with --adapter"
        )
    rest = sorted(path.name for path in folder.glob("*.safetensors") if path.name not in used)
    indices = sorted(path.name for path in folder.glob("*.safetensors.index*.json") if path.name != INDEX)
    if rest or indices:
        shown = ", ".join(printable(name)[:80] for name in [*rest, *indices][:4])
        more = f" and {len(rest) + len(indices) - 4} more" if len(rest) + len(indices) > 4 else ""
        by = SINGLE if index is None else f"the {len(used)} shards that {INDEX} names"
        _log.warning("%s: read is %s; not read: %s%s", printable(folder), by, shown, more)


def _begun(path: Path) -> str:
    """Name what a downloader has left beside a file that it has not finished, or say nothing."""
    left = [path.name + ending for ending in _UNFINISHED if os.path.lexists(path.parent / (path.name + ending))]
    return f" ({printable(left[0])} lies beside it)" if left else ""


def _need_single(folder: Path) -> None:
    if os.path.lexists(folder / SINGLE):
        return
    if begun := _begun(folder / SINGLE):
        raise CheckpointError(f"{printable(folder / SINGLE)}: missing{begun}: the same download goes on")
    if pickles := sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES):
        raise CheckpointError(
            f"{folder / pickles[0]}: refusing pickle: loading it could run any code; save the model as safetensors "
            f"({SINGLE})"
        )
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    if len(shards) == 1 and "-of-" not in shards[0]:
        raise CheckpointError(
            f"{printable(folder)}: neither {SINGLE} nor {INDEX}, but {printable(shards[0])}: where it holds the whole "
            f"model, name it {SINGLE}"
        )
    if shards:
        raise CheckpointError(f"{folder / INDEX}: missing; {len(shards)} shards such as {shards[0]} need it")
    raise CheckpointError(
        f"{folder}: holds no weights: neither {SINGLE} nor {INDEX}. Where it was downloaded, the same download goes on"
    )
