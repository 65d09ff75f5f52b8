"""Data, indexed sets, inspection and token budgets with tokenizers and templates of the other language models."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from test_inspect import assert_printed_as_it_is, view_of

from helpers.data_cases import every_kind
from helpers.tokenizer_kinds import KINDS
from megatron_v2pe.data.conversation import get_template
from megatron_v2pe.data.indexed.samples import IndexedSamples
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.workshop.inspection.find import find_sample
from megatron_v2pe.workshop.long_context.budget import TokenBudget
from megatron_v2pe.workshop.long_context.pipeline import Encoding

TEMPLATE_OF = {"qwen3": "internvl2_5", "llama3": "internlm2-chat", "phi3": "phi3-chat", "llama, legacy": "Hermes-2"}


@pytest.fixture(scope="module", params=TEMPLATE_OF)
def case(request, tmp_path_factory):
    """A set of every kind of sample, built with one tokenizer; and another tokenizer of the same kind."""
    folder = tmp_path_factory.mktemp("set")
    KINDS[request.param](folder / "hf")
    tokenizer = Tokenizer.of_model(folder / "hf", None, TEMPLATE_OF[request.param])
    case = every_kind(folder / "data", tokenizer)
    case.encoder = replace(case.encoder, config=replace(case.encoder.config, template=TEMPLATE_OF[request.param]))
    case.build(folder / "built")
    config = replace(case.encoder.config, indexed_path=str(folder / "built"), packing_window=17)
    return request.param, case, replace(case.encoder, config=config)


def test_samples_are_printed_as_they_are(case):
    kind, data, indexed = case
    rows = [json.loads(line) for line in (data.meta.parent / "all.jsonl").read_text().splitlines()]
    template = get_template(indexed.config.template)
    for sample in range(0, 34, 3):
        assert_printed_as_it_is(indexed, find_sample(indexed, str(sample), 0))
    if kind not in ("qwen3", "llama3"):  # the pieces of Llama's class do not keep every blank
        return
    first = "".join(name for name, number in indexed.tokenizer.special.items() if number in indexed.tokenizer.before)
    for line, row in enumerate(rows, 1):
        turns = [(turn["from"], turn["value"]) for turn in row["conversations"]]
        if isinstance(row.get("image"), str):
            turns[0] = ("human", "<image>\n" + turns[0][1])
        (document,) = view_of(indexed, find_sample(indexed, f"all:{line}")).documents
        text = "".join("<image>" if run.image else run.text for run in document.runs)
        assert text == first + "".join(message.text for message in template.render(turns))
        said = [template.said(text) for _, text in turns]
        assert list(document.exchanges) == list(zip(said[::2], said[1::2], strict=True))
        learned = "".join(run.text for run in document.runs if run.learned)
        assert learned == "".join(answer + template.end for answer in said[1::2])


def test_a_set_of_another_tokenizer_is_refused(case, tmp_path):
    kind, _, indexed = case
    KINDS["qwen2" if kind == "llama3" else "llama3"](tmp_path)
    samples = IndexedSamples(indexed.config.indexed_path)
    samples.check(indexed.config, indexed.tokenizer, indexed.facts)
    with pytest.raises(ConfigError, match="another tokenizer than"):
        samples.check(indexed.config, Tokenizer.from_folder(tmp_path), indexed.facts)


def test_a_conversation_is_counted_exactly(case):
    kind, _, indexed = case
    encoding = Encoding(indexed.tokenizer, TEMPLATE_OF[kind], 28, 4)
    turns = [
        ("human", "<image>\nOne <image> two<image><image>\n three?"),
        ("gpt", "four 橘猫 <image>."),
        ("human", " five"),
        ("gpt", "six\n"),
    ]
    tiles = [1, 2, 3, 1, 1]
    assert TokenBudget(encoding).conversation(turns, tiles) == encoding.length(turns, tiles)
