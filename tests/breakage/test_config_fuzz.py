"""`config.json` and settings with wrong values: each gives one error or values of the right types, in their ranges.

What is right is written down here and in `testing/setting_oracle.py` a second time, by hand.
"""

from __future__ import annotations

import json
import math
import os
import random
import time
from dataclasses import asdict

import pytest
import yaml

from helpers.setting_oracle import ODD_VALUES, SETTINGS, problem, verdict
from megatron_v2pe.base import config_tree
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.models import config as model_config
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.recipes.registry import RECIPES
from megatron_v2pe.train.config import ExperimentConfig
from megatron_v2pe.v2pe.rope_scaling import SCALINGS
from megatron_v2pe.workshop.synthetic.checkpoint import internvl2_2b_config

SEED = int(os.environ.get("BREAKAGE_SEED", "14"))
WHOLE, NUMBER, FLAG, CHOICE, NAMES = "whole", "number", "flag", "choice", "names"

# Section, field -> kind, range or choices, whether it may be left out.
FIELDS = {
    **{("vision_config", name): (WHOLE, (1, 131_072), False) for name in ("hidden_size", "num_attention_heads")},
    **{("llm_config", name): (WHOLE, (1, 131_072), False) for name in ("hidden_size", "num_attention_heads")},
    **{(section, "num_hidden_layers"): (WHOLE, (1, 1000), False) for section in ("vision_config", "llm_config")},
    **{(section, "intermediate_size"): (WHOLE, (1, 1 << 20), False) for section in ("vision_config", "llm_config")},
    **{(section, "initializer_range"): (NUMBER, (0, 100), True) for section in ("vision_config", "llm_config")},
    ("vision_config", "image_size"): (WHOLE, (14, 16_384), False),
    ("vision_config", "patch_size"): (WHOLE, (1, 1024), False),
    ("vision_config", "num_channels"): (WHOLE, (3, 3), True),
    ("vision_config", "qkv_bias"): (FLAG, None, True),
    ("vision_config", "qk_normalization"): (FLAG, None, True),
    ("vision_config", "norm_type"): (CHOICE, ("layer_norm", "rms_norm"), False),
    ("vision_config", "hidden_act"): (CHOICE, ("gelu",), True),
    ("vision_config", "layer_norm_eps"): (NUMBER, (1e-30, 0.1), True),
    ("vision_config", "drop_path_rate"): (NUMBER, (0, 0.99), True),
    ("vision_config", "initializer_factor"): (NUMBER, (0, 1000), True),
    ("vision_config", "dropout"): (NUMBER, (0, 1), True),
    ("vision_config", "torch_dtype"): (CHOICE, ("float32", "bfloat16", "float16", "float64", "auto"), True),
    ("llm_config", "architectures"): (NAMES, None, False),
    ("llm_config", "bias"): (FLAG, None, True),
    ("llm_config", "hidden_act"): (CHOICE, ("silu",), True),
    ("llm_config", "num_key_value_heads"): (WHOLE, (1, 131_072), True),
    ("llm_config", "vocab_size"): (WHOLE, (1, 1 << 24), False),
    ("llm_config", "max_position_embeddings"): (WHOLE, (1, 1 << 30), True),
    ("llm_config", "rms_norm_eps"): (NUMBER, (1e-30, 0.1), True),
    ("llm_config", "rope_theta"): (NUMBER, (1, 1e15), True),
    ("llm_config", "tie_word_embeddings"): (FLAG, None, True),
    ("llm_config", "torch_dtype"): (CHOICE, ("float32", "bfloat16", "float16", "float64", "auto"), True),
    ("", "architectures"): (NAMES, None, True),
    ("", "model_type"): (CHOICE, ("internvl_chat",), False),
    ("", "downsample_ratio"): (NUMBER, (1 / 64, 1), True),
    ("", "force_image_size"): (WHOLE, (14, 16_384), True),
    ("", "dynamic_image_size"): (FLAG, None, True),
    ("", "use_thumbnail"): (FLAG, None, True),
    ("", "pad2square"): (FLAG, None, True),
    ("", "min_dynamic_patch"): (WHOLE, (1, 1000), True),
    ("", "max_dynamic_patch"): (WHOLE, (1, 1000), True),
    ("", "ps_version"): (CHOICE, ("v1", "v2"), True),
    ("", "select_layer"): (WHOLE, (-1001, 1000), True),
    ("", "rope_pos_id_version"): (CHOICE, ("default", "v2pe_fix", "v2pe_rnd"), True),
}


def allowed(kind, limits, optional, value):
    """Tell whether a value has the type and lies in the range; it may still not fit the other fields."""
    if value is None:
        return optional
    if kind == FLAG:
        return isinstance(value, bool)
    if kind == NAMES:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if kind == CHOICE:
        return isinstance(value, str) and value in limits
    if isinstance(value, bool) or not isinstance(value, int if kind == WHOLE else (int, float)):
        return False
    return (
        math.isfinite(value) and limits[0] <= value <= limits[1]
        if isinstance(value, float) or value < 10**300
        else False
    )


def unsound(config):
    """Say what in a configuration that was accepted is of a wrong type or out of range."""
    vision, llm, whole = config.vision, config.llm, asdict(config)
    flags = ("dynamic_image_size", "use_thumbnail", "pad2square")
    rules = {
        "flags": all(isinstance(whole[name], bool) for name in flags),
        "vision flags": isinstance(vision.qkv_bias, bool) and isinstance(vision.qk_normalization, bool),
        "tied": isinstance(llm.tie_word_embeddings, bool),
        "layers": all(type(part.num_layers) is int and 1 <= part.num_layers <= 1000 for part in (vision, llm)),
        "heads": all(part.hidden_size % part.num_attention_heads == 0 for part in (vision, llm)),
        "pairs": llm.head_dim % 2 == 0 and llm.num_attention_heads % llm.num_query_groups == 0,
        "eps": all(type(part.norm_eps) is float and 0 < part.norm_eps <= 0.1 for part in (vision, llm)),
        "rope": type(llm.rope.base) is float and 1 <= llm.rope.base < math.inf,
        "scaling": llm.rope.scaling.kind in SCALINGS and getattr(llm.rope.scaling, "factor", 1.0) >= 1,
        "drop path": type(vision.drop_path_rate) is float and 0 <= vision.drop_path_rate < 1,
        "tiles": config.tile_size % vision.patch_size == 0 and config.tokens_per_tile >= 1,
        "patches": 1 <= config.min_dynamic_patch <= config.max_dynamic_patch <= 1000,
        "ratio": 0 < config.downsample_ratio <= 1,
        "layer": -vision.num_layers - 1 <= config.select_layer <= vision.num_layers,
        "words": config.ps_version in ("v1", "v2") and isinstance(config.template, str),
        "version": config.v2pe.rope_pos_id_version in ("default", "v2pe_fix", "v2pe_rnd"),
        "stride": config.v2pe.stride is None or 0 < config.v2pe.stride <= 1 << 16,
    }
    return [name for name, holds in rules.items() if not holds]


def read(folder, text):
    (folder / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return InternVLConfig.from_folder(folder)


def wrong_fields(folder, count):
    """Give fields odd values; yield what went wrong. `refused` counts what had to be refused and was."""
    draw, refused = random.Random(SEED), 0
    for _ in range(count):
        (section, name), (kind, limits, optional) = draw.choice(list(FIELDS.items()))
        value, config = draw.choice(ODD_VALUES), internvl2_2b_config()
        (config[section] if section else config)[name] = value
        right = allowed(kind, limits, optional, value)
        try:
            faults = unsound(read(folder, json.dumps(config)))
            if faults or not right:
                yield f"{section} {name} = {str(value)[:40]} accepted: {faults}"
        except ConfigError as error:
            message = str(error)
            refused += not right
            if not message.startswith(str(folder)) or "\n" in message or len(message) > 800:
                yield f"{section} {name}: message {message[:200]!r}"
            if not right and name not in message and kind != CHOICE and name != "architectures":
                yield f"{section} {name} = {str(value)[:40]}: not named in {message[:200]!r}"
        except Exception as error:
            yield f"{section} {name} = {str(value)[:40]}: {type(error).__name__}: {error}"
    assert refused > count / 3


def test_fields_of_a_config_with_wrong_values(tmp_path):
    assert read(tmp_path, json.dumps(internvl2_2b_config())).llm.num_layers == 24
    assert list(wrong_fields(tmp_path, 1000)) == []


@pytest.mark.parametrize("lenient", ["flag", "number"])
def test_a_lenient_reader_is_caught(tmp_path, monkeypatch, lenient):
    """Planted break: booleans, or numbers, are converted in place of checked."""
    convert = {"flag": lambda self, name, default=None: bool(self.content.get(name, default)),
               "number": lambda self, name, default=None, *_: float(self.content.get(name) or default)}  # fmt: skip
    monkeypatch.setattr(model_config.Fields, lenient, convert[lenient])
    found = list(wrong_fields(tmp_path, 300))
    assert any("accepted" in line for line in found)
    assert lenient == "flag" or any("ValueError" in line or "TypeError" in line for line in found)


def test_a_config_damaged_as_text(tmp_path):
    """Bytes flipped, cut, repeated or put in; what is still accepted is sound."""
    draw, outcomes = random.Random(SEED), {"read": 0, "refused": 0}
    whole = json.dumps(internvl2_2b_config(), indent=1).encode()
    pieces = [b"[" * 100_000, b"{" * 70, b'"a":' * 3000, b"9" * 5000, b"\xff\xfe", b"\x00", b'"rope_theta": 5,',
              b"NaN", b"1e999", b"Infinity", b"\\ud800", b"//", b"'", b"\xef\xbb\xbf", b",",
              b"}", b'"bias": true,']  # fmt: skip
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            place = draw.randrange(len(content))
            kind = draw.randrange(5)
            if kind == 0:
                content[place] ^= 1 << draw.randrange(8)
            elif kind == 1:
                del content[place:]
            elif kind == 2:
                content[place:place] = draw.choice(pieces)
            elif kind == 3:
                del content[place : place + draw.randrange(1, 40)]
            else:
                content[place:place] = content[place : place + draw.randrange(1, 400)]
            if not content:
                break
        try:
            assert unsound(read(tmp_path, bytes(content))) == []
            outcomes["read"] += 1
        except ConfigError as error:
            assert str(error).startswith(str(tmp_path)) and "\n" not in str(error)
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 10, outcomes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: found 1000000000, expected between 1 and 1000"),
        ({"rope_theta": False}, "rope_theta: found false, expected a number"),
        ({"rms_norm_eps": "<image>"}, "rms_norm_eps: found the text '<image>', expected a number"),
        (
            {"rope_scaling": {"rope_type": "mrope"}},
            "rope_type 'mrope' is none of dynamic, linear, llama3, yarn, longrope, ",
        ),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1], "long_factor": [1, "a"]}}, "long_factor.1.: found"),
        ({"rope_scaling": {"type": "dynamic"}}, "'factor' is missing"),
        ({"rope_parameters": {"rope_theta": 7.0}}, "rope_parameters: rope_theta: found '7.0', but"),
        ({"rope_scaling": [1]}, "rope_scaling: found a list, expected an object"),
    ],
)
def test_what_the_language_model_cannot_be(tmp_path, changes, message):
    config = internvl2_2b_config()
    config["llm_config"] |= changes
    start = time.process_time()
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, json.dumps(config))
    assert time.process_time() - start < 5  # measured: 0.01 s


def test_the_newer_form_of_rotary_settings_is_read(tmp_path):
    old, new = internvl2_2b_config(), internvl2_2b_config()
    for name in ("rope_theta", "rope_scaling"):
        del new["llm_config"][name]
    new["llm_config"]["rope_parameters"] = {"rope_theta": 1000000, "rope_type": "dynamic", "factor": 2.0}
    assert read(tmp_path, json.dumps(new)) == read(tmp_path, json.dumps(old))


def test_what_is_no_file_or_stands_twice(tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ConfigError, match="config.json: a folder, expected a file"):
        InternVLConfig.from_folder(tmp_path)
    (tmp_path / "config.json").rmdir()
    text = json.dumps(internvl2_2b_config()).replace('"select_layer": -1', '"select_layer": -1, "select_layer": -2')
    with pytest.raises(ConfigError, match="'select_layer' stands twice"):
        read(tmp_path, text)


def settings_faults(folder, count, through_yaml):
    """Set single settings to odd values; yield what went wrong."""
    draw, path = random.Random(SEED), folder / "run.yaml"
    usual = RECIPES["internvl2_2b_v2pe_32k"]()
    for _ in range(count):
        name, value = draw.choice(list(SETTINGS)), draw.choice(ODD_VALUES)
        section, _, last = name.partition(".")
        expected = verdict(SETTINGS[name], value)
        try:
            if through_yaml:
                path.write_text(yaml.safe_dump({section: {last: value}}, allow_unicode=True), encoding="utf-8")
                config = usual.updated(config_tree.read_yaml(path), str(path))
            else:
                config = config_tree.set_path(usual, name, value, "here")
            config.validate()
        except ConfigError as error:
            # A value that is right in itself may not go together with the others; then both are named.
            if "here: " in str(error) and expected:
                yield f"{name} = {str(value)[:40]} refused: {str(error)[:200]}"
            if len(str(error)) > 900:
                yield f"{name}: a message of {len(str(error))} characters"
            continue
        except Exception as error:
            yield f"{name} = {str(value)[:40]}: {type(error).__name__}: {error}"
            continue
        if expected is False:
            yield f"{name} = {str(value)[:40]} accepted"
        for path_, row in SETTINGS.items():
            part, _, field = path_.partition(".")
            if fault := problem(row, getattr(getattr(config, part), field)):
                yield f"{name} = {str(value)[:40]}: {path_} became {fault}"


def test_every_setting_has_a_row():
    assert set(config_tree.leaf_paths(ExperimentConfig())) == SETTINGS.keys()


@pytest.mark.parametrize("through_yaml", [True, False])
def test_settings_with_wrong_values(tmp_path, through_yaml):
    assert list(settings_faults(tmp_path, 500 if through_yaml else 1500, through_yaml)) == []


def test_lenient_settings_are_caught(tmp_path, monkeypatch):
    """Planted break: numbers are whatever `float` takes, ranges are not looked at."""
    monkeypatch.setattr(config_tree, "_number", lambda value, kind: kind(float(value)))
    monkeypatch.setattr(config_tree.Range, "holds", lambda self, value: True)
    found = list(settings_faults(tmp_path, 300, False))
    assert any("accepted" in line for line in found) and any("TypeError" in line for line in found)


def test_yaml_made_of_its_own_words(tmp_path):
    draw, path, outcomes = random.Random(SEED), tmp_path / "run.yaml", {"read": 0, "refused": 0}
    words = ["train", "seed", ": ", "- ", "\n", "  ", "[", "]", "{", "}", "&x ", "*x", "!!int ",
             "!!python/name:os.system ", "!!timestamp ", "!!float ", "!!bool ", "!!binary ", '"', "'", "|", ">", "<<",
             "=", "1", ".", "e", "~", "?", "%", "#", ",", "2001-13-01", "9" * 5000, "\t", "\x00", "\x1b"]  # fmt: skip
    for _ in range(500):
        path.write_text("".join(draw.choice(words) for _ in range(draw.randrange(1, 14))), encoding="utf-8")
        try:
            ExperimentConfig.load(path)
            outcomes["read"] += 1
        except ConfigError as error:
            assert str(path) in str(error)
            outcomes["refused"] += 1
    assert outcomes["refused"] > 300, outcomes
