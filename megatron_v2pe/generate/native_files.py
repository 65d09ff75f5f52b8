"""The files beside the weights by which `transformers` asks a native export: tokenizer, processor, chat template.

They are made of the tokenizer of the folder that is exported and of what `config.json` says of tiles and conversations:

| file | from |
|---|---|
| `tokenizer.json` | as it is; of a SentencePiece model alone it is made (`foreign/sentence_piece_library.py`) |
| `tokenizer_config.json` | the folder's, with the names of the image tokens, without remote code |
| `chat_template.jinja` | the conversation template (`data/chat_template.py`) |
| `generation_config.json` | the folder's, with the end of an answer among the tokens that stop |
| `preprocessor_config.json`, `processor_config.json`, `video_preprocessor_config.json` | tiles, norms |

What the folder had in their place, and its remote code, which `transformers` would never run beside a native
`config.json`, lies in `v2pe_original/`: an export back to the original layout takes it from there.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.checkpoint.folder import ORIGINALS
from megatron_v2pe.data.chat_template import VIDEO, chat_template
from megatron_v2pe.data.conversation import TEMPLATES
from megatron_v2pe.data.image_operations import NORMALISATION
from megatron_v2pe.data.tokenizer import IMG_CONTEXT, IMG_END, IMG_START, Tokenizer
from megatron_v2pe.errors import CheckpointError, ConfigError, V2PEError
from megatron_v2pe.foreign.library_files import open_library
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.sentence_piece_library import library_of_pieces
from megatron_v2pe.foreign.text import read_json_object
from megatron_v2pe.foreign.tokenizer_files import shown_tokens, special_tokens
from megatron_v2pe.foreign.tokenizer_folder import has_tokenizer
from megatron_v2pe.foreign.tokenizer_settings import (
    CONFIG,
    MODEL,
    TOKENS_MAP,
    WHOLE,
    TokenizerSettings,
    TokenizerSource,
    source_of,
)
from megatron_v2pe.models.config import InternVLConfig, layout_of, read_stated
from megatron_v2pe.models.native_config import NATIVE

GENERATION, CHAT_TEMPLATE, PROCESSOR = "generation_config.json", "chat_template.jinja", "processor_config.json"
PREPROCESSOR, VIDEO_PREPROCESSOR = "preprocessor_config.json", "video_preprocessor_config.json"
_MADE = (CONFIG, GENERATION, CHAT_TEMPLATE, PREPROCESSOR, PROCESSOR, VIDEO_PREPROCESSOR)
_LIBRARY_CLASS = "PreTrainedTokenizerFast"
_CLASSES = ("Qwen2Tokenizer", "Qwen2TokenizerFast", "LlamaTokenizer", "LlamaTokenizerFast", _LIBRARY_CLASS)
"""Tokenizer classes of transformers that open a folder of these kinds."""
_OF_CODE = ("auto_map", "chat_template", "additional_special_tokens", "sp_model_kwargs", "tokenizer_file")
_log = get_logger(__name__)


def side_files(source: Path, target: Path, layout: str, config: Mapping[str, Any]) -> None:
    """Write the files beside the weights that follow from layout and `config.json`; a `SideFiles` of conversions.

    Args:
        source: HF folder, or `hf/` of a Megatron checkpoint, in either layout.
        target: folder that is being written; it holds `config.json` and copies of the source's other files.
        layout: of the target.
        config: content of the `config.json` that is written.

    Raises:
        V2PEError: see `write_native_files`.
    """
    before = layout_of(source)
    if layout == NATIVE and before == NATIVE:
        _refresh(source, target, config)
    elif layout == NATIVE:
        write_native_files(source, target, config)
    elif before == NATIVE:
        restore_original_files(source, target)


def write_native_files(source: Path, target: Path, config: Mapping[str, Any]) -> None:
    """Write the files of a native folder in place of those that have been copied from the source.

    Args:
        source: HF folder, or `hf/` of a Megatron checkpoint, in original layout.
        target: folder that is being written; it holds `config.json` and copies of the source's other files.
        config: content of the native `config.json`.

    Raises:
        V2PEError: a tokenizer file is damaged, or it is of a kind for which no `tokenizer.json` can be made.
    """
    model = InternVLConfig.from_hf(config, printable(target / "config.json"))
    _put_aside(target)
    _write(target / PREPROCESSOR, _image_processor(model))
    _write(target / VIDEO_PREPROCESSOR, _video_processor(model))
    _write(target / PROCESSOR, {"processor_class": "InternVLProcessor", "image_seq_length": model.tokens_per_tile})
    settings = TokenizerSettings.read(source, ConfigError)
    kind = source_of(source, settings.name, ConfigError)
    if kind is None:
        _log.warning("%s: no tokenizer lies there; the native folder has no chat template either", printable(source))
        return
    tokenizer = Tokenizer.from_folder(source)
    made = kind in (TokenizerSource.SENTENCE_PIECES, TokenizerSource.LLAMA_MODEL)
    if kind is TokenizerSource.SENTENCE_PIECES:
        own, shown = special_tokens(source, ConfigError), shown_tokens(source, ConfigError)
        _write(target / WHOLE, library_of_pieces(source / MODEL, own, ConfigError, shown))
    elif kind is TokenizerSource.LLAMA_MODEL:
        text = open_library(source, kind, settings, ConfigError).library.to_str(pretty=True)
        (target / WHOLE).write_text(text, encoding="utf-8")
    begins = bool(tokenizer.before)
    _write(target / CONFIG, _tokenizer(_json(source / CONFIG), _json(source / TOKENS_MAP), made, begins))
    if model.template not in TEMPLATES:
        _log.warning("conversation template %r is not known: no %s is written", model.template, CHAT_TEMPLATE)
        return
    template = TEMPLATES[model.template]
    if _belongs(model.template, tokenizer):
        (target / CHAT_TEMPLATE).write_text(chat_template(template, tokenizer) + "\n", encoding="utf-8")
    ends = [tokenizer.special[template.end]] if template.end in tokenizer.special else []
    _write(target / GENERATION, _generation(_json(source / GENERATION), config["text_config"], ends))


def restore_original_files(source: Path, target: Path) -> None:
    """Put the files of the original back in a folder of original layout that is made of a native one.

    Args:
        source: HF folder, or `hf/` of a Megatron checkpoint, in native layout.
        target: folder that is being written; it holds `config.json` and copies of the source's other files.
    """
    shutil.rmtree(target / ORIGINALS, ignore_errors=True)
    for name in _MADE:
        (target / name).unlink(missing_ok=True)
    kept = source / ORIGINALS
    if kept.is_dir():
        for path in sorted(kept.iterdir()):
            if path.is_file() and (path.name == WHOLE or _stands_aside(path)):  # nothing else is of ours
                shutil.copyfile(path, target / path.name)
        if not os.path.lexists(kept / WHOLE) and os.path.lexists(target / MODEL):
            (target / WHOLE).unlink(missing_ok=True)
    else:
        stated = {name: value for name, value in _json(source / CONFIG).items() if name not in _NATIVE_ONLY}
        if stated:
            _write(target / CONFIG, stated)
        if os.path.lexists(source / GENERATION):
            shutil.copyfile(source / GENERATION, target / GENERATION)
    if not list(target.glob("modeling_*.py")):
        _log.warning(
            "the folder holds no remote code (modeling_internvl_chat.py and what it imports), which transformers needs "
            "for this layout; this program needs none. Copy the .py files of the published folder beside it, and "
            "auto_map of its config.json"
        )


def _refresh(source: Path, target: Path, config: Mapping[str, Any]) -> None:
    """Write tiles and conversation template into a native folder whose `config.json` may state others than before."""
    model, before = InternVLConfig.from_hf(config), InternVLConfig.from_folder(source)
    tiles = _image_processor(model)
    if os.path.lexists(target / PREPROCESSOR):
        _write(target / PREPROCESSOR, {**_json(source / PREPROCESSOR), **tiles})
    whole = _json(source / PROCESSOR)
    if isinstance(own := whole.get("image_processor"), dict):  # transformers 5 saves it there, and reads it there first
        kind = own.get("image_processor_type", tiles["image_processor_type"])
        _write(target / PROCESSOR, {**whole, "image_processor": {**own, **tiles, "image_processor_type": kind}})
    if model.template != before.template and model.template in TEMPLATES and os.path.lexists(target / CHAT_TEMPLATE):
        tokenizer = Tokenizer.from_folder(source)
        if _belongs(model.template, tokenizer):
            text = chat_template(TEMPLATES[model.template], tokenizer)
            (target / CHAT_TEMPLATE).write_text(text + "\n", encoding="utf-8")


def _belongs(template: str, tokenizer: Tokenizer) -> bool:
    """Tell whether the tokenizer has a token for every mark of a template, and warn where it has not."""
    try:
        tokenizer.check_template(template)
    except ConfigError as error:
        _log.warning("%s; no %s is written", error, CHAT_TEMPLATE)
        return False
    return True


def check_conversation(folder: Path) -> None:
    """Check that template and image token that an HF folder states belong to the tokenizer that lies there.

    A folder without a tokenizer, and a template that is not known, pass: what asks the model refuses them. What cannot
    be read passes too: the conversion names it.

    Raises:
        ConfigError: a mark of the template is no token, or `image_token_id` of a native `config.json` is not the id of
            the image token; names the file and both.
    """
    try:
        if not has_tokenizer(folder):
            return
        model, tokenizer = InternVLConfig.from_folder(folder), Tokenizer.from_folder(folder)
        stated, own = read_stated(folder).get("image_token_id"), tokenizer.special.get(IMG_CONTEXT)
    except (V2PEError, OSError):
        return
    if model.template in TEMPLATES:
        tokenizer.check_template(model.template)
    if stated is not None and own is not None and stated != own:
        raise ConfigError(
            f"{printable(folder / 'config.json')}: image_token_id is {stated}, the tokenizer's {IMG_CONTEXT} is {own}; "
            "one of them is of another checkpoint"
        )


_NATIVE_ONLY = ("extra_special_tokens", "processor_class", "chat_template")


def _put_aside(target: Path) -> None:
    """Move what other files take the place of, and remote code, to a folder of their own.

    A `tokenizer.json` beside a `tokenizer.model` is copied there: without the copy, the one here was made.
    """
    aside = target / ORIGINALS
    for path in sorted(target.iterdir()):
        if _stands_aside(path) or path.name == WHOLE and os.path.lexists(target / MODEL):
            aside.mkdir(exist_ok=True)
            shutil.copyfile(path, aside / path.name)
        if _stands_aside(path):
            path.unlink()


def _stands_aside(path: Path) -> bool:
    """Tell whether a file of an original folder makes way in a native one."""
    return path.name in (*_MADE, TOKENS_MAP) or path.suffix == ".py"


def _image_processor(model: InternVLConfig) -> dict[str, Any]:
    """Return the settings of `GotOcr2ImageProcessor`, which cuts tiles."""
    if model.dynamic_image_size and not model.use_thumbnail:
        _log.warning("use_thumbnail is false, but transformers adds a thumbnail to every image of several tiles")
    if model.pad2square:
        _log.warning("pad2square is true, which transformers' image processor does not do")
    mean, deviation = NORMALISATION[model.normalize_type]
    return {
        "image_processor_type": "GotOcr2ImageProcessorFast",
        "processor_class": "InternVLProcessor",
        "crop_to_patches": model.dynamic_image_size,
        "min_patches": model.min_dynamic_patch,
        "max_patches": model.max_dynamic_patch if model.dynamic_image_size else 1,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": model.tile_size, "width": model.tile_size},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(deviation),
    }


def _video_processor(model: InternVLConfig) -> dict[str, Any]:
    """Return the settings of `InternVLVideoProcessor`: a frame is one tile."""
    frames = {"video_processor_type": "InternVLVideoProcessor", "do_sample_frames": False}
    same = ("processor_class", "do_convert_rgb", "do_resize", "size", "resample", "do_rescale", "rescale_factor",
            "do_normalize", "image_mean", "image_std")  # fmt: skip
    image = _image_processor(model)
    return {**frames, **{name: image[name] for name in same}}


def _tokenizer(stated: dict[str, Any], roles: Mapping[str, Any], made: bool, begins: bool) -> dict[str, Any]:
    """Return the `tokenizer_config.json` of a native folder."""
    result = {name: value for name, value in stated.items() if name not in _OF_CODE}
    for name, token in roles.items():
        if name.endswith("_token"):
            result.setdefault(name, token["content"] if isinstance(token, dict) else token)
    if made or result.get("tokenizer_class") not in _CLASSES:
        result["tokenizer_class"] = _LIBRARY_CLASS
    if begins:
        result["add_bos_token"] = True
    result["extra_special_tokens"] = {
        "start_image_token": IMG_START,
        "end_image_token": IMG_END,
        "context_image_token": IMG_CONTEXT,
        "video_token": VIDEO.strip(),
    }
    result["processor_class"] = "InternVLProcessor"
    return result


def _generation(stated: dict[str, Any], text: Mapping[str, Any], ends: list[int]) -> dict[str, Any]:
    """Return the `generation_config.json` of a native folder."""
    found = [stated.get("eos_token_id"), text.get("eos_token_id")]
    ids = [number for value in found for number in (value if isinstance(value, list) else [value])]
    stops = sorted({*ends, *(number for number in ids if isinstance(number, int))})
    result = {name: value for name, value in stated.items() if name not in ("_from_model_config", "eos_token_id")}
    for name in ("bos_token_id", "pad_token_id"):
        if isinstance(text.get(name), int):
            result.setdefault(name, text[name])
    return {**result, **({"eos_token_id": stops} if stops else {})}


def _json(path: Path) -> dict[str, Any]:
    return read_json_object(path, CheckpointError, unique=True) if os.path.lexists(path) else {}


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
