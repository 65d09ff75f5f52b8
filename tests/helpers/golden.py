"""Run the golden cases of the reference implementation through our model; for use inside a `WorkerPool`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from helpers.hf_names import to_full_state
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.micro_batch import MicroBatch, PackCutter, TensorPack
from megatron_v2pe.models.transformer_config import ModelOptions
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.v2pe.position_ids import Ticks, find_images, position_ticks
from megatron_v2pe.v2pe.settings import StridePolicy
from megatron_v2pe.workshop.built_model import built
from megatron_v2pe.workshop.full_state import gather_full, load_full


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the description and the tensors of one golden file."""
    with safe_open(str(path), "pt") as stream:
        meta = json.loads((stream.metadata() or {}).get("meta", "{}"))
        return meta, {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118


def read_checkpoint(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return `config.json` and the whole HF state of a checkpoint folder."""
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text())
    state: dict[str, Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        state.update(load_file(shard))
    return config, state


def policy_of(meta: dict[str, Any]) -> StridePolicy:
    """Return the position policy a golden case was made with."""
    return StridePolicy(meta["rope_pos_id_version"], meta.get("rope_pos_id_stride"))


def ticks_of(
    input_ids: Tensor,
    seqlens: list[int],
    num_tiles: list[int],
    model: InternVLConfig,
    policy: StridePolicy,
    special: dict[str, int],
) -> Ticks:
    """Compute position ticks of a pack of documents, images dealt out in order."""
    tiles, parts = list(num_tiles), []
    denominator = policy.denominator(model.tokens_per_tile)
    for document in input_ids.split(seqlens):
        count = int((document == special["img_start_id"]).sum())
        here, tiles = tiles[:count], tiles[count:]
        images = find_images(document, here, model.tokens_per_tile, **special)
        strides = policy.draw(len(images), model.tokens_per_tile, epoch=0, sample=0)
        parts.append(position_ticks(len(document), images, strides, model.tokens_per_tile, denominator))
    return Ticks.joined(parts, denominator)


def run_case(checkpoint: str, case: str, inputs: str) -> dict[str, Any]:
    """Run one golden case on one process and return what to compare with it.

    Returns:
        vit, shuffled, projected, fused, logits, loss, positions (float64) and gradients by HF name.
    """
    meta, gold = read(case)
    _, shared = read(inputs)
    hf_config, hf_state = read_checkpoint(checkpoint)
    model_config = InternVLConfig.from_hf(hf_config)
    inputs_meta, _ = read(inputs)
    special = {key: inputs_meta[key] for key in ("img_start_id", "img_end_id", "img_context_id")}
    ids, labels = gold["input_ids"][0], gold["labels"][0]
    seqlens = _seqlens(meta, gold)
    pixels = gold.get("pixel_values")
    if pixels is None:
        pixels = shared[meta["pixel_values"].partition(":")[2]]
    flags = gold.get("image_flags", torch.ones(len(pixels)))[: len(pixels)].bool()
    policy = policy_of(meta)
    ticks = ticks_of(ids, seqlens, gold["num_tiles"].tolist(), model_config, policy, special)
    weights = gold["loss_weight"][0] if "loss_weight" in gold else (labels != -100).float()
    options = ModelOptions(params_dtype=torch.float32)
    with built(hf_config, ParallelConfig(), options, policy, special["img_context_id"]) as model:
        load_full(model, to_full_state(hf_state, model_config.vision.num_attention_heads))
        tiles = pixels[flags]
        pack = TensorPack(
            ids,
            ticks,
            seqlens,
            labels=_shift(labels, -100),
            loss_weights=_shift(weights, 0.0),
            num_tiles=[len(tiles)],
            tiles=tiles,
        )
        batch = PackCutter(model.coordinates, special["img_context_id"], model_config.tokens_per_tile).cut(pack)
        loss_sum = model(batch)
        loss = loss_sum / weights.sum()
        loss.backward()
        gradients = gather_full(model, lambda parameter: parameter.grad)
        with torch.no_grad():
            stages = _stages(model, batch)
            logits = model(replace(batch, targets=None))
    return {
        **stages,
        "logits": logits,
        "loss": loss.item(),
        "positions": ticks.values.double() / ticks.denominator,
        "gradients": gradients,
        "gold_gradients": {k[5:]: v for k, v in gold.items() if k.startswith("grad.")},
    }


def _stages(model: Any, batch: MicroBatch) -> dict[str, Tensor]:
    from megatron_v2pe.models.projector import pixel_shuffle

    if batch.pixel_values is None:
        nothing = torch.empty(0, model.internvl.tokens_per_tile, model.config.hidden_size)
        return {"fused": model.embed(batch, nothing).squeeze(1)}
    vit = model.vision_model(batch.pixel_values)
    projected = model.encode_images(batch.pixel_values)
    return {
        "vit": vit,
        "shuffled": pixel_shuffle(vit[:, 1:], model.internvl.downsample_ratio, model.internvl.ps_version),
        "projected": projected,
        "fused": model.embed(batch, projected).squeeze(1),
    }


def _seqlens(meta: dict[str, Any], gold: dict[str, Tensor]) -> list[int]:
    if "cu_seqlens" not in meta:
        return [gold["input_ids"].shape[1]]
    borders = torch.tensor(meta["cu_seqlens"][0])
    return borders.diff().tolist()


def _shift(values: Tensor, fill: float) -> Tensor:
    return torch.cat([values[1:], values.new_full((1,), fill)])


def run_generation(checkpoint: str, case: str, inputs: str) -> dict[str, Any]:
    """Generate greedily from one golden prompt on one process.

    Returns:
        ids, logits per step with the cache and recomputed, and prompt positions (float64).
    """
    from helpers.generation import recompute
    from megatron_v2pe.generate.engine import Engine
    from megatron_v2pe.generate.generation import GenerationOptions, generate
    from megatron_v2pe.generate.prompt import Prompt

    meta, gold = read(case)
    inputs_meta, shared = read(inputs)
    hf_config, hf_state = read_checkpoint(checkpoint)
    model_config = InternVLConfig.from_hf(hf_config)
    special = {key: inputs_meta[key] for key in ("img_start_id", "img_end_id", "img_context_id")}
    policy = policy_of(meta)
    ids, num_tiles = gold["prompt_ids"][0], gold["num_tiles"].tolist()
    ticks = ticks_of(ids, [len(ids)], num_tiles, model_config, policy, special)
    with built(hf_config, ParallelConfig(), ModelOptions(), policy, special["img_context_id"]) as model:
        load_full(model, to_full_state(hf_state, model_config.vision.num_attention_heads))
        prompt = Prompt(ids, ticks, shared[meta["pixel_values"].partition(":")[2]], tuple(num_tiles))
        options = GenerationOptions(max_new_tokens=len(gold["generated_ids"]), keep_logits=True)
        answer = generate(Engine(model.eval()), [prompt], options)[0]
        again = recompute(model, prompt, answer.token_ids)
    positions = ticks.values.double() / ticks.denominator
    logits = torch.stack(answer.logits).clone()
    return {"ids": answer.token_ids, "logits": logits, "recomputed": again, "positions": positions}
