"""Adapters of small models: as PEFT trains and writes them, and what our model computes with them in any layout."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helpers.native_models import SPECIAL, Document, small_config, small_state, to_keys, write_native
from megatron_v2pe.checkpoint.hf.table import mapping_table
from megatron_v2pe.checkpoint.low_rank.change import LowRankChange
from megatron_v2pe.checkpoint.low_rank.module_names import module_table
from megatron_v2pe.checkpoint.low_rank.peft_folder import read_peft
from megatron_v2pe.checkpoint.low_rank.piece_rows import piece_name, piece_table
from megatron_v2pe.generate.engine import Engine
from megatron_v2pe.generate.generation import GenerationOptions, generate
from megatron_v2pe.generate.named_adapters import NamedAdapters
from megatron_v2pe.generate.prompt import Prompt
from megatron_v2pe.generate.session import Session
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.lora import put_adapters
from megatron_v2pe.models.micro_batch import PackCutter, TensorPack
from megatron_v2pe.models.transformer_config import ModelOptions
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.v2pe.position_ids import Ticks, find_images, position_ticks
from megatron_v2pe.v2pe.settings import StridePolicy
from megatron_v2pe.workshop.built_model import built
from megatron_v2pe.workshop.full_state import gather_full, load_full


def small_base(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Write a small model as a native folder; return its original `config.json` and its weights by original names."""
    config = small_config(name)
    state = small_state(config)
    write_native(folder, config, state)
    return config, state


def peft_adapter(base: Path, folder: Path, seed: int = 0, **settings: Any) -> None:
    """Write an adapter of a native folder as PEFT itself does, no factor of it zero; `settings` are of `LoraConfig`."""
    import peft
    import transformers

    torch.manual_seed(seed)
    model = transformers.AutoModelForImageTextToText.from_pretrained(base)
    asked = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear", "init_lora_weights": True, **settings}
    changed = peft.get_peft_model(model, peft.LoraConfig(**asked))
    with torch.no_grad():
        for parameter_name, parameter in changed.named_parameters():
            if "lora_B" in parameter_name or "modules_to_save" in parameter_name:
                parameter += 0.05 * torch.randn(parameter.shape)
    changed.save_pretrained(folder)


def inputs_of(item: Document) -> dict[str, Tensor]:
    """Return what a model of transformers takes of a document."""
    mask = torch.ones_like(item.ids)[None]
    return {"input_ids": item.ids[None], "pixel_values": item.pixels, "attention_mask": mask}


def pack_of(item: Document, model: InternVLConfig, policy: StridePolicy) -> tuple[TensorPack, Ticks]:
    """Return a document as a pack at ordinary positions, and these."""
    images = find_images(item.ids, item.num_tiles, model.tokens_per_tile, **SPECIAL)
    drawn = policy.draw(len(images), model.tokens_per_tile, epoch=0, sample=0)
    denominator = policy.denominator(model.tokens_per_tile)
    ticks = position_ticks(len(item.ids), images, drawn, model.tokens_per_tile, denominator)
    return TensorPack(item.ids, ticks, [len(item.ids)], num_tiles=item.num_tiles, tiles=item.pixels), ticks


def asked_with(
    config: dict[str, Any],
    state: dict[str, Tensor],
    folders: dict[str, Path],
    item: Document,
    order: list[str],
    layout: ParallelConfig,
    tokens: int = 5,
) -> list[tuple[Tensor | None, list[int], Tensor]]:
    """Ask a document adapter by adapter; runs in a worker.

    Args:
        config: original `config.json`.
        state: weights by the original names.
        folders: adapters in PEFT's form, by name.
        item: text and images.
        order: names of adapters, as they are chosen one after the other; `none` is the base.
        layout: parallel sizes, of one pipeline stage.
        tokens: of the answer.

    Returns:
        Logits of the model's own forward, on a single rank alone; a greedy answer; generation's logits of its first
        token.
    """
    model_config, policy = InternVLConfig.from_hf(config), StridePolicy("default")
    full = to_keys(mapping_table(model_config), state)
    pack, ticks = pack_of(item, model_config, policy)
    results: list[tuple[Tensor | None, list[int], Tensor]] = []
    options = ModelOptions(params_dtype=torch.float32)
    with built(config, layout, options, policy, SPECIAL["img_context_id"]) as model:
        load_full(model.eval(), full)
        adapters = NamedAdapters(model, {name: read_peft(path, model_config) for name, path in folders.items()})
        engine = Engine(model)
        for name in order:
            if adapters.choose(name):
                engine.vision_cache.clear()
                engine.read_again()
            logits = None
            if layout.model_parallel_size == 1:
                cutter = PackCutter(model.coordinates, SPECIAL["img_context_id"], model_config.tokens_per_tile)
                with torch.no_grad():
                    logits = model(cutter.cut(pack))
            prompt = Prompt(item.ids, ticks, item.pixels, tuple(item.num_tiles))
            answer = generate(engine, [prompt], GenerationOptions(max_new_tokens=tokens))[0]
            first = Session(engine, [prompt]).prefill()
            assert first is not None
            results.append((logits, list(answer.token_ids), first.float().clone()))
    return results


def learned(
    config: dict[str, Any], state: dict[str, Tensor], folder: Path, item: Document, planted_scaling: float = 1.0
) -> tuple[float, dict[str, Tensor]]:
    """Return the loss of a document, and the gradient of every factor by PEFT's names; runs in a worker.

    Args:
        config: original `config.json`.
        state: weights by the original names.
        folder: an adapter in PEFT's form, with one rank and one scaling.
        item: text and images; every token behind the first is learned.
        planted_scaling: break that is planted: what the scaling is multiplied by.
    """
    from megatron_v2pe.checkpoint.hf.adapter_rows import linears_of
    from megatron_v2pe.models.lora_plan import LowRank, LowRankPlan

    model_config, policy = InternVLConfig.from_hf(config), StridePolicy("default")
    adapter = read_peft(folder, model_config)
    linears = linears_of(model_config, "native")
    every = {linear: tuple(row.piece for row in rows) for linear, rows in linears.items()}
    named = adapter.named(piece_table(every, mapping_table(model_config)))
    pieces = {
        linear: tuple(piece for piece in rows if piece_name(linear, piece.name) in named.changes)
        for linear, rows in every.items()
    }
    first = next(iter(named.changes.values()))
    settings = LowRank(first.rank, first.alpha * planted_scaling, use_rslora=first.rank_stabilised)
    parts = dict.fromkeys(("language_model", "vision_model", "vision_projection"), settings)
    plan = LowRankPlan({linear: found for linear, found in pieces.items() if found}, parts)
    full = to_keys(mapping_table(model_config), state)
    for name, change in named.changes.items():
        full[f"{name.removesuffix('.weight')}.lora_A"] = change.down
        full[f"{name.removesuffix('.weight')}.lora_B"] = change.up
    options = ModelOptions(params_dtype=torch.float32)
    with built(
        config, ParallelConfig(), options, policy, SPECIAL["img_context_id"], partial(put_adapters, plan)
    ) as model:
        load_full(model.eval(), full)
        pack, _ = pack_of(item, model_config, policy)
        cutter = PackCutter(model.coordinates, SPECIAL["img_context_id"], model_config.tokens_per_tile)
        logits = model(cutter.cut(pack))
        loss = torch.nn.functional.cross_entropy(logits[:-1].float(), item.ids[1:])
        loss.backward()
        gradients = gather_full(model, lambda parameter: parameter.grad)
    of_pieces = {
        name: LowRankChange(
            gradients[f"{name.removesuffix('.weight')}.lora_A"],
            gradients[f"{name.removesuffix('.weight')}.lora_B"],
            first.alpha,
        )
        for name in named.changes
    }
    theirs = replace(named, changes=of_pieces).named(module_table(model_config, "native"))
    found = {}
    for name, change in theirs.changes.items():
        found[f"{name.removesuffix('.weight')}.lora_A.default.weight"] = change.down
        found[f"{name.removesuffix('.weight')}.lora_B.default.weight"] = change.up
    return loss.item(), found


def save_run(
    base: Path,
    run: Path,
    layout: ParallelConfig,
    whole_projector: bool = True,
    settings: dict[str, Any] | None = None,
    average_factor: float | None = None,
) -> dict[str, Tensor]:
    """Write a checkpoint as a run writes it that trained an adapter; runs on every rank of a layout.

    Args:
        base: Megatron checkpoint.
        run: folder of the run.
        layout: of the ranks that write.
        whole_projector: the projector was trained in full.
        settings: of the run, as far as its state is to state them.
        average_factor: the checkpoint holds averages (EMA), so many times what learned.

    Returns:
        What learned, by checkpoint key.
    """
    from megatron.core.process_groups_config import ProcessGroupCollection

    from megatron_v2pe.checkpoint import store
    from megatron_v2pe.checkpoint.adapters import AdapterPointer
    from megatron_v2pe.checkpoint.folder import ADAPTER_FILE, HF_FOLDER
    from megatron_v2pe.checkpoint.hf.adapter_rows import chosen, linears_of
    from megatron_v2pe.checkpoint.weight_average import average_of
    from megatron_v2pe.models.config import layout_of, read_config
    from megatron_v2pe.models.lora_plan import LowRank, LowRankPlan
    from megatron_v2pe.train.config import AdamWConfig
    from megatron_v2pe.train.ddp import freeze, wrap
    from megatron_v2pe.train.optimizer_step import build_optimizer

    config = read_config(base / HF_FOLDER)
    linears = linears_of(InternVLConfig.from_hf(config), layout_of(base / HF_FOLDER))
    found = chosen(linears, ("language_model.attention", "language_model.mlp", "vision_model.linear_qkv"))
    pieces = {name: tuple(row.piece for row in rows) for name, rows in found.items()}
    plan = LowRankPlan(pieces, {"language_model": LowRank(3, 6.0, 0.1), "vision_model": LowRank(2, 3.0, 0.1)})
    options = ModelOptions(params_dtype=torch.float32)
    with built(config, layout, options, StridePolicy("default"), 0, partial(put_adapters, plan)) as model:
        store.load_model(base, model)
        freeze(model, backbone=True, llm=True, projector=not whole_projector)
        full, generator = gather_full(model, lambda parameter: parameter.detach()), torch.Generator().manual_seed(5)
        learned = [key for key in sorted(full) if "lora_" in key or (whole_projector and "vision_projection" in key)]
        for key in learned:
            full[key] = full[key] + 0.1 * torch.randn(full[key].shape, generator=generator)
        load_full(model, full)
        wrapped = wrap(model, layout, ProcessGroupCollection.use_mpu_process_groups(), torch.device("cpu"))
        groups = ProcessGroupCollection.use_mpu_process_groups()
        asked = AdamWConfig(lr=1e-3, ema_decay=None if average_factor is None else 0.9)
        optimizer = build_optimizer(wrapped, asked, torch.float32, False, False, groups)
        if average_factor is not None:
            average = average_of(optimizer)
            assert average is not None
            for whole in average.wholes():
                whole.mul_(average_factor)
        state = store.TrainingState(2, {}, settings or {})
        files = {ADAPTER_FILE: AdapterPointer.of(plan, "auto", str(base), base).text()}
        store.save(run, model, optimizer, state, hf_source=base, files=files, learned_only=True)
    return {key: full[key] for key in learned}
