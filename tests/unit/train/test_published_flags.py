"""Every flag of the published training scripts is understood, refused with a reason, or named where it is not done."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from megatron_v2pe.base.config_tree import leaf_paths
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.recipes.registry import RECIPES
from megatron_v2pe.train import cli
from megatron_v2pe.train.adapter_settings import AdapterSettings
from megatron_v2pe.train.config import ExperimentConfig
from megatron_v2pe.train.notices import of_published_flags
from megatron_v2pe.train.published_flags import FLAGS, as_markdown

PUBLISHED = """
model_name_or_path vision_path llm_path mlp_path tokenizer_path freeze_llm freeze_backbone freeze_mlp
unfreeze_vit_layers unfreeze_lm_head vision_select_layer use_backbone_lora use_llm_lora
use_custom_trainer
grad_checkpoint drop_path_rate ps_version img_emb_down_sample_ratio
rope_pos_id_version rope_pos_id_stride
chunk_num attn_type
compress_seq interaction fuse_method compress_method final_size scale neftune_alpha
meta_path conv_style max_seq_length force_image_size down_sample_ratio pad2square dynamic_image_size
dynamic_max_patch use_thumbnail min_dynamic_patch max_dynamic_patch min_num_frame max_num_frame
normalize_type
use_data_resampling
use_packed_ds num_images_expected max_packed_tokens max_buffer_size log_freq strict_mode replacement
allow_overflow
loss_reduction loss_reduction_all_gather
output_dir overwrite_output_dir do_train bf16 num_train_epochs max_steps per_device_train_batch_size
gradient_accumulation_steps evaluation_strategy save_strategy save_steps save_total_limit
learning_rate weight_decay
warmup_ratio lr_scheduler_type logging_steps group_by_length dataloader_num_workers
remove_unused_columns deepspeed
report_to resume_from_checkpoint
""".split()

V2PE_32K = """
--model_name_or_path pretrained/InternVL2-2B --conv_style internlm2-chat --output_dir
work_dirs/internvl2_2b_v2pe_32k --meta_path dataset/annotation_train_32k.json --overwrite_output_dir
True --force_image_size 448 --max_dynamic_patch 12 --down_sample_ratio 0.5 --drop_path_rate 0.1
--freeze_llm False --freeze_mlp False --freeze_backbone False --vision_select_layer -1
--dataloader_num_workers 3 --bf16 True --num_train_epochs 1 --max_steps 20000
--per_device_train_batch_size 1 --gradient_accumulation_steps 1 --evaluation_strategy no --save_strategy
steps --save_steps 2500 --save_total_limit 5 --learning_rate 5e-6 --weight_decay 0.05 --warmup_ratio
0.03 --lr_scheduler_type cosine --logging_steps 1 --max_seq_length 34000 --do_train True
--grad_checkpoint True --group_by_length False --dynamic_image_size True --use_thumbnail True
--ps_version v2 --deepspeed zero_stage3_config.json --report_to tensorboard --use_packed_ds True
--num_images_expected 135 --max_packed_tokens 34000 --max_buffer_size 20 --log_freq 1000 --strict_mode
False --replacement False --allow_overflow False --remove_unused_columns False --loss_reduction square
--loss_reduction_all_gather True --rope_pos_id_version v2pe_rnd
""".split()


@pytest.fixture
def parse():
    return lambda *words: cli.parse(words, RECIPES)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_flag_has_a_row(name):
    row = FLAGS[name]
    assert row.kind in ("mapped", "ignored", "refused")
    assert row.key if row.kind == "mapped" else row.note


def test_mapped_flags_name_settings_that_exist():
    known = set(leaf_paths(ExperimentConfig()))
    for row in FLAGS.values():
        if row.kind == "mapped":
            assert {key.strip() for key in row.key.split(",")} <= known, row.name


def test_the_published_command_line_is_the_recipe(parse):
    from_flags, recipe = parse(*V2PE_32K), RECIPES["internvl2_2b_v2pe_32k"]()
    # 32 GPUs with one pack each, in the one spelling and in the other
    assert from_flags.train.micro_batches(32) == recipe.train.micro_batches(32) == 1
    changes: dict[str, dict] = {"train": {"gradient_accumulation_steps": None, "global_batch_size": 32}}
    changes["data"] = {"max_skipped_samples": recipe.data.max_skipped_samples}  # the published code has no bound
    assert from_flags.updated(changes, "test") == recipe


def test_the_published_256k_command_line_adds_the_ring(parse):
    config = parse(*V2PE_32K, "--chunk_num", "8", "--attn_type", "ring")
    assert config.parallel.context_parallel_size == 8 and config.parallel.cp_comm_type == "p2p"
    config = parse(*V2PE_32K, "--chunk_num", "8", "--attn_type", "ulysses")
    assert config.parallel.context_parallel_size == 8 and config.parallel.cp_comm_type == "a2a"


def test_a_json_file_of_flags_is_read_like_the_flags(parse, tmp_path):
    path = tmp_path / "flags.json"
    path.write_text('{"learning_rate": 1e-5, "freeze_llm": true, "chunk_num": 4, "rope_pos_id_stride": null}')
    config = parse(str(path))
    assert (config.optimizer.lr, config.model.freeze_llm, config.parallel.context_parallel_size) == (
        1e-5,
        True,
        4,
    )
    assert config.v2pe.rope_pos_id_stride is None
    path.write_text('{"learning_rate": ')
    with pytest.raises(ConfigError, match="flags.json: not valid JSON"):
        parse(str(path))


@pytest.mark.parametrize(
    ("words", "path", "expected"),
    [
        (("--bf16", "False"), "train.precision", "fp32"),
        (("--bf16",), "train.precision", "bf16"),
        (("--grad_checkpoint", "False"), "train.recompute", "none"),
        (("--grad_checkpoint",), "train.recompute", "auto"),
        (
            ("--recipe", "quickstart", "--grad_checkpoint"),
            "train.recompute",
            "auto",
        ),
        (("--recipe", "long_context", "--grad_checkpoint", "False"), "train.recompute", "none"),
        (("--save_strategy", "no"), "checkpoint.save_interval", None),
        (("--save_strategy", "no", "--save_steps", "7"), "checkpoint.save_interval", None),
        (("--save_steps", "7", "--save_strategy", "steps"), "checkpoint.save_interval", 7),
        (("--report_to", "none"), "logging.tensorboard", False),
        (("--report_to", "wandb"), "logging.wandb", True),
        (("--lr_scheduler_type", "constant_with_warmup"), "optimizer.lr_decay_style", "constant"),
        (
            ("--rope_pos_id_version", "v2pe_fix", "--rope_pos_id_stride", "64"),
            "v2pe.rope_pos_id_stride",
            "64",
        ),
        (("--resume_from_checkpoint", "a/b"), "checkpoint.load", "a/b"),
        (("--save_total_limit", "2"), "checkpoint.keep_latest", 2),
        (("--chunk_num", "1", "--attn_type", "packed"), "parallel.context_parallel_size", 1),
        (("--max_grad_norm", "0.5"), "optimizer.clip_grad", 0.5),
        (("--save_total_limit", "0"), "checkpoint.keep_latest", None),
        (("--save_total_limit", "-1"), "checkpoint.keep_latest", None),
        (("--resume_from_checkpoint", "True"), "checkpoint.load", None),
        (("--report_to", "all"), "logging.tensorboard", True),
        (("--warmup_ratio", "0.1", "--lr_scheduler_type", "constant"), "optimizer.warmup_ratio", 0.0),
        (("--lr_scheduler_type", "constant_with_warmup"), "optimizer.warmup_ratio", 0.03),
    ],
)
def test_conversions(words, path, expected, parse):
    value = parse(*words)
    for part in path.split("."):
        value = getattr(value, part)
    assert value == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--attn_type", "stripe"), "--attn_type stripe is none of ring, ulysses, packed"),
        (("--chunk_num", "8", "--attn_type", "packed"), "--chunk_num 8 needs --attn_type ring, it is packed"),
        (
            ("--vision_path", "vit"),
            "--vision_path vit is refused: runs start from a whole InternVL checkpoint",
        ),
        (("--use_packed_ds", "False"), "--use_packed_ds False is refused"),
        (("--per_device_train_batch_size", "2"), "a micro-batch is one pack"),
        (("--allow_overflow",), "documents are never cut"),
        (("--save_strategy", "epoch"), "--save_strategy epoch is refused"),
        (("--lr_scheduler_type", "polynomial"), "--lr_scheduler_type polynomial is refused"),
        (("--report_to", "comet"), "--report_to comet is refused"),
        (("--freeze_llm", "maybe"), "--freeze_llm maybe: expected True or False"),
        (("--chunk_num", "two"), "parallel.context_parallel_size is 'two', expected a whole number"),
    ],
)
def test_what_would_train_something_else_is_refused(words, message, parse):
    with pytest.raises(ConfigError, match=message):
        parse(*words)


RUN_LENGTHS = {
    "steps alone": ("--max_steps 700", 700, None),
    "epochs alone": ("--num_train_epochs 2", 20000, 2.0),
    "a part of an epoch": ("--num_train_epochs 0.25", 20000, 0.25),
    "steps win, as published": ("--num_train_epochs 2 --max_steps 700", 700, None),
    "no number of steps": ("--max_steps -1 --num_train_epochs 2", 20000, 2.0),
    "no number of steps, no epochs": ("--max_steps -1", 20000, 3.0),
    "a later layer's steps": ("--num_train_epochs 2 train.train_steps=5", 5, None),
    "a later layer's steps, dotted": ("--num_train_epochs 2 --train.train-steps 5", 5, None),
    "both in one layer": ("train.train_steps=5 train.epochs=2", 5, 2.0),
    "a later layer's epochs": ("--max_steps 700 --train.epochs 1", 700, 1.0),
}


@pytest.mark.parametrize("name", RUN_LENGTHS)
def test_epochs_and_steps_mean_what_they_mean_in_the_published_scripts(name, parse):
    words, steps, epochs = RUN_LENGTHS[name]
    train = parse("--recipe", "internvl2_2b_v2pe_32k", *words.split()).train
    assert (train.train_steps, train.epochs) == (steps, epochs)


def test_a_file_of_settings_is_a_layer_as_well(parse, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("train: {epochs: 2}\n")
    assert parse("--config", str(path)).train.epochs == 2.0
    assert parse("--config", str(path), "--max_steps", "9").train.epochs is None
    path.write_text(parse("--num_train_epochs", "2").to_yaml())  # as a run saves it, with the steps it counted
    assert parse("--config", str(path)).train.epochs == 2.0
    with pytest.raises(ConfigError, match="train.epochs"):
        parse("--num_train_epochs", "0").validate()


def told(*words):
    return cli.parse_command(words, RECIPES).notices()


def test_what_is_asked_for_and_not_done_is_named_in_a_line_each():
    lines = told(*"--group_by_length True --evaluation_strategy steps --deepspeed zero3.json --do_train False".split())
    assert [line.split(" has no effect here: ")[0] for line in lines] == [
        "--group_by_length True",
        "--deepspeed zero3.json",
        "--do_train False",
        "--evaluation_strategy steps",
    ]
    assert told("--replacement") == [
        "--replacement True has no effect here: a dataset starts again once all of an epoch was read"
    ]


def test_flags_of_a_validation_are_its_settings(parse):
    words = "--evaluation_strategy steps --eval_steps 20 --eval_on_start --load_best_model_at_end True --do_eval True "
    words += "--metric_for_best_model eval_my_set_loss --greater_is_better False --validation.share 0.1"
    found = parse(*words.split()).validation
    assert (found.interval, found.at_start, found.keep_best) == (20, True, 1)
    assert (found.best_by, found.greater_is_better) == ("validation/loss/my_set", False)
    assert parse("--metric_for_best_model", "loss").validation.best_by == "validation/loss"
    assert told(*words.split()) == []
    for wrong in ("--evaluation_strategy epoch", "--metric_for_best_model accuracy", "--eval_steps 0.1"):
        with pytest.raises(ConfigError, match=wrong.split()[0].strip("-") + "|validation.interval"):
            parse(*wrong.split())


@pytest.mark.parametrize(
    "row", [row for row in FLAGS.values() if row.kind == "ignored" and row.done], ids=lambda row: row.name
)
def test_a_value_that_is_what_is_done_is_not_named(row):
    assert all(of_published_flags({row.name: value}, has_saved=True) == [] for value in row.done)
    (line,) = of_published_flags({row.name: "something else"}, has_saved=True)
    assert line == f"--{row.name} something else has no effect here: {row.note}"


def test_flags_that_change_nothing_anywhere_share_a_line():
    (line,) = told("--final_size", "7", "--log_freq", "3", "--interaction")
    assert line == "flags that change nothing here: --final_size, --log_freq, --interaction (docs/flags.md says why)"


def test_the_published_command_line_is_told_what_is_not_read():
    named = [line.partition(" ")[0] for line in told(*V2PE_32K)]
    assert named == ["--deepspeed", "--num_train_epochs", "flags"], "20,000 steps are given"


def test_a_folder_is_overwritten_where_there_is_something(tmp_path):
    words = ("--overwrite_output_dir", "True", "--output_dir", str(tmp_path))
    assert told(*words) == []
    (tmp_path / "iter_0000003").mkdir()
    (line,) = told(*words)
    assert line.startswith("--overwrite_output_dir True has no effect here: a run goes on from the newest checkpoint")


def test_lengths_and_warm_up_that_are_not_as_written_are_named():
    assert told("--max_steps", "-1") == ["--max_steps -1: 3.0 epochs, the published --num_train_epochs"]
    for steps in (("--max_steps", "700"), ("train.train_steps=7",), ("--train.train-steps", "7")):
        (line,) = told("--num_train_epochs", "2", *steps)
        assert line == "--num_train_epochs 2 has no effect beside a number of steps"
    assert told("--max_steps", "-1", "train.train_steps=7") == told("--num_train_epochs", "2") == []
    (line,) = told("--max_buffer_size", "40", "data.indexed_path=a/set")
    assert line == "--max_buffer_size 40 has no effect on an indexed data set"
    (line,) = told("--warmup_ratio", "0.1", "--lr_scheduler_type", "constant")
    assert line.startswith("--warmup_ratio 0.1 has no effect with --lr_scheduler_type constant")


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_one_rank_says_it_on_standard_error_and_the_settings_stay_yaml(rank, lines, monkeypatch, capsys):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "32")
    assert cli.main(["--recipe", "internvl2_2b_v2pe_32k", "--dry-run", "--group_by_length", "True"], RECIPES) == 0
    captured = capsys.readouterr()
    assert captured.err.count("note: --group_by_length True has no effect here") == lines
    assert "group_by_length" not in captured.out


def test_neutral_values_of_refused_flags_pass(parse):
    for row in FLAGS.values():
        for value in row.neutral:
            if value:
                assert parse(f"--{row.name}", value) == ExperimentConfig()


def test_low_rank_adapters_are_those_of_the_published_script(parse):
    """Alpha is twice the rank by default, and all linears of a part whose rank is set are the default targets."""
    settings = parse("--use_llm_lora", "16", "--use_backbone_lora", "0").adapter
    assert settings == AdapterSettings(kind="lora", llm_rank=16, dropout=0.05)
    adapter = AdapterSettings(kind="lora", llm_rank=16, backbone_rank=4, dropout=0.05)
    assert (adapter.alpha_of("language_model"), adapter.rank_of("vision_model")) == (32.0, 4)
    parts = ("language_model", "vision_model")
    assert adapter.chosen_targets() == tuple(f"{part}.{group}" for part in parts for group in ("attention", "mlp"))


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["--use_backbone_lora", "x"], "--use_backbone_lora x: adapter.backbone_rank is 'x', expected a whole number"),
        (["--use_llm_lora=-3"], "--use_llm_lora -3: adapter.llm_rank is -3, expected between 1 and"),
        (["--max_steps", "-1", "--num_train_epochs", "x"], "--num_train_epochs x: train.epochs is 'x'"),
    ],
)
def test_a_value_that_cannot_be_read_is_named_with_its_flag_as_typed(parse, typed, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        parse(*typed)


def test_the_table_in_the_docs_is_this_table(capsys):
    page = Path(__file__).parents[3] / "docs" / "flags.md"
    assert cli.main(["--print-flags"], RECIPES) == 0
    printed = capsys.readouterr().out
    assert printed == as_markdown()
    assert page.read_text(encoding="utf-8") == printed, "python tools/train.py --print-flags > docs/flags.md"
    assert all(f"| `--{name}` |" in printed for name in PUBLISHED)
