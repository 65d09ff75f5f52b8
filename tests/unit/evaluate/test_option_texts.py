"""Benchmarks whose questions have options hand their texts to the scorer: an answer may give a text for its letter."""

from __future__ import annotations

import pytest

from megatron_v2pe.evaluate.benchmark_names import create
from megatron_v2pe.evaluate.scorer_names import scorer_of
from megatron_v2pe.workshop.synthetic.benchmarks import write_benchmark

pytest.importorskip("rapidfuzz", reason="scorers need the eval extra")


@pytest.mark.parametrize(
    "name", ["seed", "ai2d", "scienceqa", "mmbench_dev_en", "videomme", "mvbench", "mmniah_val_retrieval_image"]
)
def test_an_option_s_text_counts_as_its_letter(tmp_path, name):
    write_benchmark(tmp_path, name, questions=5)
    benchmark = create(name)
    assert benchmark.scorer is not None
    scorer = scorer_of(benchmark.scorer)
    tried = 0
    for question in benchmark.questions(tmp_path):
        item = dict(benchmark.item(question, ""))
        options = item.get("options") or dict(zip("ABCDEFGH", item.get("candidates", ()), strict=False))
        if len(set(options.values())) != len(options) or not options or "<image>" in options.values():
            continue
        for letter, text in options.items():
            by_letter = scorer.score({**item, "prediction": letter}, "corrected")
            for said in (text, f"The answer is {text}.", f"It is {text}, not something else."):
                assert scorer.score({**item, "prediction": said}, "corrected") == by_letter, (said, options)
            tried += 1
    assert tried or name.startswith("mmniah")
