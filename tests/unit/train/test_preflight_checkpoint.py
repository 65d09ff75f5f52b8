"""What a run is told against its checkpoint: a model that could not be asked as trained is refused before training.

Kind of fault: training is paid for, and then the result cannot be asked, or is asked otherwise than it was trained.
"""

from __future__ import annotations

import json
import shutil

import pytest

from megatron_v2pe.base.config_tree import to_dict
from megatron_v2pe.checkpoint.resolve import resume_folder
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.recipes.registry import RECIPES
from megatron_v2pe.train import cli
from megatron_v2pe.train.preflight.checkpoint import (
    changes_from_before,
    changes_from_start,
    check_checkpoint,
    tiling_not_exported,
)
from megatron_v2pe.train.preflight.run import inspect_run
from megatron_v2pe.workshop.synthetic.small_data import SPECIAL, write_checkpoint_copy


@pytest.fixture
def hf(golden, tmp_path):
    return write_checkpoint_copy(golden / "reference_checkpoint", tmp_path / "hf")


def config(hf, *words):
    return cli.parse(["--recipe", "quickstart", f"model.model_name_or_path={hf}", *words], RECIPES)


def state(hf, **changes):
    path = hf / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("name", ["vicuna_v1.1", "internvl_zh", "internlm2_chat"])
def test_a_template_the_checkpoint_names_and_asking_would_refuse(hf, name):
    state(hf, template=name)
    with pytest.raises(
        ConfigError, match=f"config.json: conversation template '{name}' is none of .*internlm2-chat, wri"
    ):
        check_checkpoint(config(hf))


def test_a_template_of_the_run_whose_end_the_tokenizer_lacks(hf):
    with pytest.raises(
        ConfigError, match=r"no token <\|end\|>, which ends an answer in conversation template 'phi3-chat'"
    ):
        check_checkpoint(config(hf, "--data.template", "phi3-chat"))
    with pytest.raises(ConfigError, match="conversation template 'no-such' is none of"):
        check_checkpoint(config(hf, "--data.template", "no-such"))
    check_checkpoint(config(hf, "--data.template", "Hermes-2"))


def test_a_tokenizer_no_export_would_carry(hf, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(hf, other)
    check_checkpoint(config(hf, "--model.tokenizer-path", str(other)))  # the same, elsewhere
    names = [*SPECIAL[:-2], "<IMG_CONTEXT>", "</img>"]
    first = min(json.loads((hf / "added_tokens.json").read_text()).values())
    (other / "added_tokens.json").write_text(json.dumps({name: first + i for i, name in enumerate(names)}))
    with pytest.raises(ConfigError, match="model.tokenizer_path .*other: gives other ids than the tokenizer in .*hf"):
        check_checkpoint(config(hf, "--model.tokenizer-path", str(other)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--vision_select_layer", "-2"), "select_layer -2 was asked for, but the checkpoint has -1"),
        (("--ps_version", "v1"), "ps_version v1"),
        (("--data.force-image-size", "448"), "tile_size 448"),
        (("--down_sample_ratio", "1.0"), "downsample_ratio 1.0"),
    ],
)
def test_what_is_part_of_the_model(hf, words, message):
    with pytest.raises(ConfigError, match=message):
        check_checkpoint(config(hf, *words))


def test_what_holds_is_said(hf):
    same = ("--data.max-dynamic-patch", "6", "--rope_pos_id_version", "default")
    assert list(changes_from_start(config(hf, *same))) == []
    words = ("--data.template", "Hermes-2", "--rope_pos_id_version", "v2pe_fix", "--rope_pos_id_stride", "1/2")
    (line,) = changes_from_start(config(hf, "--data.max-dynamic-patch", "6", *words))
    assert "template Hermes-2 (was internlm2-chat)" in line
    assert line.endswith("positions v2pe_fix at stride 1/2 (was default)")


def test_strides_without_the_one_that_is_asked_with_are_said(hf):
    words = ("--data.max-dynamic-patch", "6", "--rope_pos_id_version", "v2pe_rnd", "--v2pe.strides")
    *_, line = changes_from_start(config(hf, *words, "8,16"))  # a tile of 4 tokens is asked at stride 1
    assert line.startswith("v2pe.strides 8, 16: without 1, at which a checkpoint of v2pe_rnd is asked")
    assert len(list(changes_from_start(config(hf, *words, "1,16")))) == 1


def test_tiles_of_all_data_sets_that_no_export_carries_are_said(hf, tmp_path):
    def lines(*entries, **more):
        meta = tmp_path / "meta.json"
        entry = {"annotation": "a.jsonl", "data_augment": False, "repeat_time": 1}
        meta.write_text(json.dumps({f"set{number}": {**entry, **one} for number, one in enumerate(entries)}))
        words = [f"--data.{name}={value}" for name, value in more.items()]
        return list(tiling_not_exported(config(hf, "--data.meta-path", str(meta), *words).data))

    (line,) = lines({"max_dynamic_patch": 1}, {"max_dynamic_patch": 2})
    assert "a max_dynamic_patch of its own, 2 at most" in line and "set that to 2" in line
    (line,) = lines({"dynamic_image_size": False})
    assert "every data set has dynamic_image_size false" in line
    assert lines({"max_dynamic_patch": 1}, {}) == []
    assert lines({"max_dynamic_patch": 4}, {"max_dynamic_patch": 2}, **{"max-dynamic-patch": 4}) == []


def saved(hf, run, *words):
    """What asking and going on read of a run's checkpoint of step 2."""
    folder = run / "iter_0000002"
    shutil.copytree(hf, folder / "hf")
    (folder / "hf" / "layout.json").write_text("{}")
    (folder / "checkpoint.json").write_text(json.dumps({"format_version": 2, "kind": "training"}))
    (folder / "training_state.json").write_text(json.dumps({"settings": to_dict(config(hf, *words))}))
    return folder


def test_what_a_run_does_otherwise_from_now_on_is_said(hf, tmp_path):
    """Kind of fault: a run goes on with other positions, tiles or pixels than it began with, without a word."""
    folder = saved(hf, tmp_path / "run", "data.pad2square=true")
    assert not list(changes_from_before(config(hf, "data.pad2square=true"), folder))
    fixed = ("v2pe.rope_pos_id_version=v2pe_fix", "v2pe.rope_pos_id_stride=2", "data.normalize_type=siglip")
    (line,) = changes_from_before(config(hf, *fixed), folder)
    shutil.rmtree(folder / "hf")  # going on needs it not, and is not refused for it
    assert not list(changes_from_before(config(hf, *fixed), folder))
    for words in ("iter_0000002", "pad2square False (was True)", "siglip (was imagenet)", "stride 2 (was v2pe_rnd)"):
        assert words in line


def test_a_run_is_gone_on_from_by_any_of_its_names(hf, tmp_path):
    """Kind of fault: what is looked at before a start refuses a name that training takes; both ask this function."""
    folder = saved(hf, tmp_path / "run")
    for name in (tmp_path / "run", folder, folder / "hf", f"{folder}/hf/", tmp_path / "run" / ".." / "run"):
        settings = config(hf, f"checkpoint.load={name}", f"checkpoint.save={tmp_path / 'new'}").checkpoint
        found = resume_folder(settings.save, settings.load, settings.resume)
        assert found is not None and found.resolve() == folder
    with pytest.raises(ConfigError, match="to start from its weights, name it as model.model_name_or_path"):
        resume_folder(str(tmp_path / "new"), str(hf), "auto")


def test_a_run_whose_first_checkpoint_is_gone_is_told_of_its_own(hf, tmp_path):
    run = tmp_path / "run"
    saved(hf, run)
    with pytest.raises(ConfigError, match=f"no such folder.*--model.model-name-or-path {run}"):
        check_checkpoint(config(tmp_path / "gone", f"checkpoint.save={run}"))
    check_checkpoint(config(run, f"checkpoint.save={run}"))


def test_the_checkpoints_template_is_taken_where_a_run_names_none(hf):
    """Another one that is named is taken, if its marks are tokens."""
    plain = config(hf)
    assert plain.data.template is None
    for name in ("internvl2_5", "internlm2-chat"):
        state(hf, template=name)
        found = inspect_run(plain)
        assert found.config.data.template == name and found.encoder.config.template == name
        assert f"template {name}" in "\n".join(found.right)
        assert plain.with_template(check_checkpoint(plain).template).data.template == name
        assert config(hf, "--data.template", "Hermes-2").with_template(name).data.template == "Hermes-2"
