"""The whole tree as one differentiable function: autograd sees a single node in place of tens for every merge."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .fused import ONE_HOT_IDS, TREES, Arithmetic, Leaves, Pair, Tree
from .graphs import GraphedTree, Graphs, MakeTree, can_capture
from .layout import Form, make_layout
from .pairs import Pairs, make_with_pairs, repeated_levels

# Under activation checkpointing the gates of this many merges exist at a time.
CHECKPOINT_ROWS = 8192
# On a GPU, the levels of batches of up to this many tokens take as long with fewer rows: no pairs are looked up.
LAUNCH_BOUND = 8192


class Composition(NamedTuple):
    """How to compose a batch.

    Attributes:
        arithmetic: of the leaves' device.
        graphs: where trees on a GPU are kept as CUDA graphs.
        weights: weight and bias of each cell of a merge in turn, in the hidden states' dtype.
        checkpoint: keep the states alone and compute the gates again in the backward.
    """

    arithmetic: Arithmetic
    graphs: Graphs
    weights: tuple[Tensor, ...]
    checkpoint: bool


def compose(
    how: Composition, ids: Tensor | None, product: Tensor, lengths: Tensor | None, every_prefix: bool
) -> Tensor:
    """The hidden states of prefixes, differentiable once.

    Args:
        how: see `Composition`.
        ids: of the tokens [B, T], rows of `product`; None: this has every token.
        product: the leaves' products [N, 3H] or [B, T, 3H].
        lengths: of the rows [B], int64; None: all rows are as long as the batch.
        every_prefix: all positions' states [B, T, H]; else the last of each row [B, H].
    """
    arithmetic, graphs, weights, checkpoint = how
    form: Form = "every" if every_prefix else "whole" if lengths is None else "each"
    batch, length = (product if ids is None else ids).shape[:2]
    inputs = product, *weights
    differentiable = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    levels = 0 if ids is None else _repeated_levels(form, ids, len(product))

    def make_tree(weights: tuple[Tensor, ...], lengths: Tensor | None) -> LeavesFirst:
        def make(form: Form, batch: int, length: int) -> Tree:
            layout = make_layout(batch, length, form)
            rows = CHECKPOINT_ROWS if checkpoint else None
            keep = differentiable and not checkpoint
            return TREES[form](arithmetic, layout, product[..., ::3], weights, lengths, keep, rows)

        return LeavesFirst(arithmetic, make_with_pairs(make, form, batch, length, len(product), levels))

    with torch.autocast(product.device.type, enabled=False):
        graph = None
        if not checkpoint and _can_capture(ids, product, differentiable):
            size = batch * length if every_prefix else batch * (length >> levels)
            graph = graphs.get(form, make_tree, inputs, ids, lengths, differentiable, size)
        if differentiable:
            return _Compose.apply(make_tree, graph, ids, lengths, *inputs)
        if graph is not None:
            return graph.forward(inputs, ids, lengths)
        return _hidden(make_tree(weights, lengths), ids, product)


class LeavesFirst:
    """The leaf cells, then a tree of their states.

    Args:
        arithmetic: of the device.
        tree: of the states.
    """

    def __init__(self, arithmetic: Arithmetic, tree: Tree | Pairs):
        self.arithmetic, self.tree = arithmetic, tree

    def forward(self, ids: Tensor | None, product: Tensor) -> Pair:
        """See `Tree.forward`; of `compose`'s `ids` and `product`."""
        self.leaves = Leaves(ids, *self.arithmetic.leaf(product))
        return self.tree.forward(self.leaves)

    def backward(self, gradient: Pair, product: Tensor) -> tuple[Tensor, ...]:
        """The gradients of `product` and the weights, of the result's `gradient`."""
        hidden, cell, *of_weights = self.tree.backward(gradient, self.leaves)
        return self.arithmetic.leaf_backward(product, (hidden, cell)), *of_weights


def _repeated_levels(form: Form, ids: Tensor, count: int) -> int:
    """How many levels to do by way of pairs of ids."""
    batch, length = ids.shape
    if ids.is_cuda and batch * length <= LAUNCH_BOUND:
        return 0
    return repeated_levels(form, batch, length, count)


def _can_capture(ids: Tensor | None, product: Tensor, differentiable: bool) -> bool:
    """Whether the work can become a graph, which it cannot where it waits for the GPU."""
    if not product.is_cuda or not can_capture():
        return False
    return ids is None or not differentiable or len(product) <= ONE_HOT_IDS["cuda"]


def _hidden(tree: LeavesFirst, ids: Tensor | None, product: Tensor) -> Tensor:
    """The hidden states of the tree's forward, apart from its buffers."""
    return tree.forward(ids, product)[0].clone(memory_format=torch.contiguous_format)


class _Compose(torch.autograd.Function):
    """`compose` with a backward. The tree goes from one to the other as it is: its buffers are no one else's."""

    @staticmethod
    def forward(
        ctx: Any,
        make_tree: MakeTree,
        graph: GraphedTree | None,
        ids: Tensor | None,
        lengths: Tensor | None,
        *inputs: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.make_tree, ctx.ids, ctx.lengths = make_tree, ids, lengths
        ctx.tree = ctx.claim = None
        if graph is not None:
            ctx.claim = graph.claim()
            return graph.forward(inputs, ids, lengths)
        ctx.tree = make_tree(inputs[1:], lengths)
        return _hidden(ctx.tree, ids, inputs[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        product, *weights = ctx.saved_tensors  # raises if an input was changed since
        with torch.autocast(product.device.type, enabled=False):
            if ctx.claim is not None and ctx.claim.graph is not None:
                gradients = ctx.claim.backward(gradient)
            else:
                if ctx.tree is None:  # a second backward: the graph may be at another batch by now
                    ctx.tree = ctx.make_tree(tuple(weights), ctx.lengths)
                    ctx.tree.forward(ctx.ids, product)
                no_cell = gradient.new_zeros(gradient.shape, dtype=torch.promote_types(gradient.dtype, torch.float32))
                gradients = ctx.tree.backward((gradient, no_cell), product)
        return None, None, None, None, *gradients
