"""A damaged training checkpoint is refused by name, or what is used of it is right: never used in silence.

Every file of a checkpoint, every kind of damage; resumed, its weights loaded, and exported.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch

from helpers.damage import SEED, damaged_copies, outcome
from helpers.sealing import seal

V2PE = {"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": "64"}


def suite(
    folder: str, root: str, hf_config: dict, seed: int, verify: bool = True, silent: int | None = None
) -> list[tuple[str, str, str, str]]:
    """Damage a checkpoint and use it: file, kind, use, outcome of each; for use inside a `WorkerPool`.

    With `silent` it ends when so many outcomes were.
    """
    with _trainer(hf_config) as (model, optimizer):
        uses = _uses(model, optimizer, Path(root), verify)
        right = {name: use(Path(folder)) for name, use in uses.items()}
        found = []
        for name, kind, copy in damaged_copies(Path(folder), Path(root), seed):
            found += [(name, kind, use, outcome(partial(action, copy), right[use])) for use, action in uses.items()]
            if silent is not None and sum(entry[3] == "SILENT" for entry in found) >= silent:
                break
        return found


@contextmanager
def _trainer(hf_config):
    from megatron.core.process_groups_config import ProcessGroupCollection

    from helpers.short_runs import SETTINGS
    from megatron_v2pe.models.transformer_config import ModelOptions
    from megatron_v2pe.parallel.config import ParallelConfig
    from megatron_v2pe.train.ddp import wrap
    from megatron_v2pe.train.optimizer_step import build_optimizer
    from megatron_v2pe.v2pe.settings import StridePolicy
    from megatron_v2pe.workshop.built_model import built

    layout = ParallelConfig()
    with built(hf_config, layout, ModelOptions(params_dtype=torch.float32), StridePolicy("default"), 5) as model:
        groups = ProcessGroupCollection.use_mpu_process_groups()
        wrapped = wrap(model, layout, groups, torch.device("cpu"))
        yield model, build_optimizer(wrapped, SETTINGS, torch.float32, True, False, groups)


def _uses(model, optimizer, root, verify):
    from megatron_v2pe.checkpoint import store
    from megatron_v2pe.checkpoint.hf.api import mcore_to_hf

    def digest():
        total = hashlib.sha256()
        for name, parameter in model.named_parameters():
            total.update(name.encode() + parameter.detach().numpy().tobytes())
        for inner in optimizer.chained_optimizers:
            for state in inner.optimizer.state.values():
                for key in ("exp_avg", "exp_avg_sq"):
                    total.update(state[key].numpy().tobytes())
        return total.hexdigest()

    def resume(folder):
        state = store.load_training(folder, model, optimizer, verify)
        return digest(), state

    def weights(folder):
        store.load_model(folder, model, verify)
        return [parameter.detach().sum().item() for parameter in model.parameters()]

    def export(folder):
        target = root / "exported"
        shutil.rmtree(target, ignore_errors=True)
        mcore_to_hf(folder, target, verify=verify)
        files = [path for path in target.rglob("*") if path.is_file()]
        return {path.relative_to(target).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    return {"resume": resume, "weights": weights, "export": export}


def save(folder: str, hf: str, hf_config: dict) -> None:
    """Write a training checkpoint, its moments not zero; for use inside a `WorkerPool`."""
    from megatron_v2pe.checkpoint import store
    from megatron_v2pe.checkpoint.hf.api import hf_to_mcore

    hf_to_mcore(Path(hf), Path(folder) / "start")
    with _trainer(hf_config) as (model, optimizer):
        store.load_model(Path(folder) / "start", model)
        for inner in optimizer.chained_optimizers:
            inner._init_optimizer_states_with_dummy_values()
            for state in inner.optimizer.state.values():
                state["exp_avg"].normal_()
        state = store.TrainingState(3, {"position": 3, "open": [], "skipped": {}}, {"v2pe": V2PE})
        store.save(
            Path(folder) / "run", model, optimizer, state, Path(folder) / "start", files={"config.yaml": "a: 1\n"}
        )


SETTINGS = {"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": "64"}


@pytest.fixture(scope="module")
def hf_config(golden):
    config = json.loads((golden / "reference_checkpoint" / "config.json").read_text())
    config["llm_config"] |= {"num_hidden_layers": 1}
    config["vision_config"] |= {"num_hidden_layers": 1}
    return config


@pytest.fixture(scope="module")
def checkpoint(pools, golden, hf_config, tmp_path_factory):
    from megatron_v2pe.workshop.synthetic.checkpoint import write_hf_folder
    from megatron_v2pe.workshop.synthetic.small_data import write_tokenizer

    root = tmp_path_factory.mktemp("damage")
    write_hf_folder(root / "hf", hf_config, shards=1)
    write_tokenizer(root / "hf")
    pools[1].run(save, folder=str(root), hf=str(root / "hf"), hf_config=hf_config)
    return root / "run" / "iter_0000003"


@pytest.mark.slow
def test_no_damage_is_silent_and_none_ends_in_a_traceback(pools, checkpoint, hf_config, tmp_path):
    arguments = {"folder": str(checkpoint), "root": str(tmp_path), "hf_config": hf_config, "seed": SEED}
    found = pools[1].run(suite, **arguments)[0]
    bad = [entry for entry in found if entry[3].startswith(("SILENT", "TRACEBACK"))]
    assert not bad, (len(bad), len(found), bad[:6])
    files = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()}
    assert {name for name, *_ in found} == files and len(found) > 20 * len(files) / 2
    refused = [(name, said) for name, kind, use, said in found if said.startswith("refused")]
    assert len(refused) > 0.8 * len(found)
    unnamed = [entry for entry in refused if Path(entry[0]).name not in entry[1] and ": missing" not in entry[1]]
    assert len(unnamed) < 0.25 * len(refused), unnamed[:5]  # a swap names the other file, or what it is not


@pytest.mark.slow
@pytest.mark.parametrize("enough", [3, pytest.param(None, marks=pytest.mark.exhaustive)])
def test_without_checksums_the_same_damage_is_silent(pools, checkpoint, hf_config, tmp_path, enough):
    """The planted break: bits flipped in weights, moments and copied files are not noticed with verification off."""
    arguments = {"folder": str(checkpoint), "root": str(tmp_path), "hf_config": hf_config, "seed": SEED}
    found = pools[1].run(suite, **arguments, verify=False, silent=enough)[0]
    silent = [entry for entry in found if entry[3] == "SILENT"]
    assert len(silent) >= 3, found
    assert not [entry for entry in found if entry[3].startswith("TRACEBACK")]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"iteration": 45}, "iteration 45 in a folder called iter_0000003"),
        ({"iteration": -3}, "iteration: found -3, expected 0 or more"),
        ({"iteration": True}, "iteration: found true, expected a whole number"),
        ({"iteration": 3.5}, "expected a whole number"),
        ({"iteration": 10**30}, "beyond 2^53"),
        ({"loader": None}, "loader: found null, expected an object"),
        ({"loader": []}, "loader: found a list, expected an object"),
        ({"settings": "x"}, "settings: found the text 'x', expected an object"),
        ({"more": 1}, "unknown field 'more'"),
    ],
    ids=str,
)
def test_an_edited_state_is_refused_by_its_types_too(checkpoint, tmp_path, change, words):
    from megatron_v2pe.checkpoint.store import read_training_state
    from megatron_v2pe.errors import CheckpointError

    copy = tmp_path / checkpoint.name
    shutil.copytree(checkpoint, copy)
    path = copy / "training_state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError) as caught:
        read_training_state(seal(copy))
    assert words in str(caught.value) and "training_state.json" in str(caught.value)


def test_a_lost_tracker_is_found_again_and_a_wrong_one_offers_what_is_there(tmp_path):
    from megatron_v2pe.checkpoint.folder import LATEST, latest_iteration
    from megatron_v2pe.errors import CheckpointError

    for number in (5, 10):
        (tmp_path / f"iter_{number:07d}").mkdir()
    assert latest_iteration(tmp_path) == 10
    (tmp_path / LATEST).write_text("5\n")
    assert latest_iteration(tmp_path) == 5, "set back on purpose"
    for content in ("", "x", "-5", "5.0", "²", "9" * 5000, "12"):
        (tmp_path / LATEST).write_text(content)
        with pytest.raises(CheckpointError, match=r"write its number into the file: 5, 10|at most"):
            latest_iteration(tmp_path)
    assert latest_iteration(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors.index.json", '{"weight_map": {"a": [[]]}}'),
        ("generation_config.json", "[]"),
        ("added_tokens.json", '{"</img>": {}}'),
        ("tokenizer.model", ""),
    ],
)
def test_a_side_file_that_is_none_is_not_exported(checkpoint, tmp_path, name, content):
    """Even where its checksum is right, or not looked at."""
    from megatron_v2pe.checkpoint.hf.api import mcore_to_hf
    from megatron_v2pe.errors import CheckpointError, ConfigError

    copy = tmp_path / checkpoint.name
    shutil.copytree(checkpoint, copy)
    (copy / "hf" / name).write_text(content)
    for verify in (True, False):
        with pytest.raises((CheckpointError, ConfigError), match=name):
            mcore_to_hf(seal(copy), tmp_path / "hf", verify=verify)
    assert not (tmp_path / "hf").exists()
