"""Make a small InternVL2 with random weights, in the original Hugging Face layout.

    python examples/quickstart/make_model.py OUT --texts DATA/annotation

InternViT, pixel shuffle v2, the mlp1 projector and InternLM2 as in InternVL2-2B, with a few million parameters, and a
SentencePiece tokenizer of its own, trained on the texts of the annotations. The same files come out of every run.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from small_tokenizer import ADDED_TOKENS, VOCABULARY, read_texts, tokenizer_files, train_tokenizer
from torch import Tensor

SEED = 2
SHARDS = 2
TILE, PATCH = 112, 14
VISION = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
LANGUAGE = {
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
}


def hf_config() -> dict[str, Any]:
    """Return `config.json`: the fields of InternVL2-2B, smaller numbers."""
    vision = {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        **VISION,
        "image_size": TILE,
        "patch_size": PATCH,
        "num_channels": 3,
        "qkv_bias": True,
        "qk_normalization": False,
        "norm_type": "layer_norm",
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "attention_dropout": 0.0,
        "dropout": 0.0,
        "drop_path_rate": 0.0,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "torch_dtype": "float32",
    }
    language = {
        "architectures": ["InternLM2ForCausalLM"],
        "model_type": "internlm2",
        **LANGUAGE,
        "vocab_size": VOCABULARY,
        "hidden_act": "silu",
        "bias": False,
        "rms_norm_eps": 1e-5,
        "initializer_range": 0.02,
        "max_position_embeddings": 32768,
        "rope_theta": 1000000,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "torch_dtype": "float32",
        "use_cache": True,
    }
    return {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "vision_config": vision,
        "llm_config": language,
        "hidden_size": LANGUAGE["hidden_size"],
        "force_image_size": TILE,
        "downsample_ratio": 0.5,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internlm2-chat",
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 4,
        "pad2square": False,
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": None,
    }


def weights(seed: int = SEED) -> dict[str, Tensor]:
    """Draw every tensor of the checkpoint: normal with deviation 1 / sqrt(inputs), norms 1, biases 0."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, deviation: float | None = None) -> Tensor:
        inputs = torch.Size(shape[1:]).numel()
        return torch.randn(shape, generator=generator) * (inputs**-0.5 if deviation is None else deviation)

    return {**_vision_weights(normal), **_language_weights(normal), **_projector_weights(normal)}


def _vision_weights(normal: Any) -> dict[str, Tensor]:
    width, ffn = VISION["hidden_size"], VISION["intermediate_size"]
    prefix = "vision_model.embeddings."
    state = {
        prefix + "class_embedding": normal(1, 1, width, deviation=0.1),
        prefix + "patch_embedding.weight": normal(width, 3, PATCH, PATCH),
        prefix + "patch_embedding.bias": torch.zeros(width),
        prefix + "position_embedding": normal(1, (TILE // PATCH) ** 2 + 1, width, deviation=0.3),
    }
    for layer in range(VISION["num_hidden_layers"]):
        prefix = f"vision_model.encoder.layers.{layer}."
        linears = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        linears |= {"mlp.fc1": (ffn, width), "mlp.fc2": (width, ffn)}
        for name, shape in linears.items():
            state[f"{prefix}{name}.weight"] = normal(*shape)
            state[f"{prefix}{name}.bias"] = torch.zeros(shape[0])
        for name in ("norm1", "norm2"):
            state[f"{prefix}{name}.weight"], state[f"{prefix}{name}.bias"] = torch.ones(width), torch.zeros(width)
        state[prefix + "ls1"], state[prefix + "ls2"] = torch.ones(width), torch.ones(width)
    return state


def _language_weights(normal: Any) -> dict[str, Tensor]:
    width, ffn = LANGUAGE["hidden_size"], LANGUAGE["intermediate_size"]
    head = width // LANGUAGE["num_attention_heads"]
    packed = (LANGUAGE["num_attention_heads"] + 2 * LANGUAGE["num_key_value_heads"]) * head
    state = {"language_model.model.tok_embeddings.weight": normal(VOCABULARY, width, deviation=0.5)}
    for layer in range(LANGUAGE["num_hidden_layers"]):
        prefix = f"language_model.model.layers.{layer}."
        state |= {
            prefix + "attention.wqkv.weight": normal(packed, width),
            prefix + "attention.wo.weight": normal(width, width),
            prefix + "feed_forward.w1.weight": normal(ffn, width),
            prefix + "feed_forward.w3.weight": normal(ffn, width),
            prefix + "feed_forward.w2.weight": normal(width, ffn),
            prefix + "attention_norm.weight": torch.ones(width),
            prefix + "ffn_norm.weight": torch.ones(width),
        }
    state["language_model.model.norm.weight"] = torch.ones(width)
    state["language_model.output.weight"] = normal(VOCABULARY, width, deviation=0.02)
    return state


def _projector_weights(normal: Any) -> dict[str, Tensor]:
    shuffled, width = 4 * VISION["hidden_size"], LANGUAGE["hidden_size"]
    return {
        "mlp1.0.weight": torch.ones(shuffled),
        "mlp1.0.bias": torch.zeros(shuffled),
        "mlp1.1.weight": normal(width, shuffled),
        "mlp1.1.bias": torch.zeros(width),
        "mlp1.3.weight": normal(width, width),
        "mlp1.3.bias": torch.zeros(width),
    }


def make(out: Path, texts: list[str]) -> int:
    """Write the checkpoint.

    Returns:
        Its number of parameters.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "tokenizer.model").write_bytes(train_tokenizer(texts))
    for name, content in tokenizer_files().items():
        _write_json(out / name, content)
    generation = {"bos_token_id": 1, "eos_token_id": [2, ADDED_TOKENS["<|im_end|>"]], "pad_token_id": 2}
    _write_json(out / "generation_config.json", generation)
    state = weights()
    total = sum(tensor.numel() for tensor in state.values())
    shards: list[dict[str, Tensor]] = [{} for _ in range(SHARDS)]
    seen = 0
    for name, tensor in state.items():
        shards[seen * SHARDS // total][name] = tensor
        seen += tensor.numel()
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{SHARDS:05d}.safetensors"
        save_file(shard, out / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": 4 * total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(out / "model.safetensors.index.json", index)
    _write_json(out / "config.json", hf_config())  # last: its presence says that the rest is there
    return total


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Read the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Make a small InternVL2 with random weights in the HF layout.")
    parser.add_argument("out", type=Path, help="folder to write to; must not hold files yet")
    parser.add_argument("--texts", type=Path, required=True, help="folder of *.jsonl the tokenizer is trained on")
    args = parser.parse_args(argv)
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        print(f"error: {args.out} is in use; name a new or empty folder", file=sys.stderr)
        return 1
    try:
        texts = read_texts(args.texts)
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    parameters = make(args.out, texts)
    print(f"{args.out}: InternVL2 of {parameters:,} parameters, {VOCABULARY} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
