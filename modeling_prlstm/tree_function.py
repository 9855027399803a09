"""The whole tree as one differentiable function: autograd sees a single node in place of tens for every merge."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .fused import ONE_HOT_IDS, TREES, Arithmetic, Leaves, Pair, Tree
from .graphs import MAX_TOKENS, GraphedTree, Graphs, MakeTree
from .layout import Form, make_layout

# Under activation checkpointing the gates of this many merges exist at a time.
CHECKPOINT_ROWS = 8192
# Pairs of ids are merged once each where there are this many times more pairs of tokens.
REPEATS = 8


class Composition(NamedTuple):
    """How to compose a batch.

    Attributes:
        arithmetic: of the leaves' device.
        graphs: where small trees on a GPU are kept as CUDA graphs.
        weights: weight and bias of each cell of a merge in turn, in the hidden states' dtype.
        checkpoint: keep the states alone and compute the gates again in the backward.
    """

    arithmetic: Arithmetic
    graphs: Graphs
    weights: tuple[Tensor, ...]
    checkpoint: bool


def compose(how: Composition, leaves: Leaves, lengths: Tensor | None, every_prefix: bool) -> Pair:
    """The hidden and cell states of prefixes, differentiable once.

    Args:
        how: see `Composition`.
        leaves: the leaves' states.
        lengths: of the rows [B], int64; None: all rows are as long as the batch.
        every_prefix: all positions' states [B, T, H]; else the last of each row [B, H].
    """
    if leaves.ids is not None and lengths is None and not every_prefix and _repeats(leaves.ids, len(leaves.hidden)):
        return _compose_pairs_once(how, leaves, leaves.ids)
    return _compose_tree(how, leaves, lengths, every_prefix)


def _repeats(ids: Tensor, count: int) -> bool:
    """Whether most pairs of `count` ids are there many times, and the batch is so large that looking them up pays."""
    batch, length = ids.shape
    launch_bound = ids.device.type == "cuda" and batch * length <= MAX_TOKENS
    return not launch_bound and length >= 4 and count**2 * REPEATS <= batch * (length // 2)


def _compose_pairs_once(how: Composition, leaves: Leaves, ids: Tensor) -> Pair:
    """`compose` where a pair of leaves depends on two ids of few: each pair of ids is merged once, then looked up."""
    count = len(leaves.hidden)
    every = torch.arange(count**2, device=ids.device)
    pairs = Leaves(torch.stack((every // count, every % count), 1), leaves.hidden, leaves.cell)
    table = _compose_tree(how, pairs, None, False)
    paired = ids[:, : ids.shape[1] // 2 * 2]
    state = compose(how, Leaves(paired[:, ::2] * count + paired[:, 1::2], *table), None, False)
    if ids.shape[1] % 2 == 0:
        return state
    last = (F.embedding(ids[:, -1], part) for part in leaves[1:])
    hidden, cell = (torch.stack(parts, 1) for parts in zip(state, last, strict=True))
    return _compose_tree(how, Leaves(None, hidden, cell), None, False)


def _compose_tree(how: Composition, leaves: Leaves, lengths: Tensor | None, every_prefix: bool) -> Pair:
    """`compose` by one tree."""
    arithmetic, graphs, weights, checkpoint = how
    form: Form = "every" if every_prefix else "whole" if lengths is None else "each"
    batch, length = (leaves.hidden if leaves.ids is None else leaves.ids).shape[:2]
    inputs = leaves.hidden, leaves.cell, *weights
    differentiable = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    keep = differentiable and not checkpoint

    def make_tree(weights: tuple[Tensor, ...], lengths: Tensor | None) -> Tree:
        layout = make_layout(batch, length, form)
        rows = CHECKPOINT_ROWS if checkpoint else None
        return TREES[form](arithmetic, layout, leaves.hidden, weights, lengths, keep, rows)

    with torch.autocast(leaves.hidden.device.type, enabled=False):
        graph = None
        if not checkpoint and batch * length <= MAX_TOKENS and _can_capture(leaves):
            graph = graphs.get(form, make_tree, inputs, leaves.ids, lengths, differentiable)
        if differentiable:
            return _Compose.apply(make_tree, graph, leaves.ids, lengths, *inputs)
        if graph is not None:
            return graph.forward(inputs, leaves.ids, lengths)
        return make_tree(weights, lengths).forward(leaves)


def _can_capture(leaves: Leaves) -> bool:
    """Whether the work on `leaves` can become a graph: not inside another, nor where it waits for the GPU."""
    if leaves.hidden.device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return False
    return leaves.ids is None or len(leaves.hidden) <= ONE_HOT_IDS


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
    ) -> Pair:
        ctx.save_for_backward(*inputs)
        ctx.make_tree, ctx.ids, ctx.lengths = make_tree, ids, lengths
        ctx.tree = ctx.claim = None
        if graph is not None:
            ctx.claim = graph.claim()
            return graph.forward(inputs, ids, lengths)
        ctx.tree = make_tree(inputs[2:], lengths)
        return ctx.tree.forward(Leaves(ids, *inputs[:2]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Any, ...]:
        inputs = ctx.saved_tensors  # raises if an input was changed since
        leaves = Leaves(ctx.ids, *inputs[:2])
        with torch.autocast(inputs[0].device.type, enabled=False):
            if ctx.claim is not None and ctx.claim.graph is not None:
                gradients = ctx.claim.backward(gradient)
            else:
                if ctx.tree is None:  # a second backward: the graph may be at another batch by now
                    ctx.tree = ctx.make_tree(inputs[2:], ctx.lengths)
                    ctx.tree.forward(leaves)
                gradients = ctx.tree.backward(gradient, leaves)
        return None, None, None, None, *gradients
