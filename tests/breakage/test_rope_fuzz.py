"""Rotary settings with wrong values, in one place or two: each is refused, or gives angles that are numbers."""

from __future__ import annotations

import copy
import os
import random

from helpers.setting_oracle import ODD_VALUES
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.workshop.synthetic.checkpoint import internvl2_2b_config

SEED = int(os.environ.get("BREAKAGE_SEED", "14"))
CASES = 4000
PAIRS = 32
LISTS = {"short_factor": [1.0] * PAIRS, "long_factor": [2.0] * PAIRS}
ROPES = [
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    {"type": "su", **LISTS},
    {"rope_type": "longrope", **LISTS, "original_max_position_embeddings": 512, "factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0},
    {"rope_type": "yarn", "factor": 4.0, "truncate": False, "attention_factor": 1.1},
    {"type": "dynamic", "factor": 2.0},
    {"type": "linear", "factor": 2.0},
    {"rope_theta": 10000.0},
]
ODD = [
    *ODD_VALUES, [1.0] * PAIRS, [0] * PAIRS, [-1.0] * PAIRS, [float("nan")] * PAIRS, [None] * PAIRS, 1e308, 10**400,
    -0.0, 0, 1, 2, True, "yarn", "longrope", "default", {"full_attention": {"rope_theta": 1e4}},
]  # fmt: skip
OWN = ("factor", "attention_factor", "rope_theta", "original_max_position_embeddings", "partial_rotary_factor", "type")
SECTION = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_hidden_layers": 2, "intermediate_size": 128, "vocab_size": 300,
    "max_position_embeddings": 2048, "rope_theta": 10000.0, "head_dim": 64,
}  # fmt: skip


def drawn(rng):
    section = copy.deepcopy(SECTION)
    for place in ("rope_scaling", "rope_parameters"):
        if rng.random() < 0.6:
            rope = copy.deepcopy(rng.choice(ROPES))
            for _ in range(rng.choice([0, 1, 1, 2])):
                rope[rng.choice([*rope, *OWN, "unheard_of"])] = rng.choice(ODD)
            section[place] = rope
    for _ in range(rng.choice([0, 0, 1])):
        name = rng.choice(["rope_theta", "head_dim", "max_position_embeddings", "original_max_position_embeddings"])
        section[name] = rng.choice(ODD)
    return section


def test_every_case_is_refused_or_gives_angles():
    rng, read = random.Random(SEED), {}
    for _ in range(CASES):
        section = drawn(rng)
        try:
            llm = InternVLConfig.from_hf({**internvl2_2b_config(), "llm_config": section}).llm
        except ConfigError as error:
            assert str(error).startswith("config.json: ") and len(str(error)) < 900
            continue
        for length in (1.0, 4096.5):
            frequencies = llm.rope.scaling.frequencies(llm.head_dim, llm.rope.base, length)
            assert frequencies.shape == (llm.head_dim // 2,) and frequencies.isfinite().all(), section
        assert 0 <= llm.rope.scaling.attention_factor < 1e7, section
        read[llm.rope.scaling.kind] = read.get(llm.rope.scaling.kind, 0) + 1
    assert len(read) == 6 and min(read.values()) >= CASES // 400, read
