"""The `config.json` of a checkpoint: values that say nothing are refused with the file's name."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.workshop.synthetic.checkpoint import internvl2_2b_config


def read(folder, stride):
    config = internvl2_2b_config() | {"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": stride}
    (folder / "config.json").write_text(json.dumps(config))
    return InternVLConfig.from_folder(folder).v2pe.stride


@pytest.mark.parametrize(
    ("stride", "expected"),
    [(None, None), (64, 64), (64.0, 64), (0.5, Fraction(1, 2)), ("1/4", Fraction(1, 4)), ("256", 256)],
)
def test_stride(tmp_path, stride, expected):
    assert read(tmp_path, stride) == expected


@pytest.mark.parametrize(
    ("stride", "message"),
    [
        ("abc", "'abc' is not a whole number"),
        (0, "0 is not positive"),
        (-64, "-64 is not positive"),
        ("1/0", "'1/0' is not"),
        ([64], r"\[64\] is not"),
        (True, "True is not"),
    ],
)
def test_bad_stride(tmp_path, stride, message):
    with pytest.raises(ConfigError, match=f"{tmp_path}/config.json: rope_pos_id_stride {message}"):
        read(tmp_path, stride)


def test_all_fields_that_are_missing_are_told_at_once(golden):
    config = json.loads((golden / "reference_checkpoint" / "config.json").read_text())
    for section, name in (("vision_config", "image_size"), ("llm_config", "vocab_size"), ("llm_config", "hidden_size")):
        del config[section][name]
    missing = "vision_config.image_size, llm_config.hidden_size, llm_config.vocab_size"
    with pytest.raises(ConfigError, match=f"^x: fields are missing: {missing}$"):
        InternVLConfig.from_hf(config, "x")
