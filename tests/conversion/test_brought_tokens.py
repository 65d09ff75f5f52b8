"""Tokens that an adapter brings to a base that does not take them: named, before anything is written."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from helpers.native_models import small_config
from helpers.token_runs import write_base
from megatron_v2pe.checkpoint.hf.row_sources import RowsOfKey
from megatron_v2pe.checkpoint.hf.table import TABLES, MappingTable
from megatron_v2pe.checkpoint.low_rank.adapter import Adapter
from megatron_v2pe.checkpoint.low_rank.brought_tokens import check_one_row_each, growth_of
from megatron_v2pe.checkpoint.low_rank.merged_rows import MergedRows
from megatron_v2pe.checkpoint.low_rank.token_rows import TokenRows
from megatron_v2pe.errors import CheckpointError, ConfigError
from megatron_v2pe.foreign.grown_tokenizer import NewToken
from megatron_v2pe.models.config import InternVLConfig

WIDTH = small_config("internlm2")["llm_config"]["hidden_size"]
NEW = (NewToken("<a>", 411, (5,)), NewToken("<b>", 412, (6, 7)))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = write_base(tmp_path_factory.mktemp("base")) / "hf"
    return folder, InternVLConfig.from_folder(folder)


def rows_of(tokens=NEW, count=2, width=WIDTH):
    values = torch.ones(count, width)
    return TokenRows("ADAPTER", tuple(range(411, 411 + count)), dict.fromkeys(TABLES, values), tokens)


def test_tokens_that_the_base_takes(base):
    growth = growth_of([rows_of(), None, rows_of()], *base)
    assert growth is not None and growth.tokens == NEW and growth.rows == 413
    unknown = growth_of([rows_of((replace(NEW[0], pieces=()),), count=1)], *base)
    assert unknown is not None and len(unknown.tokens[0].pieces) > 1, "the base's tokenizer cuts it"


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ((NewToken("<img>", 411, (5,)), NEW[1]), r"'<img>' with id 411, which is token 402 of .* already"),
        ((NewToken("<b>", 412, (6,)), NewToken("<c>", 413, (6,))), r"'<b>' with id 412, and .* has 411 ids"),
        ((*NEW, NewToken("<c>", 413, (6,))), r"brings 3 tokens, and has no rows for 1 of them \(<c>\)"),
        (NEW[:1], r"has 1 rows behind the 412 of its base .*\(412 to 412\)"),
        ((), r"has 2 rows behind the 411 of its base"),
    ],
)
def test_tokens_that_do_not_go_with_the_base(base, tokens, message):
    with pytest.raises(CheckpointError, match=f"ADAPTER: .*{message}"):
        growth_of([rows_of(tokens)], *base)


def test_rows_and_adapters_that_disagree(base):
    with pytest.raises(CheckpointError, match=rf"have shape \[2, 7\], expected \[2, {WIDTH}\]"):
        growth_of([rows_of(width=7)], *base)
    other = (NEW[0], NewToken("<z>", 412, (6, 7)))
    with pytest.raises(ConfigError, match=r"different new tokens: the other lacks 1 tokens of one \(<b>\)"):
        growth_of([rows_of(), rows_of(other)], *base)
    check_one_row_each([rows_of(), rows_of(), None])
    changed = replace(rows_of(), tables=dict.fromkeys(TABLES, torch.zeros(2, WIDTH)))
    with pytest.raises(ConfigError, match="different rows of the tokens 411 to 412"):
        check_one_row_each([rows_of(), changed])


class Ones:
    """A base whose embedding has 413 rows of ones."""

    keys = {TABLES[0]: RowsOfKey(torch.float32, (413, WIDTH))}  # noqa: RUF012

    def read(self, key, first_row, out):
        torch.frombuffer(out, dtype=torch.float32).fill_(1)


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 1.0), (0.5, 0.5)])
def test_rows_that_several_adapters_have_alike_count_once(weights):
    rows = replace(rows_of(), tables={TABLES[0]: torch.full((2, WIDTH), 5.0)})
    merged = MergedRows(Ones(), [(Adapter("one", MappingTable(()), {}, rows=rows), weight) for weight in weights])
    out = torch.zeros(3, WIDTH)
    merged.read(TABLES[0], 410, memoryview(out.view(torch.uint8).numpy().reshape(-1)))
    assert out.eq(torch.tensor([[1.0], [5.0], [5.0]])).all()
