"""The whole tree as one differentiable function: autograd sees a single node in place of tens for every merge."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .fused import TREES, Arithmetic, Leaves, Tree
from .graphs import Tensors, refuse_second_derivative
from .layout import Form, make_layout, repeated_levels

# Under activation checkpointing the trees of rows with about this many tokens exist at a time, or of a large batch
# those of an eighth of its rows at most, or of more as far as tables spare their merges; of a row that is longer than
# both, the gates of this many merges.
CHECKPOINT_TOKENS, CHECKPOINT_PARTS = 4096, 8

# About how many bytes a tree's buffers have, times H, for each of its merges and for each refinement of these; and
# without a backward.
BYTES, FORWARD_BYTES = (48, 24), (16, 4)

# How many parts of one size a batch must have for each to be a CUDA graph's: the first is none's, the second makes it.
PARTS_AGAIN = 3

# Weights in turn, and the rows' lengths, to a tree.
MakeTree = Callable[[tuple[Tensor, ...], Tensor | None], "LeavesFirst | InTurn"]

# What a function gives of tensors, which may be None, by a CUDA graph if the like came before; and whether it is the
# backward of the batch's parts, or their forward.
Again = Callable[[Callable[..., tuple[Tensor, ...]], bool, Tensors], tuple[Tensor, ...]]


class Composition(NamedTuple):
    """How to compose a batch of `batch` rows of up to `length` tokens.

    Attributes:
        arithmetic: of the leaves' device.
        form: which states are wanted; `each` and `every` where rows have lengths of their own.
        batch: see above.
        length: see above.
        ids: how many the tokens have, whose products are given; None: those of every token are.
        checkpoint: keep the states alone and compute the gates again in the backward.
    """

    arithmetic: Arithmetic
    form: Form
    batch: int
    length: int
    ids: int | None
    checkpoint: bool

    @property
    def rows(self) -> int:
        """How many of the batch's rows have trees at a time."""
        if not self.checkpoint:
            return self.batch
        least, part = max(1, CHECKPOINT_TOKENS // self.length), self.batch // CHECKPOINT_PARTS
        spared = 0 if self.form == "every" else self._tables(self.batch)
        # Each table halves the merges; of fewer rows there may be fewer tables.
        sizes = ((levels, min(self.batch, max(least, part << levels))) for levels in range(spared, -1, -1))
        return next(rows for levels, rows in sizes if self._tables(rows) >= levels)

    @property
    def keeps(self) -> bool:
        """Whether the trees that exist at a time keep what their backward reads, in the backward at least."""
        if not self.checkpoint:
            return True
        merges = self.rows * self.length >> (0 if self.form == "every" else self.tables)
        return merges <= max(CHECKPOINT_TOKENS, self.batch * self.length // CHECKPOINT_PARTS)

    @property
    def tables(self) -> int:
        """How many levels are tables of repeated pairs."""
        return self._tables(self.rows)

    def _tables(self, rows: int) -> int:
        return 0 if self.ids is None else repeated_levels(rows, self.length, self.ids)

    @property
    def in_parts(self) -> bool:
        """Whether its parts are better graphs than all of it: for each of them a graph of all has the same again."""
        return self.batch // self.rows >= PARTS_AGAIN

    @property
    def can_capture(self) -> bool:
        """Whether it, or a part, can become a CUDA graph."""
        return self.arithmetic.can_capture((self.ids or 0) ** 2**self.tables)

    def size(self, hidden_size: int, refinements: int, differentiable: bool) -> int:
        """About how many bytes the buffers have."""
        merges = self.rows * (2 * self.length if self.form == "every" else self.length >> self.tables)
        of_merge, of_refinement = BYTES if differentiable else FORWARD_BYTES
        return merges * hidden_size * (of_merge + refinements * of_refinement)


def compose(
    how: Composition,
    ids: Tensor | None,
    product: Tensor,
    lengths: Tensor | None,
    *weights: Tensor,
    again: Again = lambda function, backward, tensors: function(*tensors),
) -> Tensor:
    """The hidden states of prefixes, differentiable once.

    Args:
        how: see `Composition`.
        ids: of the tokens [B, T], rows of `product`; None: this has every token.
        product: the leaves' products [N, 3H] or [B, T, 3H].
        lengths: of the rows [B], int64; None: all rows are as long as the batch.
        weights: weight and bias of each cell of a merge in turn, in the product's dtype.
        again: of the parts of a batch that has several, see `Again`.

    Returns:
        All positions' states [B, T, H] for the form `every`; else the last of each row [B, H].
    """
    differentiable = torch.is_grad_enabled() and any(part.requires_grad for part in (product, *weights))
    arithmetic, form, batch, length, count, checkpoint = how

    def make_rows(rows: int, weights: Sequence[Tensor], lengths: Tensor | None, keep: bool) -> LeavesFirst:
        pairs = zip(weights[::2], weights[1::2], strict=True)
        cells = [(arithmetic.operand(weight), bias.contiguous()) for weight, bias in pairs]
        layout = make_layout(rows, length, form, count, arithmetic.merges_by_ids)
        at_once = None if how.keeps else CHECKPOINT_TOKENS
        state = weights[0].new_empty(weights[0].shape[1] // 2)
        tree = TREES[form](arithmetic, layout, state, cells, lengths, keep, at_once)
        return LeavesFirst(arithmetic, tree)

    def make_tree(weights: tuple[Tensor, ...], lengths: Tensor | None) -> LeavesFirst | InTurn:
        if not checkpoint:
            return make_rows(batch, weights, lengths, differentiable)
        return InTurn(make_rows, how, weights, lengths, again)

    with torch.autocast(product.device.type, enabled=False), torch.cuda.device_of(product):
        if differentiable:
            return _Compose.apply(make_tree, ids, lengths, product, *weights)
        return make_tree(weights, lengths).forward(ids, product)


class LeavesFirst:
    """The leaf cells, then a tree of their states.

    Args:
        arithmetic: of the device.
        tree: of the states.
    """

    def __init__(self, arithmetic: Arithmetic, tree: Tree):
        self.arithmetic, self.tree = arithmetic, tree

    def forward(self, ids: Tensor | None, product: Tensor) -> Tensor:
        """The hidden states of `Tree.forward`, of `compose`'s `ids` and `product`."""
        return self.tree.forward(Leaves(ids, *self.arithmetic.leaf(product)))

    def backward(self, gradient: Tensor, product: Tensor) -> tuple[Tensor, ...]:
        """The gradients of `product` and the weights, of the hidden states' `gradient`."""
        hidden, cell, *of_weights = self.tree.backward(gradient)
        return self.arithmetic.leaf_backward(product, (hidden, cell)), *of_weights


class InTurn:
    """The trees of a few of the batch's rows at a time, which are made again for the backward.

    Args:
        make: makes the tree of so many rows: of the weights, the rows' lengths, and whether it keeps what its backward
            reads.
        how: see `Composition`.
        weights: see `compose`.
        lengths: see `compose`.
        again: see `Again`.
    """

    def __init__(
        self,
        make: Callable[[int, Sequence[Tensor], Tensor | None, bool], LeavesFirst],
        how: Composition,
        weights: Sequence[Tensor],
        lengths: Tensor | None,
        again: Again,
    ):
        self.make, self.how, self.weights, self.lengths, self.again = make, how, weights, lengths, again
        batch, rows = how.batch, how.rows
        self.parts = [slice(first, min(first + rows, batch)) for first in range(0, batch, rows)]

    def forward(self, ids: Tensor | None, product: Tensor) -> Tensor:
        """See `LeavesFirst.forward`."""
        self.ids = ids

        def work(ids: Tensor | None, product: Tensor, lengths: Tensor | None, *weights: Tensor) -> tuple[Tensor, ...]:
            rows = len(product if ids is None else ids)
            return (self.make(rows, weights, lengths, False).forward(ids, product),)  # of the tree no more than this

        result = None
        for part in self.parts:
            (hidden,) = self.again(work, False, (*self._inputs(part, product), *self.weights))
            if result is None:
                result = hidden.new_empty(self.how.batch, *hidden.shape[1:])
            result[part] = hidden
        assert result is not None
        return result

    def backward(self, gradient: Tensor, product: Tensor) -> tuple[Tensor, ...]:
        """See `LeavesFirst.backward`."""

        def work(
            ids: Tensor | None, product: Tensor, lengths: Tensor | None, gradient: Tensor, *weights: Tensor
        ) -> tuple[Tensor, ...]:
            tree = self.make(len(gradient), weights, lengths, self.how.keeps)
            tree.forward(ids, product)
            return tree.backward(gradient, product)

        total: list[Tensor] = []
        of_tokens = torch.empty_like(product) if self.ids is None else None
        for part in self.parts:
            inputs = *self._inputs(part, product), gradient[part], *self.weights
            of_product, *gradients = self.again(work, True, inputs)
            if of_tokens is None:
                gradients = [of_product, *gradients]
            else:
                of_tokens[part] = of_product
            if total:
                torch._foreach_add_(total, gradients)
            else:  # summed in float32 at least
                total = [part.to(torch.promote_types(part.dtype, torch.float32)) for part in gradients]
        total = [part.to(product.dtype) for part in total]
        return tuple(total if of_tokens is None else [of_tokens, *total])

    def _inputs(self, part: slice, product: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """The part's ids, product and lengths."""
        lengths = None if self.lengths is None else self.lengths[part]
        return (None, product[part], lengths) if self.ids is None else (self.ids[part], product, lengths)


class _Compose(torch.autograd.Function):
    """`compose` with a backward. The tree goes from one to the other as it is: its buffers are no one else's."""

    @staticmethod
    def forward(
        ctx: Any,
        make_tree: MakeTree,
        ids: Tensor | None,
        lengths: Tensor | None,
        product: Tensor,
        *weights: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(ids, product, lengths, *weights)  # as a graph of it does
        ctx.make_tree, ctx.tree = make_tree, make_tree(weights, lengths)
        return ctx.tree.forward(ids, product)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        refuse_second_derivative()
        ids, product, lengths, *weights = ctx.saved_tensors  # raises if an input was changed since
        with torch.autocast(product.device.type, enabled=False), torch.cuda.device_of(product):
            tree, ctx.tree = ctx.tree, None
            if tree is None:  # a second backward: of the first one's tree nothing is left
                tree = ctx.make_tree(tuple(weights), lengths)
                tree.forward(ids, product)
            gradients = tree.backward(gradient, product)
        return None, None, None, *gradients
