"""Row kinds against layouts built by hand: what Megatron-Core's joint projection means, head by head.

The kinds of fault: a key head goes to the wrong group, which loads and computes nonsense; padding that was trained is
cut off in silence; a table that leaves rows unfilled.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from megatron_v2pe.checkpoint.hf.mappings import DIRECT, QueryGroups, Stacked, TensorMapping, mapped, vocabulary
from megatron_v2pe.checkpoint.hf.table import MappingTable
from megatron_v2pe.errors import CheckpointError, ConfigError

WIDTH, HEAD_DIM = 6, 2
CASES = [(4, 2), (6, 2), (3, 1), (4, 4)]
"""Query heads and groups: shared by two and three, one group for all, a key for every head."""


def joined(mappings, tensors):
    """Megatron-Core's tensor, filled stretch by stretch; every row exactly once."""
    whole = torch.full(mappings[0].key_shape, float("nan"))
    for mapping in mappings:
        for first_row, rows in mapping.to_mcore(tensors[mapping.name]):
            assert whole[first_row : first_row + len(rows)].isnan().all(), "filled twice"
            whole[first_row : first_row + len(rows)] = rows
    assert not whole.isnan().any(), "not filled"
    return whole


def back(mapping, whole):
    return mapping.to_hf(lambda first_row, rows: whole[first_row : first_row + rows])


def by_hand(q, k, v, heads, groups):
    """Of every group its queries, its key, its value, as Megatron-Core splits them again."""
    q, k, v = (part.view(count, HEAD_DIM, *part.shape[1:]) for part, count in ((q, heads), (k, groups), (v, groups)))
    shared, rows = heads // groups, []
    for group in range(groups):
        for head in range(shared):
            rows.append(q[group * shared + head])
        rows += [k[group], v[group]]
    return torch.cat(rows)


def parts_of(heads, groups, *width):
    torch.manual_seed(heads)
    return [torch.randn(count * HEAD_DIM, *width) for count in (heads, groups, groups)]


@pytest.mark.parametrize(("heads", "groups"), CASES)
@pytest.mark.parametrize("width", [(WIDTH,), ()], ids=["weight", "bias"])
def test_split_projections_are_interleaved_by_group(heads, groups, width):
    q, k, v = parts_of(heads, groups, *width)
    kinds = QueryGroups(heads, groups)
    tensors = {"q": q, "k": k, "v": v}
    mappings = [
        mapped(name, "qkv", *tensors[name].shape, rows=rows)
        for name, rows in (("q", kinds.queries), ("k", kinds.keys), ("v", kinds.values))
    ]
    MappingTable(tuple(mappings)).check("here")
    whole = joined(mappings, tensors)
    assert torch.equal(whole, by_hand(q, k, v, heads, groups))
    for mapping in mappings:
        assert torch.equal(back(mapping, whole), tensors[mapping.name])


@pytest.mark.parametrize(("heads", "groups"), CASES)
def test_all_queries_all_keys_all_values(heads, groups):
    """Phi-3's `qkv_proj`; with a key for every head, InternViT's `qkv`."""
    q, k, v = parts_of(heads, groups, WIDTH)
    fused = torch.cat([q, k, v])
    mapping = mapped("qkv_proj", "qkv", *fused.shape, rows=QueryGroups(heads, groups).part_by_part)
    ((first_row, rows),) = mapping.to_mcore(fused)
    assert first_row == 0 and torch.equal(rows, by_hand(q, k, v, heads, groups))
    assert torch.equal(back(mapping, rows), fused)
    if heads == groups:
        assert torch.equal(rows, fused.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(0, 2))


def test_a_tensor_in_our_order_is_neither_copied_nor_cut():
    tensor = torch.randn(8 * HEAD_DIM, WIDTH)
    for rows in (DIRECT, QueryGroups(4, 2).grouped):
        mapping = mapped("wqkv", "qkv", *tensor.shape, rows=rows)
        ((first_row, same),) = mapping.to_mcore(tensor)
        assert first_row == 0 and same.data_ptr() == tensor.data_ptr() and same.shape == tensor.shape
        assert back(mapping, tensor).data_ptr() == tensor.data_ptr()


def test_keys_and_values_that_change_places_are_seen():
    """Planted break."""
    q, k, v = parts_of(4, 2, WIDTH)
    kinds = QueryGroups(4, 2)
    wrong = (("q", kinds.queries), ("k", kinds.values), ("v", kinds.keys))
    mappings = [mapped(name, "qkv", *{"q": q, "k": k, "v": v}[name].shape, rows=rows) for name, rows in wrong]
    assert not torch.equal(joined(mappings, {"q": q, "k": k, "v": v}), by_hand(q, k, v, 4, 2))


def test_gate_and_up_are_stacked():
    gate, up = torch.randn(5, WIDTH), torch.randn(5, WIDTH)
    mappings = [mapped("gate", "fc1", 5, WIDTH, rows=Stacked(0, 2)), mapped("up", "fc1", 5, WIDTH, rows=Stacked(1, 2))]
    whole = joined(mappings, {"gate": gate, "up": up})
    assert torch.equal(whole, torch.cat([gate, up]))
    assert torch.equal(back(mappings[0], whole), gate) and torch.equal(back(mappings[1], whole), up)


def test_vocabulary_rows_beyond_the_last_are_padding():
    table = MappingTable((vocabulary("embed", "word_embeddings", 5, WIDTH),))
    table.check_keys({"word_embeddings": (5, WIDTH)}, "converted")
    table.check_keys({"word_embeddings": (128, WIDTH)}, "trained")
    with pytest.raises(CheckpointError, match=r"shape \[4, 6\], hf/config.json asks for at least \[5, 6\]"):
        table.check_keys({"word_embeddings": (4, WIDTH)}, "cut")


def padded(heads, groups, padded_groups, fused):
    """Mappings of an attention layer whose groups are padded, by HF name, and tensors for them."""
    q, k, v = parts_of(heads, groups, WIDTH)
    kinds = QueryGroups(heads, groups, padded_groups)
    tensors = {"q": q, "k": k, "v": v, "proj": torch.randn(WIDTH, heads * HEAD_DIM)}
    named = [("q", kinds.queries), ("k", kinds.keys), ("v", kinds.values)]
    if fused:
        tensors["fused"], named = torch.cat([q, k, v]), [("fused", kinds.part_by_part)]
    joint = [mapped(name, "qkv", *tensors[name].shape, rows=rows) for name, rows in named]
    columns = kinds.columns(HEAD_DIM)
    return joint, mapped("proj", "proj", *tensors["proj"].shape, columns=columns), tensors


def attention(joint, proj, heads, groups, hidden):
    """Attention over rows of `hidden` with a joint projection in Megatron-Core's order, all by hand."""
    shared = heads // groups
    parts = (hidden @ joint.T).view(len(hidden), groups, shared + 2, HEAD_DIM)
    seen = []
    for head in range(heads):
        query, key, value = (parts[:, head // shared, i] for i in (head % shared, shared, shared + 1))
        seen.append((query @ key.T).softmax(-1) @ value)
    return torch.cat(seen, 1) @ proj.T


@pytest.mark.parametrize(("heads", "groups", "padded_groups"), [(5, 5, 8), (6, 2, 4), (3, 1, 2)])
@pytest.mark.parametrize("fused", [False, True])
def test_padded_groups_change_nothing_and_come_off(heads, groups, padded_groups, fused):
    joint, proj, tensors = padded(heads, groups, padded_groups, fused)
    whole, columns = joined(joint, tensors), joined([proj], tensors)
    shared = heads // groups
    assert whole.shape[0] == padded_groups * (shared + 2) * HEAD_DIM
    assert columns.shape == (WIDTH, padded_groups * shared * HEAD_DIM)
    hidden = torch.randn(7, WIDTH)
    without = attention(
        by_hand(tensors["q"], tensors["k"], tensors["v"], heads, groups), tensors["proj"], heads, groups, hidden
    )
    torch.testing.assert_close(attention(whole, columns, padded_groups * shared, padded_groups, hidden), without)
    for mapping in joint:
        assert torch.equal(back(mapping, whole), tensors[mapping.name])
    assert torch.equal(back(proj, columns), tensors["proj"])


@pytest.mark.parametrize("fused", [False, True])
def test_padding_that_holds_numbers_is_refused(fused):
    joint, proj, tensors = padded(6, 2, 4, fused)
    whole, columns = joined(joint, tensors), joined([proj], tensors)
    whole[-1, 0] = columns[0, -1] = 1e-6
    with pytest.raises(CheckpointError, match="qkv: 1 of .* values of its padding are not zero"):
        back(joint[-1], whole)
    with pytest.raises(CheckpointError, match="proj: 1 of 72 values of its padding are not zero; proj has no place"):
        back(proj, columns)


def test_gradients_of_padding_are_zero():
    """So that it stays zero in training."""
    joint, proj, tensors = padded(6, 2, 4, False)
    whole, columns = joined(joint, tensors).requires_grad_(), joined([proj], tensors).requires_grad_()
    attention(whole, columns, 12, 4, torch.randn(7, WIDTH)).square().sum().backward()
    rows = 2 * 5 * HEAD_DIM
    assert whole.grad is not None and columns.grad is not None
    assert whole.grad[:rows].any() and not whole.grad[rows:].any() and not columns.grad[:, 6 * HEAD_DIM :].any()


def test_another_set_of_names_is_a_second_table():
    """As transformers' own InternVL class has them."""
    names = ("language_model.model.layers.3.mlp.down_proj.weight", "language_model.lm_head.weight")
    table = MappingTable(tuple(mapped(name, name, 2, 2) for name in names))
    rules = {r"^language_model\.model\.": "model.language_model.", r"^language_model\.lm_head\.": "lm_head."}
    renamed = table.renamed(rules)
    assert [mapping.name for mapping in renamed.tensors] == [
        "model.language_model.layers.3.mlp.down_proj.weight",
        "lm_head.weight",
    ]
    assert [mapping.key for mapping in renamed.tensors] == list(names)
    with pytest.raises(ConfigError, match="would both be x"):
        table.renamed({".*": "x"})


@pytest.mark.parametrize(
    ("mappings", "message"),
    [
        ([mapped("a", "k", 2, 3), mapped("b", "k", 2, 3)], "here: k: row 0 is filled twice; it is filled from a, b"),
        ([mapped("gate", "fc1", 2, 3, rows=Stacked(0, 2))], "fc1: row 2 of 4 is filled from nowhere"),
        ([mapped("k", "qkv", 4, 3, rows=QueryGroups(4, 2).keys)], "qkv: row 0 of 16 is filled from nowhere"),
        ([mapped("a", "k", 2, 3), mapped("b", "k", 2, 4)], r"its shape would be \[2, 3\] and \[2, 4\]"),
        ([mapped("a", "k", 2, 3), mapped("a", "l", 2, 3)], "here: a stands there twice"),
        ([mapped("q", "qkv", 7, 3, rows=QueryGroups(4, 2).queries)], "7 rows to 4 heads, which do not divide them"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(mappings, message):
    with pytest.raises(ConfigError, match=message):
        MappingTable(tuple(mappings)).check("here")


def test_tensors_go_over_in_stretches_and_types_stay():
    """Rows of one head at a time, in half precision, without a copy of the rest."""
    q = torch.arange(8 * HEAD_DIM, dtype=torch.bfloat16).view(-1, 1)
    mapping = TensorMapping("q", tuple(q.shape), "qkv", QueryGroups(8, 4).queries)
    stretches = list(mapping.to_mcore(q))
    assert [first for first, _ in stretches] == [0, 8, 16, 24]
    assert all(rows.dtype == torch.bfloat16 and rows.shape == (4, 1) for _, rows in stretches)
    assert torch.equal(F.pad(torch.cat([rows for _, rows in stretches]), (0, 0)), q)
