"""Trees in which pairs of ids repeat: each pair of ids is merged once, then looked up.

A block of tokens depends on its tokens alone, so that V ids make V**2 different blocks of two, however many of them a
batch has. These are the ids of a tree of half the length, where the same may hold again.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .fused import Leaves, Pair, Tree, sum_by_id
from .layout import Form

# Pairs of ids are merged once each where there are this many times more pairs of tokens.
REPEATS = 8

# Form, batch and length, to a tree.
Make = Callable[[Form, int, int], Tree]


def repeated_levels(form: Form, batch: int, length: int, count: int) -> int:
    """How many levels above the leaves of a batch, of `count` ids, have pairs that repeat enough."""
    if form == "each" or length < 4 or count**2 * REPEATS > batch * (length // 2):
        return 0
    return 1 + repeated_levels(form, batch, length // 2, count**2)


def make_with_pairs(make: Make, form: Form, batch: int, length: int, count: int, levels: int) -> "Tree | Pairs":
    """The tree of `batch` rows of `length` tokens, of `count` ids, whose lowest `levels` merge each pair once."""
    if not levels:
        return make(form, batch, length)
    of_pairs = make_with_pairs(make, form, batch, length // 2, count**2, levels - 1)
    appended = (length - 1) // 2 if form == "every" else length % 2
    append = make("whole", batch * appended, 2) if appended else None
    return (EveryPairs if form == "every" else Pairs)(make("whole", count**2, 2), of_pairs, append)


class Pairs:
    """`Tree` of the form `whole`, by way of the pairs of its leaves.

    Args:
        table: merges every pair of ids.
        of_pairs: the tree of the pairs.
        append: merges prefixes with the tokens that follow them; None where there are none.
    """

    def __init__(self, table: Tree, of_pairs: "Tree | Pairs", append: Tree | None):
        self.table, self.of_pairs, self.append = table, of_pairs, append

    def forward(self, leaves: Leaves) -> Pair:
        """See `Tree.forward`."""
        ids, count = _ids(leaves), len(leaves.hidden)
        every = torch.arange(count, device=ids.device)
        self.pairs = Leaves(torch.cartesian_prod(every, every), leaves.hidden, leaves.cell)
        self.leaves_of_pairs = Leaves(ids[:, :-1:2] * count + ids[:, 1::2], *self.table.forward(self.pairs))
        return self._finish(self.of_pairs.forward(self.leaves_of_pairs), leaves)

    def backward(self, gradient: Pair, leaves: Leaves) -> tuple[Tensor, ...]:
        """See `Tree.backward`."""
        of_prefixes, of_leaves, of_append = self._finish_backward(gradient, leaves)
        hidden, cell, *of_pairs = self.of_pairs.backward(of_prefixes, self.leaves_of_pairs)
        of_hidden, of_cell, *of_table = self.table.backward((hidden, cell), self.pairs)
        if of_leaves:
            of_hidden, of_cell = of_hidden + of_leaves[0], of_cell + of_leaves[1]
        of_weights = [of_pairs, of_table, of_append] if of_append else [of_pairs, of_table]
        return of_hidden, of_cell, *(sum(parts[1:], start=parts[0]) for parts in zip(*of_weights, strict=True))

    def _finish(self, prefixes: Pair, leaves: Leaves) -> Pair:
        """The result, of the result of the tree of pairs."""
        if self.append is None:
            return prefixes
        return self._appended((prefixes[0][:, None], prefixes[1][:, None]), _ids(leaves)[:, -1:], leaves)

    def _finish_backward(self, gradient: Pair, leaves: Leaves) -> tuple[Pair, list[Tensor], list[Tensor]]:
        """The gradients of the result of the tree of pairs, of the leaves' states and weights apart from it."""
        if self.append is None:
            return gradient, [], []
        last = _ids(leaves)[:, -1:]
        (hidden, cell), ends, of_append = self._appended_backward(gradient, last.shape)
        of_leaves = [sum_by_id(part[:, 0], last[:, 0], len(leaves.hidden)) for part in ends]
        return (hidden[:, 0], cell[:, 0]), of_leaves, of_append

    def _appended(self, before: Pair, ids: Tensor, leaves: Leaves) -> Pair:
        """The states [B * m, H] of prefixes `before` [B, m, H], each followed by a leaf of `ids` [B, m]."""
        assert self.append is not None
        hidden, cell = (
            torch.stack((prefix, F.embedding(ids, states)), 2).flatten(0, 1)
            for prefix, states in zip(before, leaves[1:], strict=True)
        )
        self.operands = Leaves(None, hidden, cell)
        return self.append.forward(self.operands)

    def _appended_backward(self, gradient: Pair, shape: torch.Size) -> tuple[Pair, list[Tensor], list[Tensor]]:
        """The gradients of `before` and of the leaves [B, m, H], and of the weights."""
        assert self.append is not None
        hidden, cell, *of_weights = self.append.backward(gradient, self.operands)
        (before, last), (cell_before, cell_last) = (part.unflatten(0, shape).unbind(2) for part in (hidden, cell))
        return (before, cell_before), [last, cell_last], of_weights


class EveryPairs(Pairs):
    """`Pairs` of the form `every`: the tree of pairs has the even prefixes, a leaf is appended to each for the odd."""

    def _finish(self, prefixes: Pair, leaves: Leaves) -> Pair:
        ids = _ids(leaves)
        results = tuple(part.new_empty(*ids.shape, part.shape[-1]) for part in prefixes)
        for result, even, states in zip(results, prefixes, leaves[1:], strict=True):
            result[:, 0] = states[ids[:, 0]]
            result[:, 1::2] = even
        last = ids[:, 2::2]
        hidden, cell = (part[:, : last.shape[1]] for part in prefixes)
        for result, odd in zip(results, self._appended((hidden, cell), last, leaves), strict=True):
            result[:, 2::2] = odd.unflatten(0, last.shape)
        return results[0], results[1]

    def _finish_backward(self, gradient: Pair, leaves: Leaves) -> tuple[Pair, list[Tensor], list[Tensor]]:
        ids = _ids(leaves)
        odd = gradient[0][:, 2::2], gradient[1][:, 2::2]
        shape = odd[0].shape[:2]
        before, ends, of_append = self._appended_backward((odd[0].flatten(0, 1), odd[1].flatten(0, 1)), shape)
        hidden, cell = (part[:, 1::2].clone() for part in gradient)
        hidden[:, : shape[1]] += before[0]
        cell[:, : shape[1]] += before[1]
        of_leaves = [
            sum_by_id(torch.cat((part[:, :1], end), 1).flatten(0, 1), ids[:, ::2].flatten(), len(leaves.hidden))
            for part, end in zip(gradient, ends, strict=True)
        ]
        return (hidden, cell), of_leaves, of_append


def _ids(leaves: Leaves) -> Tensor:
    assert leaves.ids is not None
    return leaves.ids
