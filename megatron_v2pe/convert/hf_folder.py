"""An HF checkpoint folder: its shards, its index, its other files, and the record that lets it be written again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from megatron_v2pe.checkpoint.vet import read_description
from megatron_v2pe.convert.safetensors_io import Header, SafetensorsFile, TensorPlace
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.logging import get_logger

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
_WEIGHTS = {".safetensors", ".gguf", ".h5", ".msgpack", ".onnx", *_PICKLES}
_log = get_logger(__name__)


@dataclass(frozen=True)
class Layout:
    """How an HF checkpoint was cut into files."""

    shards: tuple[tuple[str, Header], ...]
    """File names and headers."""

    def save(self, path: Path) -> None:
        """Write as JSON: per shard its file name and its header to the byte, from which order and types follow."""
        shards = [{"file": file, "header": header.text} for file, header in self.shards]
        path.write_text(json.dumps({"format_version": 1, "shards": shards}, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Layout:
        """Read what `save` wrote.

        Raises:
            CheckpointError: missing or damaged.
        """
        content = read_description(path)
        try:
            shards = [(str(shard["file"]), str(shard["header"])) for shard in content["shards"]]
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: damaged: {error}") from error
        for file, _ in shards:
            if Path(file).name != file or file in (".", ".."):
                raise CheckpointError(f"{path}: refused: {file!r} is no plain file name")
        return cls(tuple((file, Header.parse(text, f"{path}: {file}")) for file, text in shards))

    def places(self) -> dict[str, TensorPlace]:
        """Return every tensor by name."""
        return {place.name: place for _, header in self.shards for place in header.tensors}


class HFWeights:
    """The weights of an HF folder, mapped, not loaded."""

    def __init__(self, folder: Path) -> None:
        """Open every shard and check headers and index.

        Raises:
            CheckpointError: no weights, only pickles, a shard missing or damaged, or an index that disagrees.
        """
        self.folder = folder
        index = _read_index(folder)
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

    @property
    def layout(self) -> Layout:
        """How the weights are cut into files."""
        return Layout(tuple(self._shards))

    def tensor(self, name: str) -> Tensor:
        """Return a tensor that lies in the mapped file."""
        return self._files[name].tensor(name)

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


def other_files(folder: Path) -> Iterator[Path]:
    """Yield, relative to `folder`, every file that belongs to a checkpoint and is no weight file.

    Left out are hidden files and folders but for `.gitattributes`, caches, intermediate checkpoints of a training run,
    and weights in other formats, pickles among them.
    """
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            if not path.name.startswith((".", "checkpoint-", "__pycache__", "runs", "global_step", "iter_")):
                yield from (path.relative_to(folder) / inner for inner in other_files(path))
        elif path.suffix in _PICKLES:
            _log.warning("%s: a pickle; it is not read and not carried along", path)
        elif path.suffix not in _WEIGHTS and (not path.name.startswith(".") or path.name == ".gitattributes"):
            yield path.relative_to(folder)


def copy_other_files(source: Path, target: Path) -> None:
    """Copy every file that is no weight file; `target` exists."""
    for relative in other_files(source):
        (target / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / relative, target / relative)


def _read_index(folder: Path) -> dict[str, str] | None:
    """Return tensor name -> file, None for an unsharded checkpoint."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    path = folder / INDEX
    if not path.is_file():
        _need_single(folder)
        return None
    weight_map: Any = read_description(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: damaged: weight_map is missing")
    index = {str(name): str(file) for name, file in weight_map.items()}
    for name, file in index.items():
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise CheckpointError(f"{path}: refused: {name} is said to be in {file!r}, no safetensors file beside it")
        if not (folder / file).is_file():
            wanted = sum(other == file for other in index.values())
            raise CheckpointError(f"{folder / file}: missing; the index names it for {wanted} tensors, {name} first")
    return index


def _need_single(folder: Path) -> None:
    if (folder / SINGLE).is_file():
        return
    if pickles := sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES):
        raise CheckpointError(
            f"{folder / pickles[0]}: refusing pickle: loading it could run any code; save the model as safetensors "
            f"({SINGLE})"
        )
    if shards := sorted(path.name for path in folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder / INDEX}: missing; {len(shards)} shards such as {shards[0]} need it")
    raise CheckpointError(f"{folder}: holds no weights: neither {SINGLE} nor {INDEX}")
