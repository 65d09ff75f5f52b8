"""The adapter of a run: merged on export or written beside, for another base refused, the same whoever merges it.

The run is written by two tensor-parallel ranks. The kinds of fault: factors of one rank in place of another's, a part
that was trained in full and is left out, a base that has changed since.
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import low_rank
from helpers.native_models import from_keys
from megatron_v2pe.checkpoint.hf.api import hf_to_hf, hf_to_mcore, mcore_to_hf
from megatron_v2pe.checkpoint.hf.compare import compare, open_any
from megatron_v2pe.checkpoint.hf.folder import HFWeights
from megatron_v2pe.checkpoint.hf.table import mapping_table
from megatron_v2pe.checkpoint.low_rank.merge import export_adapter, merge_adapters
from megatron_v2pe.errors import CheckpointError, ConfigError
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.workshop.synthetic.small_data import write_checkpoint_copy

ALONE = ParallelConfig(use_distributed_optimizer=False)
TP2 = ParallelConfig(tensor_model_parallel_size=2, use_distributed_optimizer=False)
MERGED = 1e-6
"""Of values up to 1; measured at most 1.2e-7, the last bit."""
NORM = "language_model.model.norm.weight"
TRAINED = {"v2pe": {"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": 2}, "data": {"max_dynamic_patch": 3}}


@pytest.fixture(scope="module")
def places(golden, tmp_path_factory, pools):
    """A base in three forms, a run that trained an adapter of it, and the weights that it stands for."""
    root = tmp_path_factory.mktemp("run")
    hf = write_checkpoint_copy(golden / "reference_checkpoint", root / "hf")
    hf_to_mcore(hf, root / "mcore")
    hf_to_hf(hf, root / "native", layout="native")
    arguments = {"base": root / "mcore", "run": root / "run", "layout": TP2, "settings": TRAINED}
    learned = pools[2].run(low_rank.save_run, **arguments)[0]
    return root, learned


def weights_of(folder):
    weights = HFWeights(folder)
    return {name: weights.tensor(name).clone() for name in weights.layout.places()}


def expected(root, learned):
    """Weights by original name, put together by hand."""
    state = weights_of(root / "hf")
    model = InternVLConfig.from_hf(json.loads((root / "hf" / "config.json").read_text()))
    table = mapping_table(model)
    full = low_rank.to_keys(table, state)
    for key, value in learned.items():
        if key.endswith(".lora_B"):
            linear, _, piece = key.removesuffix(".lora_B").rpartition(".adapter.")
            scaling = 6.0 / 3 if key.startswith("language_model") else 3.0 / 2
            change = scaling * value @ learned[key.replace("lora_B", "lora_A")]
            weight = full[f"{linear}.weight"]
            assert piece in ("whole", "gate", "up")
            half = weight.shape[0] // 2
            rows = {"whole": slice(None), "gate": slice(half), "up": slice(half, None)}[piece]
            weight[rows] += change
        elif ".adapter." not in key:
            full[key] = value
    return from_keys(table, full)


def test_every_way_to_merge_gives_the_same(places, tmp_path):
    root, learned = places
    wanted = expected(root, learned)
    mcore_to_hf(root / "run", tmp_path / "exported")
    merge_adapters(root / "hf", [root / "run"], tmp_path / "from_hf")
    merge_adapters(root / "mcore", [root / "run" / "iter_0000002"], tmp_path / "from_mcore")
    for layout in ("original", "native"):
        export_adapter(root / "run", tmp_path / layout, layout=layout)
        merge_adapters(root / "hf", [tmp_path / layout], tmp_path / f"by_{layout}")
    merge_adapters(root / "native", [tmp_path / "original"], tmp_path / "back", layout="original")
    merge_adapters(root / "mcore", [tmp_path / "native"], tmp_path / "as_hf", form="hf")
    for way in ("exported", "from_hf", "by_original", "by_native", "back", "as_hf"):
        found = weights_of(tmp_path / way)
        assert found.keys() == wanted.keys()
        apart = {name: (found[name] - wanted[name]).abs().max().item() for name in wanted}
        assert max(apart.values()) < MERGED, way
        config = json.loads((tmp_path / way / "config.json").read_text())
        assert (config["rope_pos_id_version"], config["rope_pos_id_stride"]) == ("v2pe_fix", 2), way
        assert config["max_dynamic_patch"] == 3
    assert compare(open_any(tmp_path / "from_hf"), open_any(tmp_path / "from_mcore")).same
    assert compare(open_any(tmp_path / "exported"), open_any(root / "run")).same
    base = weights_of(root / "hf")
    assert max((wanted[name] - base[name]).abs().max().item() for name in wanted) > 0.1


def test_two_adapters_with_weights(places, tmp_path):
    root, learned = places
    export_adapter(root / "run", tmp_path / "beside")
    (tmp_path / "beside" / "v2pe_adapter.json").unlink()
    merge_adapters(root / "hf", [root / "run", tmp_path / "beside"], tmp_path / "both", weights=[0.25, 0.75])
    wanted, found = expected(root, learned), weights_of(tmp_path / "both")
    assert max((found[name] - wanted[name]).abs().max().item() for name in wanted) < MERGED
    merge_adapters(root / "hf", [root / "run", tmp_path / "beside"], tmp_path / "half", weights=[1.0, -0.5])
    base, half = weights_of(root / "hf"), weights_of(tmp_path / "half")  # of the projector, trained in full, too
    assert max((half[name] - (base[name] + wanted[name]) / 2).abs().max().item() for name in wanted) < MERGED
    with pytest.raises(ConfigError, match="--weights: factors given: 1, adapters: 2"):
        merge_adapters(root / "hf", [root / "run", tmp_path / "beside"], tmp_path / "no", weights=[1.0])


def test_another_base_is_refused_with_both_fingerprints(places, tmp_path):
    root, _ = places
    changed = shutil.copytree(root / "hf", tmp_path / "changed")
    shard = next(path for path in changed.glob("*.safetensors") if NORM in load_file(path))
    weights = load_file(shard)
    weights[NORM][3] += 1e-3
    save_file(weights, shard, metadata={"format": "pt"})
    hf_to_mcore(changed, tmp_path / "changed_mcore")
    export_adapter(root / "run", tmp_path / "peft")
    there = sorted(path.name for path in tmp_path.iterdir())
    for base in ("changed", "changed_mcore"):
        for adapter in (root / "run", tmp_path / "peft"):
            with pytest.raises(
                CheckpointError, match=r"fingerprint tensors-\w{32}; .*changed.* has the fingerprint tens"
            ):
                merge_adapters(tmp_path / base, [adapter], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == there
    run = shutil.copytree(root / "run", tmp_path / "run")
    pointer = json.loads((run / "iter_0000002" / "adapter.json").read_text())
    pointer["base_folder"] = str(tmp_path / "changed_mcore")
    (run / "iter_0000002" / "adapter.json").write_text(json.dumps(pointer))
    with pytest.raises(CheckpointError, match="has the fingerprint"):
        mcore_to_hf(run, tmp_path / "out", verify=False)
    pointer |= {"base_folder": str(tmp_path / "gone"), "base": str(tmp_path / "gone_too")}
    (run / "iter_0000002" / "adapter.json").write_text(json.dumps(pointer))
    with pytest.raises(CheckpointError, match="put the base back, or name it"):
        mcore_to_hf(run, tmp_path / "out", verify=False)
    assert not (tmp_path / "out").exists()


def test_what_is_no_adapter_or_no_base(places, tmp_path):
    root, _ = places
    with pytest.raises(ConfigError, match="a whole model, and no adapter"):
        merge_adapters(root / "hf", [root / "mcore"], tmp_path / "out")
    with pytest.raises(ConfigError, match="a run that trained an adapter; name its base first"):
        merge_adapters(root / "run", [root / "run"], tmp_path / "out")
    with pytest.raises(ConfigError, match="no such folder"):
        merge_adapters(root / "hf", [tmp_path / "none"], tmp_path / "out")
    with pytest.raises(ConfigError, match="holds no adapter; expected adapter_config.json"):
        merge_adapters(root / "hf", [tmp_path], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_average_of_an_adapter_and_the_best_checkpoint(places, pools, tmp_path):
    """An export beside the base takes the average that is asked for; `RUN/best` is an adapter as a run is."""
    root, _ = places
    run = tmp_path / "run"
    pools[1].run(low_rank.save_run, base=root / "mcore", run=run, layout=ALONE, average_factor=2.0)
    (run / "best_checkpoints.json").write_text(json.dumps({"by": "validation/loss", "values": {"2": 1.0}}))
    found = {}
    for name, averaged in (("model", False), ("ema", True)):
        export_adapter(run / "best", tmp_path / name, averaged=averaged)
        found[name] = load_file(tmp_path / name / "adapter_model.safetensors")
        mcore_to_hf(run / "best", tmp_path / f"{name}_merged", weights=name)
        merge_adapters(root / "hf", [tmp_path / name], tmp_path / f"{name}_apart")
        merged, apart = weights_of(tmp_path / f"{name}_merged"), weights_of(tmp_path / f"{name}_apart")
        assert all(torch.equal(merged[key], apart[key]) for key in merged)
    assert all(torch.equal(found["ema"][key], 2 * value) for key, value in found["model"].items())
    merge_adapters(root / "hf", [run / "best"], tmp_path / "best")
    best, newest = weights_of(tmp_path / "best"), weights_of(tmp_path / "model_merged")
    assert all(torch.equal(best[key], newest[key]) for key in newest)
    merge_adapters(root / "hf", [run], tmp_path / "averaged", averaged=True)
    averaged, wanted = weights_of(tmp_path / "averaged"), weights_of(tmp_path / "ema_merged")
    assert all(torch.equal(averaged[key], wanted[key]) for key in wanted)
    with pytest.raises(CheckpointError, match="holds no average of weights"):
        export_adapter(root / "run", tmp_path / "none", averaged=True)
    for adapter, words in ((root / "run", "ema_decay has a run keep"), (tmp_path / "ema", "a PEFT folder holds no av")):
        with pytest.raises(CheckpointError, match=words):
            merge_adapters(root / "hf", [adapter], tmp_path / "none", averaged=True)
    export_adapter(run, tmp_path / "narrow", averaged=True, dtype="bf16")
    narrow = load_file(tmp_path / "narrow" / "adapter_model.safetensors")
    assert narrow.keys() == found["ema"].keys()
    assert all(torch.equal(narrow[key], value.bfloat16()) for key, value in found["ema"].items())
    with pytest.raises(ConfigError, match="no such folder"):
        merge_adapters(root / "hf", [root / "run" / "best"], tmp_path / "none")
    assert not (tmp_path / "none").exists()
