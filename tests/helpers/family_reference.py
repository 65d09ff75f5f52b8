"""The model of `transformers` that a tiny checkpoint of `family_cases` describes: weights, logits, loss, gradients.

Configuration and names of tensors are written out here a second time, apart from the tables of the converter, so that a
mistake in either shows. Runs inside a `WorkerPool`, or anywhere else. Every document is run alone, without packing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.parity import Pack

_TEXT_KINDS = {"internlm2": "llama", "internlm3": "llama"}
"""`model_type` of ours -> that of a class which computes the same, where transformers has none of its own."""
_TEXT_FIELDS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                "vocab_size", "max_position_embeddings", "rms_norm_eps", "hidden_act",
                "tie_word_embeddings")  # fmt: skip
_OWN_FIELDS = ("head_dim", "original_max_position_embeddings", "attention_bias", "mlp_bias")
_TOWER_LAYER = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "lambda_1": "ls1",
    "lambda_2": "ls2",
    "attention.projection_layer": "attn.proj",
    "attention.q_norm": "attn.q_norm",
    "attention.k_norm": "attn.k_norm",
}
_INTERNLM2_LAYER = {
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
_SINGLE = {
    "model.vision_tower.embeddings.cls_token": "vision_model.embeddings.class_embedding",
    "model.vision_tower.embeddings.position_embeddings": "vision_model.embeddings.position_embedding",
    "model.vision_tower.embeddings.patch_embeddings.projection": "vision_model.embeddings.patch_embedding",
    "model.multi_modal_projector.layer_norm": "mlp1.0",
    "model.multi_modal_projector.linear_1": "mlp1.1",
    "model.multi_modal_projector.linear_2": "mlp1.3",
    "lm_head": "language_model.lm_head",
}


@dataclass
class Reference:
    """What `transformers` gives for the packs of one step."""

    loss: float
    logits: list[Tensor]
    """Per pack, [S, vocab_size]."""
    gradients: dict[str, Tensor]
    """By the published names."""


def build(config: dict[str, Any], image_token: int, plain_rope: bool = False, seed: int = 0) -> Any:
    """Return the model with random weights in which every tensor matters, in float32, in evaluation mode.

    Args:
        config: `config.json` in the published layout.
        image_token: id of the token that stands for a piece of an image.
        plain_rope: leave out dynamic scaling of rotary positions, as V2PE does; other scalings stay.
        seed: of the weights.
    """
    from transformers import InternVLForConditionalGeneration

    return _randomised(InternVLForConditionalGeneration(configuration(config, image_token, plain_rope)), seed)


def configuration(config: dict[str, Any], image_token: int, plain_rope: bool = False, attention: str = "eager") -> Any:
    """Return the configuration of transformers' class; `attention` names its kernels, see `build` for the others."""
    from transformers import AutoConfig, InternVLConfig, InternVLVisionConfig

    llm, vision = config["llm_config"], config["vision_config"]
    kind = _TEXT_KINDS.get(llm["model_type"], llm["model_type"])
    fields = {name: llm[name] for name in (*_TEXT_FIELDS, *_OWN_FIELDS) if name in llm}
    ends: dict[str, Any] = {"pad_token_id": None, "eos_token_id": None, "bos_token_id": None}
    text = AutoConfig.for_model(kind, **fields, **ends, rope_parameters=_rope(llm, plain_rope))
    tower = InternVLVisionConfig(
        **{name: vision[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act",
                                           "intermediate_size", "norm_type", "layer_norm_eps")},
        attention_bias=vision["qkv_bias"],
        use_qk_norm=vision["qk_normalization"],
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        use_mean_pooling=True,
    )  # fmt: skip
    return InternVLConfig(
        vision_config=tower,
        text_config=text,
        image_token_id=image_token,
        image_seq_length=int((vision["image_size"] // vision["patch_size"] * config["downsample_ratio"]) ** 2),
        downsample_ratio=config["downsample_ratio"],
        vision_feature_layer=config["select_layer"],
        tie_word_embeddings=llm["tie_word_embeddings"],
        attn_implementation=attention,  # pyright: ignore[reportCallIssue]
    )


def weights(config: dict[str, Any], image_token: int, seed: int = 0) -> dict[str, Tensor]:
    """Return the random weights of the reference by the names of its modules."""
    model = build(config, image_token, seed=seed)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def step(
    config: dict[str, Any],
    image_token: int,
    packs: Sequence[Pack],
    scaled: bool,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Reference:
    """Run one training step, every document alone.

    Args:
        config: `config.json` in the published layout.
        image_token: id of the token that stands for a piece of an image.
        packs: documents with labels, weights and tiles.
        scaled: whether positions are 0, 1, 2, ... with the checkpoint's scaling; else those of the packs, as floats,
            without dynamic scaling.
        device: where it runs.
        dtype: of weights and activations.
    """
    model = build(config, image_token, plain_rope=not scaled).to(device)
    rotary = model.model.language_model.rotary_emb
    kept = {name: buffer.clone() for name, buffer in rotary.named_buffers()}
    model = model.to(dtype)
    for name, buffer in kept.items():  # frequencies stay in float32
        setattr(rotary, name, buffer)
    denominator = sum(pack.weights.double().sum().item() for pack in packs)
    total, logits = 0.0, []
    for pack in packs:
        tiles, found = pack.pixel_values.to(device, dtype), []
        parts = (pack.input_ids, pack.labels, pack.weights, pack.position_ticks.values)
        for document in zip(*(part.split(pack.seqlens) for part in parts), strict=True):
            ids, labels, shares, ticks = (part.to(device) for part in document)
            count = int((ids == image_token).sum()) // model.config.image_seq_length
            own, tiles = tiles[:count], tiles[count:]
            positions = None if scaled else (ticks.double() / pack.position_ticks.denominator).float()
            output = document_logits(model, ids, own, positions).float()
            losses = F.cross_entropy(output, labels, reduction="none", ignore_index=-100)
            loss = (losses * shares.float()).sum() / denominator
            loss.backward()
            total += loss.item()
            found.append(output.detach().cpu())
        assert not len(tiles), f"{len(tiles)} tiles belong to no document"
        logits.append(torch.cat(found))
    gradients = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in model.named_parameters()
    }
    gradients = {name: gradient.float().cpu() for name, gradient in gradients.items()}
    return Reference(total, logits, published(config, gradients))


def document_logits(model: Any, ids: Tensor, tiles: Tensor, positions: Tensor | None) -> Tensor:
    """Return the logits [S, vocab_size] of one document.

    Args:
        model: of `build`.
        ids: int64 [S].
        tiles: [tiles, 3, size, size]; tiles may be 0.
        positions: float [S], or None for 0, 1, 2, ...
    """
    _forget_lengths(model)
    extra: dict[str, Any] = {} if positions is None else {"position_ids": positions[None]}
    # Without a mask, positions that do not count up by one would be taken for borders of packed documents.
    output = model(
        input_ids=ids[None],
        attention_mask=torch.ones_like(ids)[None],
        pixel_values=tiles if len(tiles) else None,
        use_cache=False,
        **extra,
    )
    return output.logits[0]


def answer(
    config: dict[str, Any],
    image_token: int,
    prompts: Sequence[tuple[Tensor, Tensor]],
    count: int,
    device: str = "cpu",
) -> list[list[int]]:
    """Return what `generate` answers greedily to prompts, each alone: ids and tiles."""
    model, found = build(config, image_token).to(device), []
    for prompt in prompts:
        ids, tiles = (part.to(device) for part in prompt)
        _forget_lengths(model)
        given: dict[str, Any] = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]}
        if len(tiles):  # `generate` takes no None for pixel_values
            given["pixel_values"] = tiles.float()
        output = model.generate(**given, max_new_tokens=count, do_sample=False)
        found.append(output[0, len(ids) :].tolist())
    return found


def published(config: dict[str, Any], native: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of `transformers`' names under the published ones, joined where those hold several in one."""
    llm, found = config["llm_config"], {}
    joined: dict[str, dict[str, Tensor]] = {}
    internlm2 = llm["model_type"] == "internlm2"
    for name, tensor in native.items():
        module, _, kind = name.rpartition(".")
        if name in _SINGLE or module in _SINGLE:
            found[_SINGLE.get(name) or f"{_SINGLE[module]}.{kind}"] = tensor
        elif match := re.fullmatch(r"model\.vision_tower\.encoder\.layer\.(\d+)\.(.+)", name):
            prefix = f"vision_model.encoder.layers.{match[1]}."
            if part := re.fullmatch(r"attention\.([qkv])_proj\.(\w+)", match[2]):
                joined.setdefault(f"{prefix}attn.qkv.{part[2]}", {})[part[1]] = tensor
            else:
                found[prefix + _renamed(match[2], _TOWER_LAYER)] = tensor
        elif match := re.fullmatch(r"model\.language_model\.(layers\.\d+\.)(.+)", name):
            prefix = f"language_model.model.{match[1]}"
            if internlm2 and (part := re.fullmatch(r"self_attn\.([qkv])_proj\.weight", match[2])):
                joined.setdefault(f"{prefix}attention.wqkv.weight", {})[part[1]] = tensor
            else:
                found[prefix + (_renamed(match[2], _INTERNLM2_LAYER) if internlm2 else match[2])] = tensor
        else:
            found[name.replace("model.language_model.", "language_model.model.")] = tensor
    for name, parts in joined.items():
        whole = [parts[part] for part in "qkv"]
        if internlm2 and name.startswith("language_model."):  # the queries of a group, its key, its value
            groups = llm["num_key_value_heads"]
            by_group = [part.unflatten(0, (groups, -1)) for part in whole]
            found[name] = torch.cat(by_group, dim=1).flatten(0, 1)
        else:
            found[name] = torch.cat(whole)
    if internlm2:
        for old, new in (("model.embed_tokens", "model.tok_embeddings"), ("lm_head", "output")):
            if (tensor := found.pop(f"language_model.{old}.weight", None)) is not None:
                found[f"language_model.{new}.weight"] = tensor
    return found


def _renamed(name: str, table: dict[str, str]) -> str:
    for old, new in table.items():
        if name == old or name.startswith(f"{old}."):
            return new + name[len(old) :]
    return name


def _rope(llm: dict[str, Any], plain: bool) -> dict[str, Any]:
    """Return the rotary settings as transformers 5 writes them."""
    scaling = dict(llm.get("rope_scaling") or {})
    kind = scaling.pop("type", None) or scaling.pop("rope_type", "default")
    if kind == "dynamic" and plain:
        kind, scaling = "default", {}
    if kind == "longrope":
        scaling["original_max_position_embeddings"] = llm["original_max_position_embeddings"]
    return {"rope_type": kind, "rope_theta": float(llm["rope_theta"]), **scaling}


def _randomised(model: Any, seed: int) -> Any:
    """Draw weights of a size at which no part of the model is lost in another."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            around_one = "norm" in name and name.endswith("weight") or "lambda" in name
            width = parameter[0].numel() if parameter.dim() in (2, 4) else 100
            parameter.copy_(1 + 0.2 * noise if around_one else noise * width**-0.5)
    return model.eval()


def _forget_lengths(model: Any) -> None:
    """Let dynamic scaling start anew: transformers keeps the frequencies of the longest document it has seen."""
    rotary = model.model.language_model.rotary_emb
    if hasattr(rotary, "original_inv_freq"):
        rotary.inv_freq = rotary.original_inv_freq.clone()
        rotary.max_seq_len_cached = rotary.original_max_seq_len
