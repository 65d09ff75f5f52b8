"""Documents divided between cuDNN and a varlen kernel; cuDNN's operators are played by plain attention on the CPU.

The players check what the real ones need and do not say: layouts PyTorch's plans do not tell apart, finite values
where nothing is looked at, a contiguous log-sum-exp. They answer garbage where answers are to be thrown away.
"""

from __future__ import annotations

import logging

import pytest
import torch

from helpers.attention import SCALE, WIDTH, CountingKernel, dense_results, random_inputs
from megatron_v2pe.parallel.attention import cudnn as cudnn_attention
from megatron_v2pe.parallel.attention import mixed_kernels
from megatron_v2pe.parallel.attention.block import AttentionBlock, Reference
from megatron_v2pe.parallel.attention.cudnn import UNSEEN, Cudnn, lengthened
from megatron_v2pe.parallel.attention.mixed_kernels import ALWAYS, DENSE, Mixed, Part, Rule, parts

HEADS, GROUPS = 4, 2
TOLERANCE = 1e-5  # measured on values up to 6: 1.4e-6
EVERYTHING = Rule(causal=0.0, block=0.0)
CAUSAL = [(300,), (128,), (129,), (128, 128, 128), (5, 201, 1, 1, 128, 128, 40), (7, 130), (130, 7), (300, 300, 9)]
RECTANGLES = [((40,), (80,)), ((80,), (40,)), ((3, 1, 150), (6, 2, 300)), ((70, 70, 70), (35, 35, 35))]
BLOCKS = [AttentionBlock(lens, lens, True, SCALE) for lens in CAUSAL] + [
    AttentionBlock(*lens, False, SCALE) for lens in RECTANGLES
]
BY_BLOCK = pytest.mark.parametrize("block", BLOCKS, ids=lambda b: f"{b.query_lens}x{b.key_lens}")


class PlayedCudnn:
    """Both operators, with the signatures of torch 2.11 and 2.13."""

    trailing_one = True  # since torch 2.9

    def __init__(self):
        self.shapes = []
        self.layouts = {}

    def forward(
        self, query, key, value, attn_bias, compute_log_sumexp, dropout_p, is_causal, return_debug_mask, *, scale
    ):
        assert attn_bias is None and compute_log_sumexp and not dropout_p and not return_debug_mask
        self._look(query, key, value, is_causal)
        self.shapes.append((tuple(query.shape), tuple(key.shape), is_causal))
        tensors = zip(query, key, value, strict=True)
        outputs, sums = zip(*(self._one(*three, is_causal, scale) for three in tensors), strict=True)
        output = torch.empty_like(query)
        output.copy_(torch.stack(outputs))
        lse = torch.stack(sums).contiguous()
        seed = torch.zeros((), dtype=torch.int64)
        found = lse.unsqueeze(3) if self.trailing_one else lse
        return output, found, None, None, query.shape[2], key.shape[2], seed, seed, None

    def backward(
        self, grad_out, query, key, value, out, logsumexp, philox_seed, philox_offset, attn_bias,
        cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal, *, scale,
    ):  # fmt: skip
        assert attn_bias is None and cum_seq_q is None and cum_seq_k is None and not dropout_p
        assert (max_q, max_k) == (query.shape[2], key.shape[2]) and philox_seed.dtype == philox_offset.dtype
        self._look(query, key, value, is_causal)
        layout = out.stride(), grad_out.stride()
        plan = (query.shape, query.stride(), key.shape, key.stride(), value.stride(), is_causal)
        assert self.layouts.setdefault(plan, layout) == layout, "a plan was made for other strides"
        assert out.stride() == grad_out.stride() == query.stride()
        assert logsumexp.is_contiguous() and logsumexp.dim() == 3 + self.trailing_one
        assert all(tensor.isfinite().all() for tensor in (grad_out, out, logsumexp))
        lse = logsumexp.squeeze(3) if self.trailing_one else logsumexp
        found = []
        for number in range(query.shape[0]):
            rows = [t[number].transpose(0, 1) for t in (grad_out, query, key, value, out)]
            lens = (query.shape[2],), (key.shape[2],)
            found.append(Reference().backward(*rows, lse[number].t(), AttentionBlock(*lens, is_causal, scale)))
        results = []
        for tensor, parts_ in zip((query, key, value), zip(*found, strict=True), strict=True):
            result = torch.empty_like(tensor)
            result.copy_(torch.stack(parts_).transpose(1, 2))
            results.append(result)
        return tuple(results)

    @staticmethod
    def _one(q, k, v, causal, scale):
        block = AttentionBlock((q.shape[1],), (k.shape[1],), causal, scale)
        output, lse = Reference().forward(*(t.transpose(0, 1) for t in (q, k, v)), block)
        return output.transpose(0, 1), lse.t()

    @staticmethod
    def _look(query, key, value, causal):
        for tensor in (query, key, value):
            documents, heads, rows, width = tensor.shape
            assert tensor.stride() == (rows * heads * width, width, heads * width, 1)
            assert tensor.isfinite().all()
        if causal:
            assert query.shape[2] == key.shape[2] == lengthened(query.shape[2])


@pytest.fixture
def played(monkeypatch):
    player = PlayedCudnn()
    monkeypatch.setattr(torch.ops.aten, "_scaled_dot_product_cudnn_attention", player.forward)
    monkeypatch.setattr(torch.ops.aten, "_scaled_dot_product_cudnn_attention_backward", player.backward)
    return player


def inputs_of(block, heads=HEADS, groups=GROUPS):
    """Query, key, value and the gradient of the output for a block."""
    queries, keys = sum(block.query_lens), sum(block.key_lens)
    query, key, value, outgoing = random_inputs((max(queries, keys),), heads, groups, torch.float32)
    return query[:queries], key[:keys], value[:keys], outgoing[:queries]


def results(kernel, inputs, block):
    """Output, log-sum-exp, and gradients of query, key and value."""
    *states, outgoing = inputs
    output, lse = kernel.forward(*states, block)
    return [output, lse, *kernel.backward(outgoing, *states, output, lse, block)]


def worst(ours, expected):
    assert [a.shape for a in ours] == [b.shape for b in expected]
    return max((a.double() - b).abs().max().item() for a, b in zip(ours, expected, strict=True))


@BY_BLOCK
@pytest.mark.parametrize(
    "rule",
    [EVERYTHING, ALWAYS, Rule(causal=1e6, block=1e6)],
    ids=["dense", "always", "some"],
)
def test_divided_documents_are_a_dense_softmax(block, rule, played):
    inputs = inputs_of(block)
    kernel = Mixed(Cudnn(), Reference(), rule)
    assert worst(results(kernel, inputs, block), dense_results(inputs, block)) < TOLERANCE
    assert bool(played.shapes) == any(part.dense for part in parts(block, HEADS * WIDTH, rule))


def test_log_sum_exps_of_either_shape_go_back_as_they_came(played):
    block = AttentionBlock((5, 201), (5, 201), True, SCALE)
    inputs = inputs_of(block)
    for played.trailing_one in (False, True):
        ours = results(Mixed(Cudnn(), Reference(), EVERYTHING), inputs, block)
        assert worst(ours, dense_results(inputs, block)) < TOLERANCE


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 1), (6, 2)])
def test_heads_of_a_group_are_not_repeated(heads, groups, played):
    block = AttentionBlock((130, 20), (130, 20), True, SCALE)
    inputs = inputs_of(block, heads, groups)
    assert worst(results(Mixed(Cudnn(), Reference(), EVERYTHING), inputs, block), dense_results(inputs, block)) < 1e-5
    assert {(q[1], k[1]) for q, k, _ in played.shapes} == {(heads, groups)}


def test_views_of_one_mixed_tensor(played):
    block = AttentionBlock((5, 201), (5, 201), True, SCALE)
    query, key, value, outgoing = inputs_of(block)
    views = torch.cat([query, key, value], dim=1).split([HEADS, GROUPS, GROUPS], dim=1)
    later = torch.cat([outgoing, outgoing], dim=2)[..., :WIDTH]
    ours = results(Mixed(Cudnn(), Reference(), Rule(1e6, 1e6)), [*views, later], block)
    assert worst(ours, dense_results((query, key, value, outgoing), block)) < TOLERANCE


@pytest.mark.parametrize("causal", [True, False])
def test_a_backward_pass_takes_what_was_merged(causal, played):
    """Output and log-sum-exp over more keys than the block's, as in a ring; added rows weigh nothing there either."""
    queries, keys = 201, 201 if causal else 90
    query, key, value, outgoing = random_inputs((400,), HEADS, GROUPS, torch.float64)
    query, outgoing = query[:queries], outgoing[:queries]
    output, lse = Reference().forward(query, key, value, AttentionBlock((queries,), (400,), False, SCALE))
    block = AttentionBlock((queries,), (keys,), causal, SCALE)
    exact = Reference().backward(outgoing, query, key[:keys], value[:keys], output, lse, block)
    part = [t.float() for t in (query, key[:keys], value[:keys])]
    ours = Mixed(Cudnn(), Reference(), EVERYTHING).backward(outgoing.float(), *part, output.float(), lse.float(), block)
    assert worst(ours, exact) < TOLERANCE


@pytest.mark.parametrize("broken", ["not finite", "wrong places", "seen keys", "weight in backward"])
def test_a_planted_break_is_seen(broken, played, monkeypatch):
    block = AttentionBlock((5, 201, 3), (5, 201, 3), True, SCALE)
    inputs = inputs_of(block)
    if broken == "not finite":
        monkeypatch.setattr(cudnn_attention, "UNSEEN", float("inf"))
    elif broken == "wrong places":
        monkeypatch.setattr(mixed_kernels._Pieces, "add", lambda self, runs, found: self._pieces.append((0, found)))
    elif broken == "weight in backward":
        monkeypatch.setattr(cudnn_attention, "UNSEEN", 0.0)
    else:  # a block that is not causal, lengthened
        block = AttentionBlock((201,), (201,), False, SCALE)
        inputs = inputs_of(block)
        shape = cudnn_attention.DenseBatch(1, 201, 201, 224, 224)
        monkeypatch.setattr(cudnn_attention.DenseBatch, "of", classmethod(lambda cls, block: shape))
    kernel = Mixed(Cudnn(), Reference(), Rule(1e6, 1e6))
    expected = dense_results(inputs, block)
    try:
        assert worst(results(kernel, inputs, block), expected) < TOLERANCE
    except AssertionError:
        return
    pytest.fail("not seen")


def test_what_follows_a_document_is_taken_for_what_is_added(monkeypatch, played):
    """No copy where the pack goes on: the operator reads the neighbour's tokens, and nothing of them is found."""
    block = AttentionBlock((201, 100), (201, 100), True, SCALE)
    *states, outgoing = inputs_of(block)
    rule = Rule(causal=2e6, block=0)
    assert [part.dense for part in parts(block, HEADS * WIDTH, rule)] == [False, True]
    addresses = []
    original = played.forward

    def spied(query, *arguments, **settings):
        addresses.append(query.data_ptr())
        return original(query, *arguments, **settings)

    monkeypatch.setattr(torch.ops.aten, "_scaled_dot_product_cudnn_attention", spied)
    kernel = Mixed(Cudnn(), Reference(), rule)
    before = results(kernel, [*states, outgoing], block)
    assert addresses == [states[0].data_ptr()]
    for tensor in (*states, outgoing):
        tensor[201:] *= 100.0
    after = results(kernel, [*states, outgoing], block)
    assert all(torch.equal(a[:201], b[:201]) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("direction", ["", "_backward"])
def test_a_shape_that_is_refused_goes_to_the_other_kernel_from_then_on(direction, played, monkeypatch, caplog):
    name = f"_scaled_dot_product_cudnn_attention{direction}"
    operator, asked = getattr(torch.ops.aten, name), []

    def refusing(*tensors, **settings):
        asked.append(tensors[1].shape[2])
        if tensors[1].shape[2] > 208:
            raise RuntimeError("No valid execution plans built.\nMore about it")
        return operator(*tensors, **settings)

    monkeypatch.setattr(torch.ops.aten, name, refusing)
    kernel = Mixed(Cudnn(), Reference(), Rule(causal=1e6, block=1e6))
    with caplog.at_level(logging.WARNING, logger="megatron_v2pe"):
        for lens in ((5, 201, 3), (210, 3), (211, 201), (300,)):
            block = AttentionBlock(lens, lens, True, SCALE)
            inputs = inputs_of(block)
            assert worst(results(kernel, inputs, block), dense_results(inputs, block)) < TOLERANCE
    assert asked == [204, 212, 204, 304]  # 210 and 211 are one shape
    assert [message.partition(": first for ")[0] for message in caplog.messages] == [
        "attention by cuDNN refused, the other kernel is used"
    ]
    assert caplog.messages[0].endswith(": No valid execution plans built.")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, torch.AcceleratorError])
def test_a_broken_device_is_no_refusal(error, played, monkeypatch):
    def failing(*_, **__):
        raise error("it is over")

    monkeypatch.setattr(torch.ops.aten, "_scaled_dot_product_cudnn_attention", failing)
    block = AttentionBlock((201,), (201,), True, SCALE)
    with pytest.raises(error):
        Mixed(Cudnn(), Reference(), EVERYTHING).forward(*inputs_of(block)[:3], block)


def test_few_lengths_and_little_added():
    lengths = {lengthened(tokens) for tokens in range(2048, 131_073)}
    assert len(lengths) == 193
    shares = [lengthened(tokens) / tokens for tokens in range(2048, 131_073)]
    assert min(shares) == 1.0 and max(shares) < 1.032 and sum(shares) / len(shares) < 1.011
    assert all(lengthened(tokens) >= tokens for tokens in range(1, 5000))
    assert all(lengthened(length) == length for length in lengths)
    assert (lengthened(1), lengthened(128), lengthened(129)) == (128, 128, 132)


def test_a_run_meets_few_shapes(played):
    """Packs of ever other lengths meet no more shapes than there are lengths."""
    kernel, met = Mixed(Cudnn(), Reference(), Rule(causal=1e6, block=1e6)), set()
    for tokens in range(257, 330, 3):
        block = AttentionBlock((3, tokens), (3, tokens), True, SCALE)
        kernel.forward(*inputs_of(block)[:3], block)
        met.add(lengthened(tokens))
    assert len(played.shapes) == 25 and len(set(played.shapes)) == len(met) == 10


def part_of(kind, lens, *runs):
    block = AttentionBlock(lens, lens, True, SCALE)
    return Part(kind, block, runs, runs)


def test_the_rule_at_full_size():
    """16 heads of 128: documents from 2,000 tokens on, equal neighbours together, the short ones in one launch."""
    lens = (12000, 400, 300, 7000, 1900, 8192, 8192, 1024, 1024, 1024, 1024, 50)
    short = part_of(False, (400, 300, 1900, 50), (12000, 12700), (19700, 21600), (42080, 42130))
    long = [
        part_of(True, (12000,), (0, 12000)),
        part_of(True, (7000,), (12700, 19700)),
        part_of(True, (8192, 8192), (21600, 37984)),
        part_of(True, (1024,) * 4, (37984, 42080)),
    ]
    assert list(parts(AttentionBlock(lens, lens, True, SCALE), 2048, DENSE)) == [short, *long]
    assert [part.dense for part in parts(AttentionBlock((1900,), (1900,), True, SCALE), 2048, DENSE)] == [False]
    assert [part.dense for part in parts(AttentionBlock((2048,), (2048,), True, SCALE), 2048, DENSE)] == [True]
    for queries, keys, expected in [
        (16384, 16384, True),
        (16384, 8192, False),
        (32768, 16384, True),
        (1, 10**6, False),
    ]:
        assert [part.dense for part in parts(AttentionBlock((queries,), (keys,), False, SCALE), 2048, DENSE)] == [
            expected
        ]
    huge = AttentionBlock((1 << 20,), (1 << 20,), True, SCALE)  # strides beyond 32 bits
    assert [part.dense for part in parts(huge, 2048, DENSE)] == [False]


def test_one_launch_for_the_short_ones(played):
    lens = (5, 201, 1, 1, 129, 40)
    block, rest = AttentionBlock(lens, lens, True, SCALE), CountingKernel(Reference())
    inputs = inputs_of(block)
    ours = results(Mixed(Cudnn(), rest, Rule(causal=1e6, block=1e6)), inputs, block)
    assert rest.forwards == 1 and len(played.shapes) == 2
    assert worst(ours, dense_results(inputs, block)) < TOLERANCE


def test_a_result_of_one_call_is_not_copied(played, monkeypatch):
    monkeypatch.setattr(torch, "cat", lambda *_, **__: pytest.fail("joined"))
    for lens in ((201,), (5, 3)):
        block = AttentionBlock(lens, lens, True, SCALE)
        states = inputs_of(block)[:3]
        Mixed(Cudnn(), Reference(), Rule(causal=1e6, block=1e6)).forward(*states, block)


def test_added_queries_are_out_of_reach_of_every_score():
    assert torch.exp(torch.tensor(1e6) - UNSEEN) == 0 and torch.isfinite(torch.tensor(UNSEEN * 1.4427))
