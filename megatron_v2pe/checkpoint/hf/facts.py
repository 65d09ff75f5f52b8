"""What a checkpoint holds, found out from its headers and descriptions: no weight is read."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from megatron_v2pe.checkpoint.adapters import AdapterPointer
from megatron_v2pe.checkpoint.description import StoredTensor
from megatron_v2pe.checkpoint.folder import DESCRIPTION, TRAINING_STATE
from megatron_v2pe.checkpoint.hf.adapter_files import adapter_file
from megatron_v2pe.checkpoint.hf.manifest import MANIFEST
from megatron_v2pe.checkpoint.hf.on_paper import has_shards, open_on_paper
from megatron_v2pe.checkpoint.hf.open_source import OpenSource, open_hf, open_megatron
from megatron_v2pe.checkpoint.hf.safetensors_io import SafetensorsFile
from megatron_v2pe.checkpoint.low_rank.facts import PEFT_KIND, adapter_in_words, peft_facts, run_adapter_facts
from megatron_v2pe.checkpoint.low_rank.peft_folder import WEIGHTS_FILE, is_peft_folder
from megatron_v2pe.checkpoint.resolve import find_checkpoint
from megatron_v2pe.checkpoint.trained import trained_model
from megatron_v2pe.checkpoint.vet import read_description, vet_checkpoint
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.foreign.grown_tokenizer import read_new_tokens
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Fields
from megatron_v2pe.foreign.tokenizer_settings import TokenizerSettings, source_of
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.v2pe.rope_scaling import RopeScaling

_PARTS = (
    ("tower", "vision_model."),
    ("projector", "vision_projection."),
    ("embedding", "embedding."),
    ("head", "output_layer."),
    ("language model", ""),
)
"""Parts of a model by how the keys of their tensors begin; the first that fits counts."""
_MOST_TOKENS = 8
"""New tokens that are named."""
_OPTIMIZER = "optimizer."
_LANGUAGE = "language_model."
_SIZES = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")
_TRAINED_ON = ("meta_path", "indexed_path", "max_seq_length", "max_packed_tokens", "loss_reduction")


def facts_of(path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds, as plain values.

    Args:
        path: an HF folder, also one with `config.json` alone or with an index and no weights; a Megatron checkpoint,
            or a run, whose newest checkpoint is taken; an adapter as PEFT writes it.

    Raises:
        ConfigError: no checkpoint, or an architecture that is not supported.
        CheckpointError: it is incomplete or damaged.
    """
    if is_peft_folder(path) and not (path / "config.json").is_file():
        return peft_facts(path)
    place = find_checkpoint(path, "checkpoint")
    weights = "there"
    if not place.is_hf:
        source, model = open_megatron(place.folder, verify=False), trained_model(place.folder)
    else:
        if not has_shards(place.folder):
            weights = "not there: sizes follow from config.json"
        source = open_hf(place.folder) if weights == "there" else open_on_paper(place.folder)
        model = source.model
    facts: dict[str, Any] = {
        "folder": printable(place.folder),
        "kind": _kind(source),
        "layout": source.layout,
        "weights": weights,
        "model": _model(model),
        "sizes": _sizes(source),
        "types": {_short(dtype): count for dtype, count in _bytes_of(source).most_common()},
        "files": _files(source, place.folder),
        "settings": _settings(model),
        "tokenizer": _tokenizer(source.hf),
        "new_tokens": [
            {"content": token.content, "id": token.id, "pieces": len(token.pieces)}
            for token in read_new_tokens(source.hf, CheckpointError)
        ],
        "manifest": os.path.lexists(place.folder / MANIFEST),
    }
    if adapter := adapter_file(place.hf):
        facts["beside"] = adapter
    if pointer := AdapterPointer.read(place.folder):
        facts["adapter"] = run_adapter_facts(pointer)
    if not source.is_hf:
        facts |= _written(place.folder)
    if source.trained:
        facts["training"] = _training(place.folder)
    return facts


def tensors_of(path: Path) -> list[tuple[str, str, tuple[int, ...], int]]:
    """Return name, type, shape and bytes of every tensor: HF names of an HF folder, keys of a Megatron checkpoint.

    Raises:
        ConfigError: see `facts_of`.
        CheckpointError: see `facts_of`.
    """
    if is_peft_folder(path) and not (path / "config.json").is_file():
        header = SafetensorsFile(path / WEIGHTS_FILE).header
        return [(place.name, _short(place.dtype), place.shape, place.nbytes) for place in header.tensors]
    place = find_checkpoint(path, "checkpoint")
    if not place.is_hf:
        found = vet_checkpoint(place.folder, verify=False, files=False).tensors
        return [(key, _short(one.dtype), one.size, _bytes(one)) for key, one in sorted(found.items())]
    source = open_hf(place.folder) if has_shards(place.folder) else open_on_paper(place.folder)
    places = source.files.places().values()
    return [(place.name, _short(place.dtype), place.shape, place.nbytes) for place in places]


def _kind(source: OpenSource) -> str:
    if source.is_hf:
        return "HF folder"
    return "checkpoint of a training run" if source.trained else "converted Megatron checkpoint"


def _model(model: InternVLConfig) -> dict[str, Any]:
    llm, vision = model.llm, model.vision
    return {
        "language_model": llm.architecture,
        "layers": llm.num_layers,
        "hidden_size": llm.hidden_size,
        "heads": llm.num_attention_heads,
        "groups": llm.num_query_groups,
        "head_dim": llm.head_dim,
        "ffn_hidden_size": llm.ffn_hidden_size,
        "vocabulary": llm.vocab_size,
        "tied_head": llm.tie_word_embeddings,
        "tower": vision.architecture,
        "tower_layers": vision.num_layers,
        "tower_hidden_size": vision.hidden_size,
        "tower_heads": vision.num_attention_heads,
        "select_layer": model.select_layer,
        "tile_size": model.tile_size,
        "tokens_per_tile": model.tokens_per_tile,
    }


def _sizes(source: OpenSource) -> dict[str, dict[str, int]]:
    """Return parameters and bytes of every part, and of all."""
    rows, found = source.rows.keys, {name: Counter[str]() for name, _ in (*_PARTS, ("all", ""))}
    for row in source.table.tensors:
        key, count = row.key.removeprefix(_LANGUAGE), math.prod(row.shape)
        part = next(name for name, begin in _PARTS if key.startswith(begin))
        for name in (part, "all"):
            found[name].update(tensors=1, parameters=count, bytes=count * rows[row.key].dtype.itemsize)
    return {name: dict(count) for name, count in found.items() if count}


def _bytes_of(source: OpenSource) -> Counter[torch.dtype]:
    return source.bytes_of() if source.is_hf else source.stored_bytes()


def _files(source: OpenSource, folder: Path) -> list[dict[str, Any]]:
    if source.is_hf:
        return [
            {"name": name, "bytes": header.file_size, "tensors": len(header.tensors)}
            for name, header in source.files.shards
        ]
    data = sorted(folder.glob("*.distcp"))
    return [{"name": path.name, "bytes": path.stat().st_size} for path in data]


def _settings(model: InternVLConfig) -> dict[str, Any]:
    rope, v2pe = model.llm.rope, model.v2pe
    return {
        "rope_pos_id_version": v2pe.rope_pos_id_version,
        "rope_pos_id_stride": v2pe.rope_pos_id_stride,
        "rope_base": rope.base,
        "rope_scaling": _scaling(rope.scaling),
        "max_position_embeddings": model.llm.max_position_embeddings,
        "template": model.template,
        "dynamic_image_size": model.dynamic_image_size,
        "min_dynamic_patch": model.min_dynamic_patch,
        "max_dynamic_patch": model.max_dynamic_patch,
        "use_thumbnail": model.use_thumbnail,
        "normalize_type": model.normalize_type,
    }


def _scaling(scaling: RopeScaling) -> str:
    """Return kind and factor of a rotary scaling."""
    factor = getattr(scaling, "factor", None)
    return scaling.kind if factor is None else f"{scaling.kind} by {factor:g}"


def _tokenizer(hf: Path) -> dict[str, Any] | None:
    try:
        settings = TokenizerSettings.read(hf, CheckpointError)
        found = source_of(hf, settings.name, CheckpointError)
    except CheckpointError as error:
        return {"damaged": str(error)}
    return None if found is None else {"class": settings.name or "not named", "made_of": found.value}


def _written(folder: Path) -> dict[str, Any]:
    """Return what a Megatron checkpoint says of how it was written, and what it holds beside weights."""
    description, path = read_description(folder / DESCRIPTION), printable(folder / DESCRIPTION)
    fields = Fields(description, path, CheckpointError)
    tensors = vet_checkpoint(folder, verify=False, files=False).tensors
    optimizer = [one for key, one in tensors.items() if key.startswith(_OPTIMIZER)]
    weights = [one for key, one in tensors.items() if not key.startswith(_OPTIMIZER)]
    return {
        "format_version": fields.whole("format_version"),
        "versions": fields.get("versions", dict[str, Any], {}),
        "shards": sum(len(one.shards) for one in tensors.values()),
        "stored_types": dict(Counter(_short(one.dtype) for one in weights)),
        "optimizer": {"tensors": len(optimizer), "bytes": sum(map(_bytes, optimizer))} if optimizer else None,
    }


def _training(folder: Path) -> dict[str, Any]:
    """Return how a run trained, as far as its state says."""
    state = Fields(read_description(folder / TRAINING_STATE), printable(folder / TRAINING_STATE), CheckpointError)
    settings = state.get("settings", dict[str, Any], {})
    found: dict[str, Any] = {"step": state.whole("iteration")}
    sections = {name: section for name, section in settings.items() if isinstance(section, dict)}
    model, train = sections.get("model", {}), sections.get("train", {})
    found["started_from"] = model.get("model_name_or_path")
    found["layout"] = {name: sections.get("parallel", {}).get(name) for name in _SIZES}
    found["data"] = {name: sections.get("data", {}).get(name) for name in _TRAINED_ON}
    found["steps_planned"], found["precision"] = train.get("train_steps"), train.get("precision")
    found["learning_rate"] = sections.get("optimizer", {}).get("lr")
    found["frozen"] = [name.removeprefix("freeze_") for name, value in model.items() if _freezes(name, value)]
    mixture = Fields(state.content, state.source, CheckpointError).get("loader", dict[str, Any], {}).get("mixture")
    if isinstance(mixture, dict):
        found["samples"] = mixture.get("samples")
    return found


def _freezes(name: str, value: Any) -> bool:
    return name.startswith("freeze_") and value is True


def _bytes(stored: StoredTensor) -> int:
    return math.prod(stored.size) * stored.dtype.itemsize


def _short(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def in_words(facts: dict[str, Any]) -> Iterator[str]:
    """Yield the lines that tell a person what `facts_of` has found."""
    if facts["kind"] == PEFT_KIND:
        yield f"{facts['folder']}: {facts['kind']}"
        yield from adapter_in_words(facts["adapter"])
        return
    model, sizes, settings = facts["model"], facts["sizes"], facts["settings"]
    yield f"{facts['folder']}: {facts['kind']}, {facts['layout']} layout; weights {facts['weights']}"
    yield (
        f"model: {model['language_model']}, {model['layers']} layers of width {model['hidden_size']}, "
        f"{model['heads']} heads of width {model['head_dim']} in {model['groups']} groups, vocabulary "
        f"{model['vocabulary']}{', head tied to the embedding' if model['tied_head'] else ''}"
    )
    yield (
        f"tower: {model['tower']}, {model['tower_layers']} layers of width {model['tower_hidden_size']}, "
        f"{model['tower_heads']} heads, layer {model['select_layer']} is used; a tile of {model['tile_size']} pixels "
        f"is {model['tokens_per_tile']} tokens"
    )
    for name, count in sizes.items():
        parameters, tensors = f"{count['parameters']:>17,} parameters", f"{count['tensors']:>6} tensors"
        yield f"  {name:16} {parameters} {_size(count['bytes']):>11} {tensors}"
    yield "types: " + ", ".join(f"{name} {_size(count)}" for name, count in facts["types"].items())
    shown = [f"{file['name']} {_size(file['bytes'])}" for file in facts["files"][:4]]
    more = f", and {len(facts['files']) - 4} more" if len(facts["files"]) > 4 else ""
    yield f"files: {', '.join(shown)}{more}" + ("" if "shards" not in facts else f"; {facts['shards']} shards in them")
    stride = settings["rope_pos_id_stride"]
    yield (
        f"positions: {settings['rope_pos_id_version']}{'' if stride is None else f', stride {stride}'}; rotary base "
        f"{settings['rope_base']:g}, scaling {settings['rope_scaling']}, up to {settings['max_position_embeddings']}"
    )
    tiles = f"{settings['min_dynamic_patch']} to {settings['max_dynamic_patch']}"
    tiles += ", thumbnail" if settings["use_thumbnail"] else ""
    tiles = tiles if settings["dynamic_image_size"] else "one of each image"
    yield f"template: {settings['template']}; tiles: {tiles}; pixels {settings['normalize_type']}"
    tokenizer = facts["tokenizer"]
    yield "tokenizer: " + ("none" if tokenizer is None else ", ".join(map(str, tokenizer.values())))
    if new := facts["new_tokens"]:
        shown = ", ".join(printable(token["content"])[:40] for token in new[:_MOST_TOKENS])
        more = f" and {len(new) - _MOST_TOKENS} more" if len(new) > _MOST_TOKENS else ""
        yield f"new tokens: {len(new)}, ids {new[0]['id']} to {new[-1]['id']}: {shown}{more}"
    yield f"manifest: {'there' if facts['manifest'] else 'none'}"
    if "adapter" in facts:
        yield from adapter_in_words(facts["adapter"])
    if "beside" in facts:
        yield f"adapter: {facts['beside']} lies beside the weights; a conversion refuses the folder until it is merged"
    yield from _history_in_words(facts)


def _history_in_words(facts: dict[str, Any]) -> Iterator[str]:
    if "versions" in facts:
        versions = ", ".join(f"{name} {value}" for name, value in facts["versions"].items())
        yield f"written by: {versions}; format version {facts['format_version']}"
        optimizer = facts["optimizer"]
        held = "none" if optimizer is None else f"{optimizer['tensors']} tensors, {_size(optimizer['bytes'])}"
        yield f"optimizer: {held}"
    if (training := facts.get("training")) is None:
        return
    layout = ", ".join(f"{name.split('_')[0]} {value}" for name, value in training["layout"].items())
    yield f"trained: step {training['step']} of {training['steps_planned']}, from {training['started_from']}"
    yield f"  layout: {layout}; {training['precision']}, learning rate {training['learning_rate']}"
    yield "  data: " + ", ".join(f"{name} {value}" for name, value in training["data"].items() if value)
    if training.get("samples"):
        yield "  samples: " + ", ".join(f"{name} {count}" for name, count in training["samples"].items())
    if training["frozen"]:
        yield f"  frozen: {', '.join(training['frozen'])}"


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.2f} MiB"
