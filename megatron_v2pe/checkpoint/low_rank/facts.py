"""What an adapter is, found out from its descriptions and headers, as plain values and in words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_v2pe.checkpoint.adapters import AdapterPointer
from megatron_v2pe.checkpoint.hf.safetensors_io import SafetensorsFile
from megatron_v2pe.checkpoint.low_rank.peft_config import PeftConfig
from megatron_v2pe.checkpoint.low_rank.peft_folder import WEIGHTS_FILE, own_file
from megatron_v2pe.checkpoint.low_rank.peft_rows import DELTA
from megatron_v2pe.foreign.printable import printable

PEFT_KIND = "PEFT adapter"


def peft_facts(folder: Path) -> dict[str, Any]:
    """Return what a PEFT folder holds.

    Raises:
        CheckpointError: it is damaged, or no LoRA.
    """
    config, own = PeftConfig.read(folder), own_file(folder)
    places = SafetensorsFile(folder / WEIGHTS_FILE).header.tensors
    downs = [place for place in places if ".lora_A." in place.name]
    rows = [place for place in places if place.name.endswith(DELTA)]
    whole = [place for place in places if ".lora_" not in place.name and place not in rows]
    ranks = Counter(str(place.shape[0]) for place in downs)
    adapter = {
        "kind": "LoRA",
        "linears": len(downs),
        "ranks": dict(sorted(ranks.items(), key=lambda one: int(one[0]))),
        "alpha": config.alpha,
        "rank_stabilised": config.rank_stabilised,
        "dropout": config.dropout,
        "parameters": sum(math.prod(place.shape) for place in places),
        "trained_in_full": len(whole),
        "token_rows": max((place.shape[0] for place in rows), default=0),
        "base": config.base if own is None else own.text("base", config.base),
        "base_fingerprint": None if own is None else own.text("base_fingerprint", None),
    }
    return {"folder": printable(folder), "kind": PEFT_KIND, "adapter": adapter}


def run_adapter_facts(pointer: AdapterPointer) -> dict[str, Any]:
    """Return what a checkpoint of a run says of the adapter that it holds."""
    ranks = Counter(
        str(pointer.parts[name.split(".")[0]].rank) for name in pointer.pieces for _ in pointer.pieces[name]
    )
    first = next(iter(pointer.parts.values()))
    return {
        "kind": pointer.kind,
        "linears": sum(map(len, pointer.pieces.values())),
        "ranks": dict(sorted(ranks.items(), key=lambda one: int(one[0]))),
        "alpha": first.alpha,
        "rank_stabilised": first.use_rslora,
        "dropout": first.dropout,
        "base": pointer.base,
        "base_fingerprint": pointer.fingerprint,
    }


def adapter_in_words(adapter: dict[str, Any]) -> Iterator[str]:
    """Yield the lines that tell a person what an adapter is."""
    ranks = ", ".join(f"{count} of rank {rank}" for rank, count in adapter["ranks"].items())
    scaling = "rank-stabilised, " if adapter["rank_stabilised"] else ""
    yield (
        f"adapter: {adapter['kind']} on {adapter['linears']} linears ({ranks}), {scaling}alpha {adapter['alpha']:g}, "
        f"dropout {adapter['dropout']:g}"
    )
    if "parameters" in adapter:
        full = adapter["trained_in_full"]
        beside = f"; {full} tensors trained in full among them" if full else ""
        tokens = f"; rows of {adapter['token_rows']:,} tokens" if adapter["token_rows"] else ""
        yield f"  {adapter['parameters']:,} parameters{beside}{tokens}"
    known = adapter["base_fingerprint"] or "it states no fingerprint"
    yield f"  base: {printable(adapter['base'])} ({known})"
