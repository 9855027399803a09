"""CUDA graphs of trees: where starting the kernels takes longer than running them.

A graph replays the forward or the backward of one shape of batch with one launch, on buffers of its own: inputs are
copied in, results are copied out, so that nothing of this shows outside.
"""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

# Each graph keeps its tree's buffers. The shares of the GPU's memory that one may keep, and all of a model.
SHARE, TOTAL_SHARE = 1 / 16, 1 / 8
# About how many bytes that is for each of a tree's leaves, times H; and without a backward.
BYTES, FORWARD_BYTES = 160, 40

_paused = ContextVar("_paused", default=False)


@contextmanager
def paused() -> Iterator[None]:
    """Make and use no graphs, where a larger one is made of all of it."""
    token = _paused.set(True)
    try:
        yield
    finally:
        _paused.reset(token)


def can_capture() -> bool:
    """Whether work on this stream can become a graph: not inside another."""
    return not (_paused.get() or torch.cuda.is_current_stream_capturing())


@cache
def capture_stream(device: torch.device) -> torch.cuda.Stream:
    """The one stream for all captures, and what comes before them: the libraries keep a work space for each stream."""
    return torch.cuda.Stream(device)


class Differentiated(Protocol):
    """What becomes a graph: a tree, of the leaves' ids and products."""

    def forward(self, ids: Tensor | None, product: Tensor) -> Tensor:
        """The hidden states of the result."""

    def backward(self, gradient: Tensor, product: Tensor) -> tuple[Tensor, ...]:
        """The gradients of `product` and the weights, of the hidden states' `gradient`."""


# Weights in turn, and the rows' lengths, to a tree.
MakeTree = Callable[[tuple[Tensor, ...], Tensor | None], Differentiated]


class GraphedTree:
    """A tree whose forward, and backward if it is `differentiable`, are graphs.

    Args:
        make_tree: makes the tree for weights and lengths.
        inputs: tensors like those of every call: the leaves' products, weights; see `forward`.
        ids: of the leaves, or None.
        lengths: of the rows, or None.
        differentiable: whether there will be a backward.
        size: bytes of its buffers, about.
    """

    def __init__(
        self,
        make_tree: MakeTree,
        inputs: tuple[Tensor, ...],
        ids: Tensor | None,
        lengths: Tensor | None,
        differentiable: bool,
        size: int,
    ):
        self.size = size
        self.inputs = [tensor.detach().clone() for tensor in inputs]
        dtypes = dict.fromkeys(tensor.dtype for tensor in inputs)
        self.dtypes = [(dtype, [n for n, tensor in enumerate(inputs) if tensor.dtype == dtype]) for dtype in dtypes]
        self.integers = [None if tensor is None else tensor.clone() for tensor in (ids, lengths)]
        self.claimed: Callable[[], Claim | None] = lambda: None
        self.lock = threading.Lock()  # of the buffers: held from the copy into them to that out of them
        self.stream = torch.cuda.current_stream()  # where they were used last
        stream = capture_stream(inputs[0].device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compiles kernels and starts libraries, which a capture cannot
            self._run(make_tree, differentiable)
        torch.cuda.current_stream().wait_stream(stream)
        self.forward_graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.forward_graph, stream=stream, capture_error_mode="thread_local"):
            tree = self._make(make_tree)
            self.hidden = tree.forward(*self._leaves())
        if differentiable:
            self.gradient = self.hidden.new_zeros(self.hidden.shape)
            self.backward_graph = torch.cuda.CUDAGraph()
            pool = self.forward_graph.pool()
            with torch.cuda.graph(self.backward_graph, pool, stream, capture_error_mode="thread_local"):
                gradients = tree.backward(self.gradient, self.inputs[0])
                self.flat = {dtype: torch.cat([gradients[n].flatten() for n in part]) for dtype, part in self.dtypes}

    def _run(self, make_tree: MakeTree, differentiable: bool) -> None:
        tree = self._make(make_tree)
        output = tree.forward(*self._leaves())
        if differentiable:
            tree.backward(output, self.inputs[0])

    def _make(self, make_tree: MakeTree) -> Differentiated:
        return make_tree(tuple(self.inputs[1:]), self.integers[1])

    def _leaves(self) -> tuple[Tensor | None, Tensor]:
        return self.integers[0], self.inputs[0]

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

    def forward(self, inputs: tuple[Tensor, ...], ids: Tensor | None, lengths: Tensor | None) -> Tensor:
        """The hidden states of `Tree.forward`, of the leaves' products `inputs[0]`, with weights `inputs[1:]`."""
        with self._alone():
            for _, part in self.dtypes:  # one launch copies many tensors of one dtype
                torch._foreach_copy_([self.inputs[n] for n in part], [inputs[n].detach() for n in part])
            for own, given in zip(self.integers, (ids, lengths), strict=True):
                if own is not None and given is not None:
                    own.copy_(given)
            self.forward_graph.replay()
            return self.hidden.clone()

    def backward(self, gradient: Tensor) -> tuple[Tensor, ...]:
        """`Tree.backward` of the last forward, of its hidden states' gradient."""
        gradients = list(self.inputs)
        with self._alone():
            self.gradient.copy_(gradient)
            self.backward_graph.replay()
            for dtype, part in self.dtypes:
                sizes = [self.inputs[n].numel() for n in part]
                for n, flat in zip(part, self.flat[dtype].clone().split(sizes), strict=True):
                    gradients[n] = flat.view(self.inputs[n].shape)
        return tuple(gradients)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other threads from the buffers, and wait for what another stream did with them."""
        with self.lock:
            stream = torch.cuda.current_stream()
            if stream != self.stream:
                stream.wait_stream(self.stream)
                self.stream = stream
            yield


class Claim:
    """A forward whose backward is to come; `graph` is None once it came."""

    def __init__(self, graph: GraphedTree):
        self.graph: GraphedTree | None = graph

    def forward(self, inputs: tuple[Tensor, ...], ids: Tensor | None, lengths: Tensor | None) -> Tensor:
        """The graph's forward."""
        assert self.graph is not None
        return self.graph.forward(inputs, ids, lengths)

    def backward(self, gradient: Tensor) -> tuple[Tensor, ...]:
        """The graph's backward; then the claim is over."""
        assert self.graph is not None
        gradients = self.graph.backward(gradient)
        self.graph = None
        return gradients


class Graphs:
    """The latest graphs of a model, by what their trees depend on. A copy of the model starts with none."""

    def __init__(self) -> None:
        self.trees: OrderedDict[Hashable, GraphedTree] = OrderedDict()
        self.lock = threading.Lock()

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
        leaves: int,
    ) -> "GraphedTree | Claim | None":
        """The graphs for these arguments of `GraphedTree`, of a tree of `leaves` leaves; to differentiate, claimed.

        None while an earlier batch of their shape holds them, and where they would take too much memory.
        """
        tensors = (*inputs, ids, lengths)
        shapes = tuple(None if tensor is None else (tensor.shape, tensor.dtype, tensor.device) for tensor in tensors)
        key = key, differentiable, torch.backends.cuda.matmul.fp32_precision, shapes
        with self.lock:
            tree = self.trees.get(key)
            if tree is None:
                size = leaves * inputs[0].shape[-1] // 3 * (BYTES if differentiable else FORWARD_BYTES)
                memory = torch.cuda.get_device_properties(inputs[0].device).total_memory
                if size > SHARE * memory:
                    return None
                while size + sum(tree.size for tree in self.trees.values()) > TOTAL_SHARE * memory:
                    self.trees.popitem(last=False)
                with torch.inference_mode(False), torch.no_grad():  # whose buffers would be of use there alone
                    tree = GraphedTree(make_tree, inputs, ids, lengths, differentiable, size)
                self.trees[key] = tree
            self.trees.move_to_end(key)
            if tree.busy:
                return None
            return tree.claim() if differentiable else tree
