"""CUDA graphs of small trees: where starting the kernels takes longer than running them.

A graph replays the forward or the backward of one shape of batch with one launch, on buffers of its own: inputs are
copied in, results are copied out, so that nothing of this shows outside.
"""

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from .fused import Leaves, Pair, Tree

# Trees of up to this many tokens are launch-bound; each graph keeps the buffers of its tree.
MAX_TOKENS = 8192
MAX_GRAPHS = 64

# Weights in turn, and the rows' lengths, to a tree.
MakeTree = Callable[[tuple[Tensor, ...], Tensor | None], Tree]


class GraphedTree:
    """A tree whose forward, and backward if it is `differentiable`, are graphs.

    Args:
        make_tree: makes the tree for weights and lengths.
        inputs: tensors like those of every call: leaves' hidden and cell states, weights; see `forward`.
        ids: of the leaves, or None.
        lengths: of the rows, or None.
        differentiable: whether there will be a backward.
    """

    def __init__(
        self,
        make_tree: MakeTree,
        inputs: tuple[Tensor, ...],
        ids: Tensor | None,
        lengths: Tensor | None,
        differentiable: bool,
    ):
        self.inputs = [tensor.detach().clone() for tensor in inputs]
        self.integers = [None if tensor is None else tensor.clone() for tensor in (ids, lengths)]
        self.claimed: Callable[[], Claim | None] = lambda: None
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compiles kernels and starts libraries, which a capture cannot
            self._run(make_tree, differentiable)
        torch.cuda.current_stream().wait_stream(stream)
        self.forward_graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.forward_graph, capture_error_mode="thread_local"):
            self.tree = self._make(make_tree)
            self.output = self.tree.forward(self._leaves())
        if differentiable:
            self.gradient = torch.zeros_like(self.output[0]), torch.zeros_like(self.output[1])
            self.backward_graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(
                self.backward_graph, pool=self.forward_graph.pool(), capture_error_mode="thread_local"
            ):
                self.gradients = self.tree.backward(self.gradient, self._leaves())

    def _run(self, make_tree: MakeTree, differentiable: bool) -> None:
        tree = self._make(make_tree)
        output = tree.forward(self._leaves())
        if differentiable:
            tree.backward(output, self._leaves())

    def _make(self, make_tree: MakeTree) -> Tree:
        return make_tree(tuple(self.inputs[2:]), self.integers[1])

    def _leaves(self) -> Leaves:
        return Leaves(self.integers[0], self.inputs[0], self.inputs[1])

    @property
    def busy(self) -> bool:
        """Whether its buffers wait for the backward of an earlier forward."""
        claim = self.claimed()
        return claim is not None and claim.graph is not None

    def claim(self) -> "Claim":
        """Hold the buffers from a forward to its backward, or until no one has the claim any more."""
        claim = Claim(self)
        self.claimed = weakref.ref(claim)
        return claim

    def forward(self, inputs: tuple[Tensor, ...], ids: Tensor | None, lengths: Tensor | None) -> Pair:
        """`Tree.forward` of leaves `inputs[:2]`, with weights `inputs[2:]`."""
        torch._foreach_copy_(self.inputs, [tensor.detach() for tensor in inputs])
        for own, given in zip(self.integers, (ids, lengths), strict=True):
            if own is not None and given is not None:
                own.copy_(given)
        self.forward_graph.replay()
        return self.output[0].clone(), self.output[1].clone()

    def backward(self, gradient: Pair) -> tuple[Tensor, ...]:
        """`Tree.backward` of the last forward."""
        torch._foreach_copy_(self.gradient, gradient)
        self.backward_graph.replay()
        return tuple(gradient.clone() for gradient in self.gradients)


class Claim:
    """A forward whose backward is to come; `graph` is None once it came."""

    def __init__(self, graph: GraphedTree):
        self.graph: GraphedTree | None = graph

    def backward(self, gradient: Pair) -> tuple[Tensor, ...]:
        """The graph's backward; then the claim is over."""
        assert self.graph is not None
        gradients = self.graph.backward(gradient)
        self.graph = None
        return gradients


class Graphs:
    """The latest graphs of a model, by what their trees depend on. A copy of the model starts with none."""

    def __init__(self) -> None:
        self.trees: OrderedDict[Hashable, GraphedTree] = OrderedDict()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Graphs":
        return Graphs()

    def __reduce__(self) -> tuple[type["Graphs"], tuple[()]]:
        return Graphs, ()

    def get(
        self,
        key: Hashable,
        make_tree: MakeTree,
        inputs: tuple[Tensor, ...],
        ids: Tensor | None,
        lengths: Tensor | None,
        differentiable: bool,
    ) -> GraphedTree | None:
        """The graphs for these arguments of `GraphedTree`; None while an earlier batch of their shape holds them."""
        tensors = (*inputs, ids, lengths)
        shapes = tuple(None if tensor is None else (tensor.shape, tensor.dtype, tensor.device) for tensor in tensors)
        key = key, differentiable, torch.backends.cuda.matmul.allow_tf32, shapes
        tree = self.trees.pop(key, None)
        if tree is None:
            tree = GraphedTree(make_tree, inputs, ids, lengths, differentiable)
        self.trees[key] = tree
        if len(self.trees) > MAX_GRAPHS:
            self.trees.popitem(last=False)
        return None if tree.busy else tree
