"""A SentencePiece model as a `tokenizer.json`, which the `tokenizers` library opens without any code of a checkpoint.

The ids are those that this project gives (`data/tokenizer.py`): special tokens are cut out first, SentencePiece's BPE
sees what lies between them. The library joins pairs of pieces in an order of pairs, SentencePiece in the order of the
piece that comes out: every way to cut a piece into two of the vocabulary is a pair here, in the order of the pieces.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from megatron_v2pe.foreign.files import Kind
from megatron_v2pe.foreign.library_rules import blanks_as_pieces, merges_of
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.tokenizer_files import load_pieces


def library_of_pieces(
    model_file: Path, special: Mapping[str, int], error: Kind, shown: Collection[str] = ()
) -> dict[str, Any]:
    """Return the content of the `tokenizer.json` that gives the ids of a SentencePiece BPE.

    Args:
        model_file: `tokenizer.model`.
        special: tokens of their own, name -> id. An id within the pieces takes the place of the piece.
        error: class of the error to raise.
        shown: those of them that are part of a text where ids become text.

    Raises:
        V2PEError: of class `error`: no SentencePiece model, or one whose rules for text the library has not: it is no
            BPE, changes characters or takes spaces away; names the rule.
    """
    from sentencepiece import sentencepiece_model_pb2 as messages

    loaded = load_pieces(model_file, error)
    model: Any = messages.ModelProto()  # type: ignore[attr-defined]  # made when imported, unseen by type checkers
    model.ParseFromString(loaded.serialized_model_proto())
    rules, kinds = model.normalizer_spec, model.SentencePiece
    faults = {
        "it is no BPE": model.trainer_spec.model_type != model.trainer_spec.BPE,
        "it changes characters (precompiled_charsmap)": bool(rules.precompiled_charsmap),
        "it takes spaces away (remove_extra_whitespaces)": rules.remove_extra_whitespaces,
        "it does not spell spaces as pieces (escape_whitespaces)": not rules.escape_whitespaces,
        "it has pieces that are never cut (user-defined)": any(p.type == kinds.USER_DEFINED for p in model.pieces),
    }
    if wrong := [fault for fault, there in faults.items() if there]:
        raise error(
            f"{printable(model_file)}: no tokenizer.json gives the ids of this model: {'; '.join(wrong)}; take the "
            "tokenizer.json of the published folder"
        )
    controls = {loaded.id_to_piece(number): number for number in range(len(model.pieces)) if loaded.is_control(number)}
    unknown = loaded.id_to_piece(loaded.unk_id())
    own = {unknown: loaded.unk_id(), **controls, **special}
    names = {number: piece.piece for number, piece in enumerate(model.pieces)}
    names |= {number: name for name, number in own.items()}
    usual = [piece.piece for number, piece in enumerate(model.pieces) if piece.type == kinds.NORMAL and
             names[number] == piece.piece]  # fmt: skip
    blanks = blanks_as_pieces("always" if rules.add_dummy_prefix else "never")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added(name, number, name not in shown) for name, number in sorted(own.items(), key=lambda item: item[1])
        ],
        "normalizer": blanks["normalizer"],
        "pre_tokenizer": blanks["pre_tokenizer"],
        "post_processor": None,
        "decoder": blanks["decoder"],
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": bool(model.trainer_spec.byte_fallback),
            "ignore_merges": False,
            "vocab": {name: number for number, name in sorted(names.items())},
            "merges": merges_of(usual),
        },
    }


def _added(name: str, number: int, special: bool) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": name, **plain, "special": special}
