"""Checkpoints to convert: the reference's golden one, and one unlike it in vocabulary, type and shards."""

from __future__ import annotations

import json

import pytest
import torch

from megatron_v2pe.checkpoint.hf.api import hf_to_mcore
from megatron_v2pe.workshop.synthetic.checkpoint import write_hf_folder
from megatron_v2pe.workshop.synthetic.small_data import write_tokenizer

ODD_VOCABULARY = 509


@pytest.fixture(scope="session")
def sources(golden, tmp_path_factory):
    """HF folders by name."""
    reference = golden / "reference_checkpoint"
    config = json.loads((reference / "config.json").read_text())
    config["llm_config"]["vocab_size"] = ODD_VOCABULARY
    config["torch_dtype"] = "bfloat16"
    odd = tmp_path_factory.mktemp("hf") / "odd"
    write_hf_folder(odd, config, dtype=torch.bfloat16, shards=3, seed=1)
    write_tokenizer(odd)
    (odd / "modeling_internvl_chat.py").write_text("# code that travels with the weights\n")
    (odd / "examples").mkdir()
    (odd / "examples" / "image.jpg").write_bytes(b"\xff\xd8\xff")
    single = tmp_path_factory.mktemp("hf") / "single"
    write_hf_folder(single, config, dtype=torch.float16, shards=1, seed=2)
    return {"reference": reference, "odd": odd, "single": single}


@pytest.fixture(scope="session")
def converted(sources, tmp_path_factory):
    """Megatron-Core folders by name, made once; not to be changed."""
    root = tmp_path_factory.mktemp("mcore")
    for name, source in sources.items():
        hf_to_mcore(source, root / name)
    return {name: root / name for name in sources}
