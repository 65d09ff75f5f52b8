"""Published shapes of InternVL2, 2.5, 3 and 3.5 as data: vision towers x language models x generations.

Nothing here was read from a checkpoint's own `config.json` on the hub. Every row names where its numbers are from:

| source | what it is |
|---|---|
| `mindspeed` | `examples/internvl*/model_*.json` of Ascend/MindSpeed-MM, commits 02655c5, 9c027b4, 76a1db5 |
| `loongforge` | `configs/models` of LoongForge |
| `xtuner` | `internvl_config.py`, `qwen3.py` of XTuner |
| `printed` | the `config.json` of an InternVL3-1B, printed in a public repository |
| `base` | the `config.json` of the language model that the checkpoint was trained from, as it is widely quoted |
| `torchtune` | the factors of Phi-3-mini-128k in torchtune |
| `total` | follows from the published number of parameters |

`unverified` names the fields whose value no source states for this very checkpoint. A checkpoint's own `config.json` is
always taken before a preset.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

DYNAMIC_2: dict[str, Any] = {"type": "dynamic", "factor": 2.0}
_PHI3_LONG = (
    *(1.0299999713897705, 1.0499999523162842, 1.0499999523162842, 1.0799999237060547, 1.2299998998641968),
    *(1.2299998998641968, 1.2999999523162842, 1.4499999284744263, 1.5999999046325684, 1.6499998569488525),
    *(1.8999998569488525, 2.859999895095825, 3.68999981880188, 5.419999599456787, 5.489999771118164),
    *(5.489999771118164, 9.09000015258789, 11.579999923706055, 15.65999984741211, 15.769999504089355),
    *(15.789999961853027, 18.360000610351562, 21.989999771118164, 23.079999923706055, 30.009998321533203),
    *(32.35000228881836, 32.590003967285156, 35.56000518798828, 39.95000457763672, 53.840003967285156),
    *(56.20000457763672, 57.95000457763672, 59.29000473022461, 59.77000427246094, 59.920005798339844),
    *(61.190006256103516, 61.96000671386719, 62.50000762939453, 63.3700065612793, 63.48000717163086),
    *(63.48000717163086, 63.66000747680664, 63.850006103515625, 64.08000946044922, 64.760009765625),
    *(64.80001068115234, 64.81001281738281, 64.81001281738281),
)
_PHI3_SHORT = (
    *(1.05, 1.05, 1.05, 1.1, 1.1, 1.1500000000000001, 1.2000000000000002, 1.2500000000000002, 1.3000000000000003),
    *(1.3500000000000003, 1.5000000000000004, *([2.000000000000001] * 21), *([2.0500000000000007] * 3)),
    *(*([2.1000000000000005] * 3), 2.1500000000000004, 2.1500000000000004, 2.3499999999999996, 2.549999999999999),
    *(2.5999999999999988, 2.5999999999999988, 2.7499999999999982, 2.849999999999998, 2.849999999999998),
    2.9499999999999975,
)


@dataclass(frozen=True)
class TowerShape:
    """Numbers of a vision tower."""

    hidden_size: int
    layers: int
    heads: int
    ffn: int
    settings: dict[str, Any]
    """Fields of `vision_config` beyond the sizes."""


@dataclass(frozen=True)
class LanguageShape:
    """Numbers of a language model."""

    architecture: str
    """What `llm_config.architectures` states."""
    layers: int
    hidden_size: int
    heads: int
    groups: int
    """Heads of keys and values."""
    ffn: int
    positions: int
    """`max_position_embeddings`."""
    rope_theta: int
    eps: float
    tokens: tuple[int | None, int | None, int | None]
    """Ids of the begin, end and padding token."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Fields of `llm_config` that the family has beyond the usual ones."""


@dataclass(frozen=True)
class Preset:
    """A published checkpoint: a tower, a language model, and what its generation adds."""

    tower: str
    language: str
    vocab_size: int
    template: str
    rope_scaling: dict[str, Any] | None
    billions: float
    """Published number of parameters in 1e9, with at most two digits behind the point."""
    sources: tuple[str, ...]
    unverified: tuple[str, ...] = ()
    """Fields whose value no source states for this very checkpoint."""
    hub: str | None = None
    """Name on the hub where it is not the preset's own."""


TOWER_SHAPES = {
    "InternViT-300M": TowerShape(
        *(1024, 24, 16, 4096), {"norm_type": "layer_norm", "qk_normalization": False, "qkv_bias": True}
    ),
    "InternViT-6B": TowerShape(
        *(3200, 45, 25, 12800), {"norm_type": "rms_norm", "qk_normalization": True, "qkv_bias": False}
    ),
}
"""Vision towers by name: sources `mindspeed` and `printed`."""

_INTERNLM2: dict[str, Any] = {"attn_implementation": "flash_attention_2", "bias": False}
_INTERNLM3: dict[str, Any] = {"bias": False, "qkv_bias": False, "head_dim": 128}
_QWEN2: dict[str, Any] = {"attention_dropout": 0.0, "sliding_window": None, "use_sliding_window": False}
_QWEN3: dict[str, Any] = {**_QWEN2, "attention_bias": False, "head_dim": 128}
_LLAMA: dict[str, Any] = {"attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False}
_PHI3: dict[str, Any] = {
    "attention_dropout": 0.0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "original_max_position_embeddings": 4096,
    "sliding_window": 262144,
}
_PHI3_ROPE: dict[str, Any] = {"type": "su", "long_factor": [*_PHI3_LONG], "short_factor": [*_PHI3_SHORT]}


def _internlm2(*sizes: int, rope_theta: int = 1_000_000) -> LanguageShape:
    return _shape("InternLM2ForCausalLM", sizes, (32768, rope_theta), 1e-5, (1, 2, 2), _INTERNLM2)


def _qwen2(*sizes: int) -> LanguageShape:
    return _shape("Qwen2ForCausalLM", sizes, (32768, 1_000_000), 1e-6, (151643, 151645, None), _QWEN2)


def _qwen3(*sizes: int) -> LanguageShape:
    return _shape("Qwen3ForCausalLM", sizes, (40960, 1_000_000), 1e-6, (151643, 151645, None), _QWEN3)


def _shape(
    architecture: str,
    sizes: tuple[int, ...],
    positions: tuple[int, int],
    eps: float,
    tokens: tuple[int | None, int | None, int | None],
    settings: dict[str, Any],
) -> LanguageShape:
    """Return a shape from its sizes (layers, width, heads, groups, ffn), and positions with their `rope_theta`."""
    layers, hidden_size, heads, groups, ffn = sizes
    return LanguageShape(architecture, layers, hidden_size, heads, groups, ffn, *positions, eps, tokens, settings)


LANGUAGE_SHAPES = {
    "InternLM2-1.8B": _internlm2(24, 2048, 16, 8, 8192),
    "InternLM2-7B": _internlm2(32, 4096, 32, 8, 14336),
    "InternLM2-20B": _internlm2(48, 6144, 48, 8, 16384),
    "InternLM2.5-20B": _internlm2(48, 6144, 48, 8, 16384, rope_theta=50_000_000),
    "InternLM3-8B": LanguageShape(
        "InternLM3ForCausalLM", 48, 4096, 32, 2, 10240, 32768, 50_000_000, 1e-5, (1, 2, 2), _INTERNLM3
    ),
    "Phi-3-mini": LanguageShape(
        "Phi3ForCausalLM", 32, 3072, 32, 32, 8192, 131072, 10_000, 1e-5, (1, 32000, 32000), _PHI3
    ),
    "Yi-34B": LanguageShape("LlamaForCausalLM", 60, 7168, 56, 8, 20480, 4096, 5_000_000, 1e-5, (1, 7, 0), _LLAMA),
    "Llama-3-70B": LanguageShape(
        "LlamaForCausalLM", 80, 8192, 64, 8, 28672, 8192, 500_000, 1e-5, (128000, 128003, None), _LLAMA
    ),
    "Qwen2-0.5B": _qwen2(24, 896, 14, 2, 4864),
    "Qwen2-1.5B": _qwen2(28, 1536, 12, 2, 8960),
    "Qwen2-3B": _qwen2(36, 2048, 16, 2, 11008),
    "Qwen2-7B": _qwen2(28, 3584, 28, 4, 18944),
    "Qwen2-14B": _qwen2(48, 5120, 40, 8, 13824),
    "Qwen2-32B": _qwen2(64, 5120, 40, 8, 27648),
    "Qwen2-72B": _qwen2(80, 8192, 64, 8, 29568),
    "Qwen3-0.6B": _qwen3(28, 1024, 16, 8, 3072),
    "Qwen3-1.7B": _qwen3(28, 2048, 16, 8, 6144),
    "Qwen3-4B": _qwen3(36, 2560, 32, 8, 9728),
    "Qwen3-8B": _qwen3(36, 4096, 32, 8, 12288),
    "Qwen3-14B": _qwen3(40, 5120, 40, 8, 17408),
    "Qwen3-32B": _qwen3(64, 5120, 64, 8, 25600),
}
"""Language models by name; a Qwen2.5 has the shape of the Qwen2 of its size."""

IMAGE_TOKENS = {
    92553: 92546,
    151655: 151648,
    151674: 151667,
    151936: 151671,
    128265: 128258,
    32020: 32013,  # unverified: as in the others, seven from the end
    64007: 64000,  # unverified, likewise
}
"""Size of a vocabulary -> id of `<IMG_CONTEXT>` in it; that of InternLM3 is not known here."""

_SMALL, _LARGE = "InternViT-300M", "InternViT-6B"
_IN, _Q2, _Q25, _Q3 = 92553, 151655, 151674, 151936
_HERMES, _INTERN, _V25 = "Hermes-2", "internlm2-chat", "internvl2_5"
_LF, _MS, _XT = "loongforge", "mindspeed", "xtuner"
_EPS = ("rms_norm_eps",)

PRESETS = {
    "InternVL2-1B": Preset(_SMALL, "Qwen2-0.5B", _Q2, _HERMES, None, 0.94, ("base", "total"), ("template",)),
    "InternVL2-2B": Preset(_SMALL, "InternLM2-1.8B", _IN, _INTERN, DYNAMIC_2, 2.21, (_MS, "total")),
    "InternVL2-4B": Preset(
        *(_SMALL, "Phi-3-mini", 32020, "phi3-chat", _PHI3_ROPE, 4.15, ("base", "torchtune", "total")),
        ("vocab_size", "rope_scaling", "template"),
    ),
    "InternVL2-8B": Preset(_SMALL, "InternLM2-7B", _IN, _INTERN, DYNAMIC_2, 8.08, (_MS, "total")),
    "InternVL2-26B": Preset(_LARGE, "InternLM2-20B", _IN, _INTERN, DYNAMIC_2, 25.51, (_MS, "total"), ("rope_scaling",)),
    "InternVL2-40B": Preset(
        _LARGE, "Yi-34B", 64007, _HERMES, None, 40.07, ("base", "total"), ("vocab_size", "positions", "template")
    ),
    "InternVL2-76B": Preset(
        *(_LARGE, "Llama-3-70B", 128265, _INTERN, None, 76.26, (_MS, "total"), ("template",)), "InternVL2-Llama3-76B"
    ),
    "InternVL2_5-1B": Preset(_SMALL, "Qwen2-0.5B", _Q25, _V25, None, 0.94, (_LF, "total")),
    "InternVL2_5-2B": Preset(_SMALL, "InternLM2-1.8B", _IN, _V25, DYNAMIC_2, 2.21, (_MS, "total")),
    "InternVL2_5-4B": Preset(_SMALL, "Qwen2-3B", _Q25, _V25, None, 3.71, (_MS, "total")),
    "InternVL2_5-8B": Preset(_SMALL, "InternLM2-7B", _IN, _V25, DYNAMIC_2, 8.08, (_LF, "total")),
    "InternVL2_5-26B": Preset(
        _LARGE, "InternLM2.5-20B", _IN, _V25, DYNAMIC_2, 25.51, (_LF, "total"), ("rope_scaling",)
    ),
    "InternVL2_5-38B": Preset(_LARGE, "Qwen2-32B", _Q25, _V25, None, 38.39, ("base", "total"), _EPS),
    "InternVL2_5-78B": Preset(_LARGE, "Qwen2-72B", _Q25, _V25, None, 78.41, (_MS, "total")),
    "InternVL3-1B": Preset(_SMALL, "Qwen2-0.5B", _Q25, _V25, DYNAMIC_2, 0.94, ("printed",)),
    "InternVL3-2B": Preset(_SMALL, "Qwen2-1.5B", _Q25, _V25, DYNAMIC_2, 2.09, (_XT, "total")),
    "InternVL3-8B": Preset(_SMALL, "Qwen2-7B", _Q25, _V25, DYNAMIC_2, 7.94, (_MS, "total")),
    "InternVL3-9B": Preset(
        *(_SMALL, "InternLM3-8B", 128512, _V25, {"type": "dynamic", "factor": 6.0}, 9.14, ("base", "total")),
        ("vocab_size", "rope_scaling"),
    ),
    "InternVL3-14B": Preset(_SMALL, "Qwen2-14B", _Q25, _V25, DYNAMIC_2, 15.12, ("base", "total"), _EPS),
    "InternVL3-38B": Preset(_LARGE, "Qwen2-32B", _Q25, _V25, DYNAMIC_2, 38.39, ("base", "total"), _EPS),
    "InternVL3-78B": Preset(_LARGE, "Qwen2-72B", _Q25, _V25, DYNAMIC_2, 78.41, (_MS, "total")),
    "InternVL3_5-1B": Preset(_SMALL, "Qwen3-0.6B", _Q3, _V25, None, 1.06, (_XT, "total")),
    "InternVL3_5-2B": Preset(_SMALL, "Qwen3-1.7B", _Q3, _V25, None, 2.35, (_XT, "total")),
    "InternVL3_5-4B": Preset(_SMALL, "Qwen3-4B", _Q3, _V25, None, 4.73, (_XT, "total"), ("rope_theta",)),
    "InternVL3_5-8B": Preset(_SMALL, "Qwen3-8B", _Q3, _V25, None, 8.53, (_XT, "total")),
    "InternVL3_5-14B": Preset(_SMALL, "Qwen3-14B", _Q3, _V25, None, 15.12, (_XT, "total")),
    "InternVL3_5-38B": Preset(_LARGE, "Qwen3-32B", _Q3, _V25, None, 38.40, (_XT, "total")),
}
"""Published checkpoints by name. In all of them the output projection is stored beside the embedding (not tied): their
published numbers of parameters count both."""
