r"""The rows of a table under the names of transformers' own InternVL class, made of the rows of the published folders.

| | published folders | transformers |
|---|---|---|
| tower | `vision_model.encoder.layers.0.attn.qkv` | `vision_tower.encoder.layer.0.attention.{q,k,v}_proj` |
| projector | `mlp1.0`, `mlp1.1`, `mlp1.3` | `multi_modal_projector.{layer_norm,linear_1,linear_2}` |
| language model | `language_model.model.layers.0...` | the same; InternLM2's are Llama's, its `wqkv` is three tensors |

Files have these names whichever version of transformers saved them (4.52 to 5.23: `save_pretrained` turns the names of
the modules back to them). The names of the modules themselves, `model.language_model...`, `model.vision_tower...`,
`lm_head.weight`, stand in files that were written from a `state_dict()`; they are read as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from megatron_v2pe.base.plugins import FAMILIES, Registry
from megatron_v2pe.checkpoint.hf.mappings import Interleaved, TensorMapping

MODULE_NAMES = {
    r"^language_model\.model\.": "model.language_model.",
    r"^language_model\.lm_head\.": "lm_head.",
    r"^(vision_tower|multi_modal_projector)\.": r"model.\1.",
}
"""Rules from the names in files to those of the modules."""
_TOWER = {
    r"^vision_model\.": "vision_tower.",
    r"\.class_embedding$": ".cls_token",
    r"\.patch_embedding\.": ".patch_embeddings.projection.",
    r"\.position_embedding$": ".position_embeddings",
    r"\.layers\.": ".layer.",
    r"\.attn\.proj\.": ".attention.projection_layer.",
    r"\.attn\.": ".attention.",
    r"\.norm1\.": ".layernorm_before.",
    r"\.norm2\.": ".layernorm_after.",
    r"\.ls([12])$": r".lambda_\1",
}
_PROJECTOR = {
    r"^mlp1\.0\.": "multi_modal_projector.layer_norm.",
    r"^mlp1\.1\.": "multi_modal_projector.linear_1.",
    r"^mlp1\.3\.": "multi_modal_projector.linear_2.",
}
_JOINT = re.compile(r"\.w?qkv\.")


@dataclass(frozen=True)
class NativeNames:
    """How the tensors of a language model are called in transformers where that is not as in the published folders."""

    rules: Mapping[str, str]
    """Regular expression -> what stands in its place, as in `re.sub`; all are applied, in their order."""
    apart: bool = False
    """Whether a joint projection `qkv` or `wqkv` is three tensors there: `q_proj`, `k_proj`, `v_proj`."""


NATIVE_NAMES: Registry[NativeNames] = Registry("native names of a language model", FAMILIES, "hf_table")
"""Names by what `llm_config.architectures` states; a family without an entry has the same names on both sides."""
_SAME = NativeNames({})


def native_rows(rows: Iterable[TensorMapping], architecture: str) -> Iterator[TensorMapping]:
    """Yield the rows of a native table.

    Args:
        rows: of the table of the published folders.
        architecture: of the language model.
    """
    language = NATIVE_NAMES.find(architecture) or _SAME
    for row in rows:
        of_tower = row.name.startswith("vision_model.")
        names = NativeNames(_TOWER, apart=True) if of_tower else language
        names = NativeNames(_PROJECTOR) if row.name.startswith("mlp1.") else names
        parts = list(_apart(row)) if names.apart else [row]
        yield from (replace(part, name=_renamed(part.name, names.rules)) for part in parts)


def has_module_names(names: Iterable[str]) -> bool:
    """Tell whether tensors of a native checkpoint are called as the modules are.

    Most of them decide, so that of a folder with names of both kinds those of the other kind are the ones left over.
    """
    of_modules = [name.startswith(("model.", "lm_head.")) for name in names]
    return 2 * sum(of_modules) > len(of_modules)


def _apart(row: TensorMapping) -> Iterator[TensorMapping]:
    """Yield a row, or where it is a joint projection to queries, keys and values, one for each."""
    if not isinstance(row.rows, Interleaved) or not _JOINT.search(row.name):
        yield row
        return
    for part, kind, size in row.rows.apart(row.shape[0]):
        name = _JOINT.sub(f".{part}_proj.", row.name)
        yield replace(row, name=name, shape=(size, *row.shape[1:]), rows=kind)


def _renamed(name: str, rules: Mapping[str, str]) -> str:
    for pattern, replacement in rules.items():
        name = re.sub(pattern, replacement, name)
    return name
