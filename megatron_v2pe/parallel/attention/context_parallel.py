"""What the values of `parallel.cp_comm_type` mean: how the ranks that share a sequence attend to all of it.

Between layers every rank of a context-parallel group holds its tokens of the zigzag order (`zigzag.py`). What the ranks
exchange for attention is one class under a name. Those of this project stand below, their arithmetic in `ring.py` and
`all_to_all.py`. A plug-in (`base/plugins.py`) adds a further one by a file `context_parallel.py` in its folder:

    CONTEXT_PARALLEL.add("my_exchange", MyExchange())

The settings read names and checks alone, so this file imports PyTorch only inside of methods.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from megatron_v2pe.base.plugins import Registry
from megatron_v2pe.errors import ConfigError

if TYPE_CHECKING:
    import torch.distributed as dist
    from torch import Tensor

    from megatron_v2pe.parallel.attention.block import AttentionResult
    from megatron_v2pe.parallel.packed_sequence import PackedSequence


class ContextParallelAttention(Protocol):
    """A value of `parallel.cp_comm_type`."""

    words: str
    """The exchange in words, as the first lines of a run name it."""
    needs_documents_in_order: bool
    """Whether a pack must carry `PackedSequence.documents_in_order`."""

    def check(self, ranks: int, heads: int, groups: int, tensor_parallel: int) -> None:
        """Check that a model's heads can be attended by so many ranks.

        Args:
            ranks: context-parallel ranks.
            heads: query heads of the model.
            groups: key-value heads of the model.
            tensor_parallel: tensor-parallel ranks the heads are divided among, which divide both numbers.

        Raises:
            ConfigError: they cannot; names the numbers and what to choose.
        """
        ...

    def blocks_held(self, ranks: int) -> int:
        """Return how many blocks of a rank's keys and values lie in memory at once in backward, its own among them."""
        ...

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        pack: PackedSequence,
        group: dist.ProcessGroup | None,
        scale: float,
        kept: AttentionResult | None,
        backend: str,
    ) -> tuple[Tensor, AttentionResult]:
        """Attend causally inside each document of a pack.

        Args:
            query: [S, heads, d], this rank's tokens in zigzag order, rotated.
            key: [S, groups, d], rotated.
            value: [S, groups, d].
            pack: layout of the pack.
            group: the context-parallel group; None where this rank holds whole documents.
            scale: factor on the scores.
            kept: what an earlier call on the same tensors returned as its second value; nothing is attended again.
            backend: value of `parallel.attention_backend`.

        Returns:
            The output [S, heads, d], and what to keep where the layer will be recomputed.
        """
        ...


CONTEXT_PARALLEL: Registry[ContextParallelAttention] = Registry("cp_comm_type", __name__, "context_parallel")
"""All kinds of exchange by the name `parallel.cp_comm_type` has."""


def exchange_named(name: str) -> ContextParallelAttention:
    """Return the exchange a `cp_comm_type` names.

    Raises:
        ConfigError: there is none of this name.
    """
    if (exchange := CONTEXT_PARALLEL.find(name)) is None:
        raise ConfigError(f"cp_comm_type {name!r} is none of {', '.join(CONTEXT_PARALLEL.names())}")
    return exchange


class RingOfBlocks:
    """`p2p`: queries stay, keys and values travel around a ring of ranks. It takes any number of heads."""

    words = "ring"
    needs_documents_in_order = False

    def check(self, ranks: int, heads: int, groups: int, tensor_parallel: int) -> None:
        """Refuse nothing: every rank works on all heads."""

    def blocks_held(self, ranks: int) -> int:
        """Return two where there is a ring: the block worked on and the one that arrives."""
        return 2 if ranks > 1 else 1

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        pack: PackedSequence,
        group: dist.ProcessGroup | None,
        scale: float,
        kept: AttentionResult | None,
        backend: str,
    ) -> tuple[Tensor, AttentionResult]:
        """Attend by `ring.ring_attention`; see the protocol."""
        from megatron_v2pe.parallel.attention.ring import ring_attention

        assert pack.layout is not None
        lens = pack.layout.local_seqlens
        result = ring_attention(query, key, value, lens, group, scale, kept=kept, backend=backend)
        return result[0], result


class TokensForHeads:
    """`a2a`: ranks trade their tokens of all heads for all tokens of their heads, and attend whole documents."""

    words = "all-to-all"
    needs_documents_in_order = True

    def check(self, ranks: int, heads: int, groups: int, tensor_parallel: int) -> None:
        """Refuse a number of ranks that does not divide the heads or groups of a tensor-parallel rank."""
        for count, what in ((heads, "attention heads"), (groups, "query groups (key-value heads)")):
            if count // tensor_parallel % ranks:
                raise ConfigError(
                    f"cp_comm_type a2a: context_parallel_size {ranks} does not divide the {count // tensor_parallel} "
                    f"{what} each tensor parallel rank has ({count} over {tensor_parallel}); use p2p"
                )

    def blocks_held(self, ranks: int) -> int:
        """Return two where there is an exchange: what leaves or arrives lies beside what is attended."""
        return 2 if ranks > 1 else 1

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        pack: PackedSequence,
        group: dist.ProcessGroup | None,
        scale: float,
        kept: AttentionResult | None,
        backend: str,
    ) -> tuple[Tensor, AttentionResult]:
        """Attend by `all_to_all.all_to_all_attention`; see the protocol."""
        from megatron_v2pe.parallel.attention.all_to_all import all_to_all_attention

        if group is None:
            return RING.attend(query, key, value, pack, None, scale, kept, backend)
        assert pack.layout is not None
        assert pack.documents_in_order is not None, "all-to-all needs a pack that knows the documents' order"
        lens, order = pack.layout.seqlens, pack.documents_in_order
        return all_to_all_attention(query, key, value, lens, order, group, scale, kept, backend)


RING = RingOfBlocks()
"""The ring; of one rank where a rank shares its sequence with no other."""
CONTEXT_PARALLEL.add("p2p", RING)
CONTEXT_PARALLEL.add("a2a", TokensForHeads())
