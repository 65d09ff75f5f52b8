"""Names users type: benchmarks, groups, and the tasks of the published scripts."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from megatron_v2pe.data.published_layout import LONG_VQA_IMAGE, LONG_VQA_PASTE
from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.evaluate.benchmark_names import create, expand
from megatron_v2pe.evaluate.benchmark_registry import BENCHMARKS
from megatron_v2pe.evaluate.families.long_vqa import synthetic as long_vqa_sets
from megatron_v2pe.evaluate.families.milebench import questions as milebench
from megatron_v2pe.evaluate.families.milebench import synthetic as milebench_sets
from megatron_v2pe.workshop.synthetic.benchmarks import SETS, write_benchmark

PUBLISHED_TASKS = """
vqa-okvqa-val vqa-textvqa-val vqa-textvqa-val-ocr vqa-vizwiz-val vqa-vizwiz-test vqa-vqav2-testdev vqa-vqav2-val
vqa-ai2d-test vqa-gqa-testdev vqa-docvqa-val vqa-docvqa-test vqa-chartqa-test vqa-chartqa-test-human
vqa-chartqa-test-augmented vqa-infovqa-val vqa-infovqa-test vqa-ocrvqa-val vqa-ocrvqa-test vqa pope mmbench-dev-en
mmbench-test-en mmbench-dev-cn mmbench-test-cn ccbench-dev scienceqa mmmu-dev mmmu-val mmmu-test seed mvbench
""".split()


def test_names_are_those_of_the_constructors():
    assert all(create(name).name == name for name in BENCHMARKS)
    assert len({create(name).title for name in BENCHMARKS}) == len(BENCHMARKS)


def test_counts_of_the_families():
    assert len(BENCHMARKS.groups()["general"]) == 10  # nine tasks, ChartQA in two parts
    assert len(expand(["mmniah_val"])) == len(expand(["mmniah_test"])) == 6
    assert len(expand(["mmniah_long"])) == 4
    assert len(expand(["milebench"])) == 29
    assert len(expand(["longvqa"])) == 17 * 5
    assert expand(["all"]) == list(BENCHMARKS)


def test_tasks_of_the_published_scripts_are_known():
    assert all(expand([task]) for task in PUBLISHED_TASKS)


@pytest.mark.parametrize(
    "typed, names",
    [
        (["chartqa"], ["chartqa_human", "chartqa_augmented"]),
        (["chartqa,seed", "SEED"], ["chartqa_human", "chartqa_augmented", "seed"]),
        (["retrieval-image-val"], ["mmniah_val_retrieval_image"]),
        (["counting-text-test"], ["mmniah_test_counting_text"]),
        (["retrieval-image-test-1M"], ["mmniah_long_1m"]),
        (["longvqa_chartqa_32"], ["longvqa_32k_chartqa"]),
        (["milebench_CLEVR-Change"], ["milebench_clevr_change"]),
        (["MMMU_validation"], ["mmmu_val"]),
        (["infographicsvqa_val"], ["infovqa_val"]),
        (["mmbench_test_en_20231003"], ["mmbench_test_en"]),
        (["vqa-gqa-testdev"], ["gqa_testdev_llava"]),
    ],
)
def test_what_names_stand_for(typed, names):
    assert expand(typed) == names


@pytest.mark.parametrize("typed", ["general", "milebench", "mm_niah", "mm_niah-1M", "long-vqa", "longvqa_40k"])
def test_suites_of_the_readme_are_groups(typed):
    assert expand([typed])


def test_an_unknown_name_gets_suggestions():
    with pytest.raises(ConfigError, match="docvqa_vall: no such benchmark; did you mean docvqa_val"):
        expand(["docvqa_vall"])
    with pytest.raises(ConfigError, match="no such benchmark; groups are all, general"):
        expand(["~~~"])
    with pytest.raises(ConfigError, match="chartqa: no such benchmark"):
        create("chartqa")


@pytest.mark.parametrize(
    "name, tiles, dynamic, thumbnail, new_tokens",
    [
        ("chartqa_human", 12, True, None, 100),
        ("docvqa_val", 18, True, None, 100),
        ("infovqa_val", 24, True, None, 100),
        ("ai2d", 6, True, None, 10),
        ("scienceqa", 6, True, None, 100),
        ("pope", 6, True, None, 100),
        ("mmmu_val", 6, True, None, 10),
        ("mmbench_test_en", 6, True, None, 100),
        ("seed", 6, True, None, 100),
        ("textvqa_val", 6, True, None, 10),
        ("gqa_testdev_llava", 6, True, None, 10),
        ("ocrvqa_test", 6, True, None, 100),
        ("mvbench", None, False, None, 1000),
        ("mmniah_val_retrieval_text", 5, True, True, 16),
        ("mmniah_test_counting_image", 5, True, True, 320),
        ("mmniah_long_512k", 12, True, True, 16),
        ("milebench_nuscenes", None, False, None, 32),
        ("longvqa_32k_gqa", 12, True, True, 8),
        ("longvqa_64k_visualmrc", 12, True, True, 256),
        ("longvqa_48k_okvqa", 12, True, True, 16),
        ("longvqa_48k_vizwiz", 12, True, True, 32),
        ("longvqa_48k_textcaps", 12, True, True, 64),
        ("longvqa_48k_ocrvqa", 12, True, True, 128),
    ],
)
def test_settings_of_the_published_scripts(name, tiles, dynamic, thumbnail, new_tokens):
    benchmark = create(name)
    found = benchmark.max_tiles, benchmark.dynamic_tiling, benchmark.thumbnail, benchmark.max_new_tokens
    assert found == (tiles, dynamic, thumbnail, new_tokens)
    assert benchmark.min_new_tokens == 1


def test_lists_that_are_written_down_twice_agree():
    assert set(long_vqa_sets.IMAGE_TASKS) == set(LONG_VQA_IMAGE)
    assert set(long_vqa_sets.PASTE_TASKS) == set(LONG_VQA_PASTE)
    assert sorted((*milebench_sets.OPEN, *milebench_sets.CHOICE)) == sorted(milebench.SETS)
    assert sorted(SETS.names()) == sorted(BENCHMARKS)


def test_sets_are_those_of_the_scorers():
    pytest.importorskip("rapidfuzz", reason="scorers need the eval extra")
    from megatron_v2pe.evaluate.families.long_vqa import questions as long_vqa
    from megatron_v2pe.evaluate.families.long_vqa import scorer as longvqa
    from megatron_v2pe.evaluate.families.milebench import scorer as scored
    from megatron_v2pe.evaluate.families.mmmu import questions as mmmu
    from megatron_v2pe.evaluate.families.mmmu import scorer as mmmu_report
    from megatron_v2pe.evaluate.families.videos import questions as mvbench
    from megatron_v2pe.evaluate.families.videos import scorer as videos
    from megatron_v2pe.evaluate.scorer_names import SCORERS

    assert sorted(scored.SETS) == sorted(milebench.SETS)
    assert sorted(longvqa.TASKS) == sorted(long_vqa.TASKS)
    assert sorted(mmmu_report.SUBJECTS) == sorted(mmmu.SUBJECTS)
    assert [task.title for task in mvbench.MVBENCH_TASKS] == list(videos.TASKS)
    assert {create(name).scorer for name in BENCHMARKS} - {None} <= set(SCORERS)


def test_the_tool_writes_made_up_sets(tmp_path, capsys):
    path = Path(__file__).parents[3] / "tools" / "make_synthetic_benchmarks.py"
    spec = importlib.util.spec_from_file_location("make_synthetic_benchmarks", path)
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.main([str(tmp_path / "out"), "chartqa", "retrieval-text-val", "--questions", "3"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: 3 benchmarks\n"
    for name in ("chartqa_human", "mmniah_val_retrieval_text"):
        create(name).check(tmp_path / "out")
        assert len(list(create(name).questions(tmp_path / "out"))) == 3
    assert tool.main([str(tmp_path / "out"), "chartqas"]) == 2
    assert "did you mean chartqa" in capsys.readouterr().err
    assert tool.main([str(tmp_path / "out"), "seed", "--questions", "9"]) == 2
    assert "9 questions: expected 3 to 5" in capsys.readouterr().err


def test_a_benchmark_without_a_made_up_set_is_named(tmp_path):
    with pytest.raises(DataError, match="mme: there is no made-up set"):
        write_benchmark(tmp_path, "mme")


def test_the_table_of_the_documentation_has_every_benchmark():
    text = (Path(__file__).parents[3] / "docs" / "evaluation_data.md").read_text(encoding="utf-8")
    families = ("mmniah_", "milebench_", "longvqa_")
    missing = [name for name in BENCHMARKS if not name.startswith(families) and f"`{name}`" not in text]
    assert not missing
    assert all(f"`{family}" in text for family in families)
    assert all(f"`{group}`" in text or group.startswith("longvqa_") for group in BENCHMARKS.groups())


def test_the_page_is_put_together_from_the_families():
    path = Path(__file__).parents[3] / "scripts" / "write_benchmark_page.py"
    spec = importlib.util.spec_from_file_location("write_benchmark_page", path)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    text = script.PAGE.read_text(encoding="utf-8")
    assert script.page(text) == text, "python scripts/write_benchmark_page.py writes it"
