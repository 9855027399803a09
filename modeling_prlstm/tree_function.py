"""The whole tree as one differentiable function: autograd sees a single node in place of tens for every merge."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .fused import ONE_HOT_IDS, TREES, Arithmetic, Leaves, Tree
from .graphs import GraphedTree, Graphs, MakeTree
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


def compose(how: Composition, leaves: Leaves, lengths: Tensor | None, every_prefix: bool) -> Tensor:
    """The hidden states of prefixes, differentiable once.

    Args:
        how: see `Composition`.
        leaves: the leaves' states.
        lengths: of the rows [B], int64; None: all rows are as long as the batch.
        every_prefix: all positions' states [B, T, H]; else the last of each row [B, H].
    """
    arithmetic, graphs, weights, checkpoint = how
    form: Form = "every" if every_prefix else "whole" if lengths is None else "each"
    batch, length = (leaves.hidden if leaves.ids is None else leaves.ids).shape[:2]
    inputs = leaves.hidden, leaves.cell, *weights
    differentiable = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    count = len(leaves.hidden)
    levels = _repeated_levels(form, leaves)

    def make_tree(weights: tuple[Tensor, ...], lengths: Tensor | None) -> Tree | Pairs:
        def make(form: Form, batch: int, length: int) -> Tree:
            layout = make_layout(batch, length, form)
            rows = CHECKPOINT_ROWS if checkpoint else None
            keep = differentiable and not checkpoint
            return TREES[form](arithmetic, layout, leaves.hidden, weights, lengths, keep, rows)

        return make_with_pairs(make, form, batch, length, count, levels)

    with torch.autocast(leaves.hidden.device.type, enabled=False):
        graph = None
        if not checkpoint and _can_capture(leaves, differentiable):
            size = batch * length if every_prefix else batch * (length >> levels)
            graph = graphs.get(form, make_tree, inputs, leaves.ids, lengths, differentiable, size)
        if differentiable:
            return _Compose.apply(make_tree, graph, leaves.ids, lengths, *inputs)
        if graph is not None:
            return graph.forward(inputs, leaves.ids, lengths)
        return _hidden(make_tree(weights, lengths), leaves)


def _repeated_levels(form: Form, leaves: Leaves) -> int:
    """How many levels to do by way of pairs of ids."""
    if leaves.ids is None:
        return 0
    batch, length = leaves.ids.shape
    if leaves.ids.is_cuda and batch * length <= LAUNCH_BOUND:
        return 0
    return repeated_levels(form, batch, length, len(leaves.hidden))


def _can_capture(leaves: Leaves, differentiable: bool) -> bool:
    """Whether the work on `leaves` can become a graph: not inside another, nor where it waits for the GPU."""
    if not leaves.hidden.is_cuda or torch.cuda.is_current_stream_capturing():
        return False
    return leaves.ids is None or not differentiable or len(leaves.hidden) <= ONE_HOT_IDS["cuda"]


def _hidden(tree: Tree | Pairs, leaves: Leaves) -> Tensor:
    """The hidden states of the tree's forward, apart from its buffers."""
    return tree.forward(leaves)[0].clone(memory_format=torch.contiguous_format)


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
        ctx.tree = make_tree(inputs[2:], lengths)
        return _hidden(ctx.tree, Leaves(ids, *inputs[:2]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        inputs = ctx.saved_tensors  # raises if an input was changed since
        leaves = Leaves(ctx.ids, *inputs[:2])
        with torch.autocast(inputs[0].device.type, enabled=False):
            if ctx.claim is not None and ctx.claim.graph is not None:
                gradients = ctx.claim.backward(gradient)
            else:
                if ctx.tree is None:  # a second backward: the graph may be at another batch by now
                    ctx.tree = ctx.make_tree(inputs[2:], ctx.lengths)
                    ctx.tree.forward(leaves)
                no_cell = inputs[1].new_zeros(gradient.shape)
                gradients = ctx.tree.backward((gradient, no_cell), leaves)
        return None, None, None, None, *gradients
