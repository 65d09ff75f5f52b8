"""Small InternVits of both kinds, by transformers' own class and by ours in any layout.

The names of `InternVLVisionModel` are brought to those of a published checkpoint here, so that both sides hold the
same weights. What runs our side is for use inside a `WorkerPool`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from helpers.hf_names import to_full_state
from megatron_v2pe.checkpoint import store
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.kernels.norms import rms_norm
from megatron_v2pe.models import padding
from megatron_v2pe.models.drop_path import DropPathKey
from megatron_v2pe.models.transformer_config import ModelOptions
from megatron_v2pe.models.whole_width_norm import WholeWidthNorm
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.v2pe.settings import StridePolicy
from megatron_v2pe.workshop.built_model import built
from megatron_v2pe.workshop.full_state import gather_full, load_full
from megatron_v2pe.workshop.synthetic.small_model import small_internvl2

LARGE = {"norm_type": "rms_norm", "qk_normalization": True, "qkv_bias": False}
"""What InternViT-6B has and InternViT-300M has not."""
LAYER = {
    "ls1": "lambda_1",
    "ls2": "lambda_2",
    **{f"{ours}.{kind}": f"{theirs}.{kind}" for kind in ("weight", "bias") for ours, theirs in (
        ("norm1", "layernorm_before"),
        ("norm2", "layernorm_after"),
        ("attn.q_norm", "attention.q_norm"),
        ("attn.k_norm", "attention.k_norm"),
        ("attn.proj", "attention.projection_layer"),
        ("mlp.fc1", "mlp.fc1"),
        ("mlp.fc2", "mlp.fc2"),
    )},
}  # fmt: skip
"""Names within a layer: of a published checkpoint, of transformers."""


def small_config(heads: int = 5, ffn: int = 44, llm_heads: int = 30, **vision: Any) -> dict[str, Any]:
    """Return the `config.json` of a small model with a 6B tower; 30 heads of its decoder divide by 1, 2, 3 and 5.

    Args:
        heads: of the tower, each 8 wide.
        ffn: width of the tower's MLP.
        llm_heads: of the decoder, each 4 wide.
        vision: other fields of the tower.
    """
    tower = {
        **LARGE,
        "hidden_size": 8 * heads,
        "num_attention_heads": heads,
        "num_hidden_layers": 3,
        "intermediate_size": ffn,
        "layer_norm_eps": 1e-6,
    }
    decoder = {
        "hidden_size": 4 * llm_heads,
        "num_attention_heads": llm_heads,
        "num_key_value_heads": llm_heads,
        "num_hidden_layers": 2,
        "intermediate_size": 4 * llm_heads,
        "vocab_size": 509,
        "max_position_embeddings": 256,
        "rope_theta": 1000000,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    }
    return small_internvl2(56, 14, {**tower, **vision}, decoder)


def by_transformers(vision: dict[str, Any], seed: int = 0) -> Any:
    """Return transformers' tower of a `vision_config`, with random weights in which every tensor matters."""
    from transformers.models.internvl import InternVLVisionConfig, InternVLVisionModel

    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "layer_norm_eps")
    sizes = {name: vision[name] for name in (*names, "image_size", "patch_size", "norm_type", "hidden_act")}
    sizes |= {"attention_bias": vision["qkv_bias"], "use_qk_norm": vision["qk_normalization"]}
    return randomised(InternVLVisionModel(InternVLVisionConfig(**sizes, **{"attn_implementation": "eager"})), seed)


def randomised(model: Any, seed: int = 0) -> Any:
    """Draw weights of a size at which no part of a model is lost in another."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            around_one = "norm" in name and name.endswith("weight") or "lambda" in name
            width = parameter.shape[-1] if parameter.dim() == 2 else 100
            parameter.copy_(1 + 0.2 * noise if around_one else noise * width**-0.5)
    return model.eval()


def published_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of transformers' tower by the names of a published checkpoint: q, k and v one after the other."""
    place = "vision_model.embeddings."
    renamed = {
        place + "class_embedding": tensors["embeddings.cls_token"],
        place + "position_embedding": tensors["embeddings.position_embeddings"],
        place + "patch_embedding.weight": tensors["embeddings.patch_embeddings.projection.weight"],
        place + "patch_embedding.bias": tensors["embeddings.patch_embeddings.projection.bias"],
    }
    for layer in range(sum(name.endswith("lambda_1") for name in tensors)):
        ours, theirs = f"vision_model.encoder.layers.{layer}.", f"encoder.layer.{layer}."
        renamed |= {ours + our: tensors[theirs + their] for our, their in LAYER.items() if theirs + their in tensors}
        for kind in ("weight", "bias"):
            parts = [tensors.get(f"{theirs}attention.{part}_proj.{kind}") for part in "qkv"]
            if parts[0] is not None:
                renamed[f"{ours}attn.qkv.{kind}"] = torch.cat(parts)  # type: ignore[arg-type]
    return renamed


def hidden_states(model: Any, pixels: Tensor) -> list[Tensor]:
    """Return what transformers' tower computes: embeddings, then the output of every layer."""
    states = [model.embeddings(pixels)]
    for layer in model.encoder.layer:
        states.append(layer(states[-1]))
    return states


@dataclass(frozen=True)
class Run:
    """What our tower is run with."""

    hf_config: dict[str, Any]
    weights: dict[str, Tensor]
    """Of the tower, by published name."""
    pixels: Tensor
    """[tiles, 3, side, side]."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of `ModelOptions`."""
    drop_path: DropPathKey | None = None
    planted_break: str | None = None
    """A key of `BREAKS`."""


@dataclass(frozen=True)
class Outcome:
    """What our tower gave."""

    output: Tensor
    gradients: dict[str, Tensor]
    """Gradients of half the sum of the squared outputs, by checkpoint key."""
    refused: str
    """What a save would say of the padding, empty where it is zero."""
    padding: float
    """The largest gradient of what is padding on any rank."""


def ours(runs: list[Run], layout: ParallelConfig) -> list[Outcome]:
    """Run our tower on this rank, once for each of several runs."""
    return [_ours(run, layout) for run in runs]


def _ours(run: Run, layout: ParallelConfig) -> Outcome:
    options = ModelOptions(params_dtype=run.pixels.dtype, **run.options)
    with built(run.hf_config, layout, options, StridePolicy("default"), -1) as model:
        weights = to_full_state(run.weights, model.internvl.vision.num_attention_heads)
        whole = gather_full(model, lambda parameter: parameter.detach())
        load_full(model, whole | {name: tensor.to(run.pixels.dtype) for name, tensor in weights.items()})
        if run.planted_break:
            BREAKS[run.planted_break](model)
        refused = ""
        try:
            padding.check(model)
        except CheckpointError as error:
            refused = str(error)
        output = model.vision_model(run.pixels, run.drop_path)
        (output.square().sum() / 2).backward()
        parts = [place.of(p.grad) for _, p, place in padding.paddings(model.vision_model) if p.grad is not None]
        largest = torch.tensor(max((part.abs().max().item() for part in parts if part.numel()), default=0.0))
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
        gradients = gather_full(model, lambda parameter: parameter.grad)
        part = {name: value for name, value in gradients.items() if name.startswith("vision_model.")}
        return Outcome(output.detach().clone(), part, refused, largest.item())


def _fill_padding(model: Any) -> None:
    """Let heads and columns that are padding hold numbers."""
    with torch.no_grad():
        for _, parameter, place in padding.paddings(model.vision_model):
            place.of(parameter).fill_(0.1)


def _norms(model: Any) -> list[WholeWidthNorm]:
    return [module for module in model.modules() if isinstance(module, WholeWidthNorm)]


def _normed_alone(norm: WholeWidthNorm, states: Tensor) -> Tensor:
    return rms_norm(states.flatten(-2), norm.weight, norm.eps).view(states.shape)


def _forget_the_sum(model: Any) -> None:
    """Let every rank norm its own heads by themselves."""
    for norm in _norms(model):
        norm.forward = partial(_normed_alone, norm)


def _count_the_padding(model: Any) -> None:
    """Let the width of statistics be that with padding."""
    for norm in _norms(model):
        norm.width = norm.weight.shape[0] * norm.tp_group.size()


BREAKS = {"padding": _fill_padding, "sum": _forget_the_sum, "width": _count_the_padding}


def saved_again(folder: str, hf_config: dict[str, Any], layout: ParallelConfig, root: str) -> list[str]:
    """Load a converted folder into a model of a layout, in bf16, and save it as a run's checkpoint of no steps.

    Returns:
        On every rank the parameters whose padding is not zero, which nothing but the load can have made zero.
    """
    options = ModelOptions(params_dtype=torch.bfloat16, perform_initialization=False)
    with built(hf_config, layout, options, StridePolicy("default"), -1) as model:
        with torch.no_grad():
            for parameter in model.parameters():  # what a load leaves out shows
                parameter.fill_(float("nan"))
        store.load_model(Path(folder), model)
        found = [name for name, parameter, place in padding.paddings(model) if place.of(parameter).any()]
        state = store.TrainingState(0, {}, {})
        with mock.patch.object(store.optimizer_state, "state_to_save", lambda *_: {}):  # there is no optimizer
            store.save(Path(root), model, None, state, hf_source=Path(folder))  # type: ignore[arg-type]
    return found
