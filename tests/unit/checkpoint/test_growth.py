"""Rows of new tokens: means of the rows of pieces, whichever part of a table is read, and how many rows there are."""

from __future__ import annotations

import pytest
import torch

from megatron_v2pe.checkpoint.growth import TABLES, GrownReader, Growth
from megatron_v2pe.checkpoint.torch_dist import TorchDistReader, TorchDistWriter
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.foreign.grown_tokenizer import NewToken

ROWS, WIDTH = 11, 6
TOKENS = (NewToken("<a>", 11, (3,)), NewToken("<b>", 12, (1, 10, 1)), NewToken("<c>", 13, (0, 2, 5, 7)))


def reader_of(folder, dtype, rows=ROWS, padding=0):
    """Two tables and another tensor, the tables cut into shards of several ranks."""
    generator = torch.Generator().manual_seed(0)
    full = {name: torch.randn(rows + padding, WIDTH, generator=generator).to(dtype) for name in (*TABLES, "other")}
    with TorchDistWriter(folder) as writer:
        for name, tensor in full.items():
            tensor[rows:] = 0
            for first in range(0, rows + padding, 4):
                writer.add_rows(name, tensor.shape, first, tensor[first : first + 4])
    return TorchDistReader(folder, writer.written.tensors), full


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_rows_are_means_in_every_part_of_a_table(tmp_path, dtype):
    inner, full = reader_of(tmp_path, dtype)
    growth = Growth(TOKENS, ROWS)
    reader = GrownReader(inner, growth)
    wide = torch.promote_types(dtype, torch.float32)
    for name in TABLES:
        means = [full[name][list(token.pieces)].to(wide).mean(0).to(dtype) for token in TOKENS]
        expected = torch.cat([full[name], torch.stack(means)])
        assert reader.tensors[name].size == (14, WIDTH)
        for first in range(14):
            for count in range(1, 15 - first):
                found = reader.read_rows(name, first, count)
                assert found.dtype == dtype and torch.equal(found, expected[first : first + count])
        target = torch.zeros(14, WIDTH, dtype=torch.float64)
        reader.read(name, (0, 0), (14, WIDTH), target)
        exact = torch.stack([full[name][list(token.pieces)].to(wide).mean(0) for token in TOKENS]).double()
        assert torch.equal(target, torch.cat([full[name].double(), exact])), "taken wide, cast once"
    assert torch.equal(reader.read_rows("other", 2, 5), full["other"][2:7])


def test_spare_rows_come_first(tmp_path):
    """Ids 9, 10 and 11 of a table of 11 rows: two replace rows that no token had, the table grows by one."""
    inner, full = reader_of(tmp_path, torch.float32)
    tokens = tuple(NewToken(f"<{number}>", number, (number - 9, 4)) for number in (9, 10, 11))
    growth = Growth(tokens, ROWS)
    assert growth.rows == 12 and Growth(tokens[:2], ROWS).rows == ROWS
    assert "2 of them take spare rows; the tables grow from 11 rows to 12" in growth.in_words()
    assert "the tables keep their 11 rows" in Growth(tokens[:2], ROWS).in_words()
    table = GrownReader(inner, growth).read_rows(TABLES[0], 0, 12)
    assert torch.equal(table[:9], full[TABLES[0]][:9])
    for token in tokens:
        assert torch.equal(table[token.id], full[TABLES[0]][list(token.pieces)].mean(0))


def test_spare_rows_that_no_new_token_takes_stay(tmp_path):
    """Ids 8 and 9 of a table of 11 rows: the row behind them is that of the checkpoint."""
    inner, full = reader_of(tmp_path, torch.float32)
    growth = Growth((NewToken("<a>", 8, (3,)), NewToken("<b>", 9, (1, 5))), ROWS)
    table = GrownReader(inner, growth).read_rows(TABLES[0], 0, ROWS)
    assert torch.equal(table[10], full[TABLES[0]][10]) and torch.equal(table[8], full[TABLES[0]][3])


def test_rows_of_padding_are_no_spare_rows(tmp_path):
    """Checkpoints of earlier versions hold rows of zeros beyond the vocabulary; those of numbers are refused."""
    inner, full = reader_of(tmp_path, torch.float32, padding=5)
    growth = Growth(TOKENS, ROWS)
    table = GrownReader(inner, growth).read_rows(TABLES[0], 0, 14)
    assert torch.equal(table[11], full[TABLES[0]][3])
    with pytest.raises(CheckpointError, match="values of the rows beyond are not zero"):
        GrownReader(inner, Growth((NewToken("<a>", 10, (3,)),), ROWS - 1))
    with pytest.raises(CheckpointError, match="has 16 rows, its config.json says 17"):
        GrownReader(inner, Growth((NewToken("<a>", 17, (3,)),), 17))
