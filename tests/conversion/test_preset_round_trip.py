"""Every preset, reduced: the same bytes per tensor from HF to Megatron to HF, through models, and from native to HF.

Always on is a cover: every preset in one layout, every architecture and every tower in several. The whole square of
TP 1, 2, 4 x PP 1, 2, 4 is marked exhaustive (`scripts/check_presets.sh`).
"""

from __future__ import annotations

import json
from itertools import cycle

import pytest
import torch

from helpers.conversion import swap_queries_and_keys
from helpers.golden import read_checkpoint
from helpers.resaved import resave
from megatron_v2pe.checkpoint.hf.api import hf_to_hf, hf_to_mcore, mcore_to_hf
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.models.build import model_sizes
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.preset_table import LANGUAGE_SHAPES, PRESETS
from megatron_v2pe.models.presets import preset_config, reduced
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.workshop.synthetic.checkpoint import write_hf_folder

COVER = ((1, 1), (2, 1), (1, 2), (4, 1), (1, 4), (2, 2))
KINDS = {(LANGUAGE_SHAPES[one.language].architecture, one.tower): name for name, one in PRESETS.items()}.values()
"""A preset of each architecture with each tower it comes with."""
SQUARE = tuple((tp, pp) for tp in (1, 2, 4) for pp in (1, 2, 4))


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The HF folder and the Megatron folder of every reduced preset."""
    root = tmp_path_factory.mktemp("presets")
    made = {}
    for name in PRESETS:
        config = reduced(preset_config(name)) | {"image_token_id": 300}
        write_hf_folder(root / name / "hf", config, shards=2)
        hf_to_mcore(root / name / "hf", root / name / "mcore")
        made[name] = (config, root / name)
    return made


def layout(tp, pp):
    return ParallelConfig(tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp, sequence_parallel=tp > 1)


def wrong_tensors(source, result):
    """Return the names of tensors that differ in a byte, or are there once only."""
    (_, theirs), (_, ours) = read_checkpoint(source), read_checkpoint(result)
    names = theirs.keys() ^ ours.keys()
    return names | {
        name
        for name in theirs.keys() & ours.keys()
        if theirs[name].dtype != ours[name].dtype
        or not torch.equal(theirs[name].view(torch.int16), ours[name].view(torch.int16))
    }


def taken_through(pools, converted, names, tp, pp, tmp_path):
    """Return what differs after a way through models of a layout, by preset."""
    cases = [
        (str(converted[name][1] / "mcore"), str(tmp_path / f"{name}_{tp}_{pp}"), converted[name][0]) for name in names
    ]
    pools[tp * pp].run(resave, cases=cases, layout=layout(tp, pp))
    found = {}
    for name, (_, run, _) in zip(names, cases, strict=True):
        back = tmp_path / f"{name}_{tp}_{pp}_hf"
        mcore_to_hf(run, back)
        found[name] = wrong_tensors(converted[name][1] / "hf", back)
    return found


@pytest.mark.parametrize("name", KINDS)
def test_original_to_native_to_original(converted, name, tmp_path):
    config, folder = converted[name]
    hf_to_hf(folder / "hf", tmp_path / "native", layout="native")
    hf_to_hf(tmp_path / "native", tmp_path / "back", layout="original")
    assert wrong_tensors(folder / "hf", tmp_path / "back") == set()
    back = json.loads((tmp_path / "back" / "config.json").read_text())
    assert InternVLConfig.from_hf(back) == InternVLConfig.from_hf(config)
    native, _ = read_checkpoint(tmp_path / "native")
    assert native["model_type"] == "internvl"


@pytest.mark.parametrize("square", COVER, ids=lambda one: f"tp{one[0]}_pp{one[1]}")
def test_through_models_of_a_layout(pools, converted, square, tmp_path):
    dealt = {name: layout for name, layout in zip(PRESETS, cycle(COVER), strict=False)}
    names = [name for name, layout in dealt.items() if layout == square]
    found = taken_through(pools, converted, names, *square, tmp_path)
    assert found == dict.fromkeys(names, set())


@pytest.mark.exhaustive
@pytest.mark.parametrize("square", SQUARE, ids=lambda one: f"tp{one[0]}_pp{one[1]}")
def test_every_preset_through_models_of_every_layout(pools, converted, square, tmp_path):
    names = [name for name in PRESETS if fits(converted[name][0], square[0])]
    assert len(names) == (27 if square[0] < 4 else 21)
    found = taken_through(pools, converted, names, *square, tmp_path)
    assert found == dict.fromkeys(names, set())


def fits(config, tp):
    return config["llm_config"]["num_key_value_heads"] % tp == 0


def test_two_key_value_heads_are_refused_at_tp_4(converted):
    refused = [name for name in PRESETS if not fits(converted[name][0], 4)]
    for name in refused:
        with pytest.raises(ConfigError, match="size 4 does not divide .*: take 2 with"):
            layout(4, 1).validate(4, model_sizes(InternVLConfig.from_hf(converted[name][0])))
    assert "InternVL3-1B" in refused and "InternVL3-9B" in refused


def test_a_swapped_permutation_is_seen(converted, tmp_path, monkeypatch):
    """Planted break: queries and keys of the tower change places on the way back."""
    swap_queries_and_keys(monkeypatch)
    mcore_to_hf(converted["InternVL3-1B"][1] / "mcore", tmp_path / "hf", verify=False)
    wrong = wrong_tensors(converted["InternVL3-1B"][1] / "hf", tmp_path / "hf")
    assert {name.split(".attn.")[1] for name in wrong} == {"qkv.weight", "qkv.bias"}
