"""CUDA graphs of functions: where starting the kernels takes longer than running them.

A graph replays the forward or the backward of one shape of batch with one launch, on buffers of its own: inputs are
copied in, results are copied out, so that nothing of this shows outside.
"""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

# Each graph keeps its buffers. The shares of the GPU's memory that one may keep, and all of a model.
SHARE, TOTAL_SHARE = 1 / 16, 1 / 8

# A graph is made for the second batch of a shape. So many shapes are remembered to have come once.
REMEMBERED = 4096

# Tensors of up to so many elements are copied together.
SMALL = 2**14

# After so many runs of others, a graph makes room for them.
IDLE = 1000

# Held while one is made.
_making = threading.Lock()

Tensors = Sequence[Tensor | None]
Call = Callable[..., tuple[Tensor, ...]]
Rebind = Callable[[Tensors], Call]

_paused = ContextVar("_paused", default=False)
_rehearsed = ContextVar("_rehearsed", default=False)


@contextmanager
def _within(variable: ContextVar[bool]) -> Iterator[None]:
    token = variable.set(True)
    try:
        yield
    finally:
        variable.reset(token)


def paused() -> AbstractContextManager[None]:
    """Make and use no graphs, where a larger one is made of all of it."""
    return _within(_paused)


def can_capture(device: torch.device) -> bool:
    """Whether work on the `device` can become a graph: on a GPU, and not inside another."""
    return device.type == "cuda" and not (_paused.get() or torch.cuda.is_current_stream_capturing())


def is_rehearsal() -> bool:
    """Whether this run prepares a capture, in which no values can be read: it must do without them too."""
    return _rehearsed.get()


@cache
def capture_stream(device: torch.device) -> torch.cuda.Stream:
    """The one stream for all captures, and what comes before them: the libraries keep a work space for each stream."""
    return torch.cuda.Stream(device)


def refuse_second_derivative() -> None:
    """Raise where autograd records a backward, as for `create_graph=True`: of ours it would take all for constant."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "The fast backends have no second derivatives (`create_graph=True`). Use `backend='eager'`."
        )


def is_dual(tensor: Tensor) -> bool:
    """Whether forward-mode differentiation is under way with respect to it."""
    return forward_ad.unpack_dual(tensor).tangent is not None


def autocast_dtype() -> torch.dtype | None:
    """That of autocast on GPUs; None where it is off."""
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None


def others_save_tensors() -> bool:
    """Whether more is done with tensors that autograd saves than to keep them, as by checkpointing around a model.

    What compares or counts these finds others with a graph than without one.
    """
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks("asked for"):  # raises this where there are some
            return False
    except RuntimeError:
        return True


def _apart() -> torch.autograd.graph.saved_tensors_hooks:
    """Keep from a graph's tensors what is done with others that autograd saves; see `others_save_tensors`."""
    return torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)


def casting_anew(dtype: torch.dtype | None) -> torch.autocast:
    """Autocast to `dtype`, if any, that keeps no weights as they were cast: a graph must cast them each time."""
    return torch.autocast("cuda", dtype, enabled=dtype is not None, cache_enabled=False)


class Checks(NamedTuple):
    """Of the values of a function's inputs. A graph looks at them while it works: no value may do it harm.

    Attributes:
        look: starts to look at the inputs; gives what `judge` reads once the GPU has looked. With what it gave before,
            for inputs of the same shapes, that takes the findings.
        judge: raises for findings that it does not like.
    """

    look: Callable[[Tensors, Tensor | None], Tensor]
    judge: Callable[[Tensor], None]

    def now(self, inputs: Tensors) -> None:
        """Look, wait and judge."""
        found = self.look(inputs, None)
        torch.cuda.current_stream().synchronize()
        self.judge(found)


class Function(NamedTuple):
    """What becomes a graph.

    Attributes:
        call: gives tensors, of inputs, which may be None.
        parameters: tensors that it reads besides. A graph reads them where they are; its inputs are copied to it.
        rebind: gives `call` with other tensors in the place of the `parameters`.
        depends_on: what else decides what it does; with the shapes of its tensors, it tells one graph from another.
        size: gives about how many bytes its buffers need, of whether there will be a backward.
        gives_loss: whether the first result is a loss, from which alone a backward will probably start.
        checks: to be made of each call's inputs before its results are given; None: there are none.
    """

    call: Call
    parameters: tuple[Tensor, ...]
    rebind: Rebind
    depends_on: Hashable
    size: Callable[[bool], int]
    gives_loss: bool = False
    checks: Checks | None = None


def differentiate(results: Sequence[Tensor], of_results: Tensors, tensors: Tensors) -> list[Tensor | None]:
    """The gradients of `tensors`, of those of the `results` made of them; None where there is none."""
    pairs = [
        (result, gradient)
        for result, gradient in zip(results, of_results, strict=True)
        if gradient is not None and result.requires_grad
    ]
    if not pairs:
        return [None for _ in tensors]
    wanted = [tensor for tensor in tensors if tensor is not None and tensor.requires_grad]
    outputs, gradients = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(outputs, wanted, gradients, allow_unused=True))
    return [next(found) if tensor is not None and tensor.requires_grad else None for tensor in tensors]


def _leaf(tensor: Tensor, differentiable: bool = True) -> Tensor:
    """A leaf of its own for autograd, on the same memory: without the tensor's hooks and the streams that it knows."""
    return tensor.detach().requires_grad_(tensor.requires_grad) if differentiable else tensor.detach()


def _in_layout_of(parameter: Tensor, gradient: Tensor | None) -> Tensor | None:
    """The `gradient` in memory as its `parameter` is: autograd would copy any other."""
    if gradient is None or gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def capture(
    work: Callable[[], list[Tensor]], stream: torch.cuda.Stream, pool: Any = None
) -> tuple[list[Tensor], torch.cuda.CUDAGraph]:
    """A graph of what `work` does, and the tensors that it gives then and at each replay."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
        results = work()
    return results, graph


@contextmanager
def turn_to_make() -> Iterator[bool]:
    """Whether no other thread makes a graph: a process can do that once at a time.

    It is not waited for, as who makes one may itself wait for the thread of the backwards.
    """
    is_free = _making.acquire(blocking=False)
    try:
        yield is_free
    finally:
        if is_free:
            _making.release()


class Copying:
    """Copies tensors like its `examples`: by one launch what is small and of one dtype, since few programs take part.

    Args:
        examples: None where there is no tensor.
    """

    def __init__(self, examples: Tensors):
        together: dict[Hashable, list[int]] = {}
        for number, tensor in enumerate(examples):
            if tensor is not None:
                together.setdefault(tensor.dtype if tensor.numel() <= SMALL else number, []).append(number)
        self.groups = [*together.values()]

    def __call__(self, source: Tensors, into: Tensors) -> None:
        """Copy what is given."""
        for group in self.groups:
            pairs = [
                (own, given)
                for number in group
                if (own := into[number]) is not None and (given := source[number]) is not None
            ]
            if len(pairs) == 1:
                pairs[0][0].copy_(pairs[0][1])
            elif pairs:
                torch._foreach_copy_([own for own, _ in pairs], [given for _, given in pairs])

    def new(self, source: Sequence[Tensor]) -> list[Tensor]:
        """New tensors like the examples, copied from `source`."""
        copies = [torch.empty_like(tensor) for tensor in source]
        self(source, copies)
        return copies


@contextmanager
def _rehearsal(stream: torch.cuda.Stream) -> Iterator[None]:
    """What is to be captured must run once before: it starts libraries, which a capture cannot."""
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), _within(_rehearsed):
        yield
    torch.cuda.current_stream().wait_stream(stream)


class Graph:
    """A function whose forward, and backward if it is `differentiable`, are CUDA graphs, or one for both.

    Args:
        function: see `Function`.
        inputs: tensors like those of every call.
        differentiable: whether there will be a backward, if the results need one.
        joined: whether the forward also makes the gradients, of a loss. A backward then has next to nothing to do;
            another one than of the loss alone it cannot do.
    """

    def __init__(self, function: Function, inputs: Tensors, differentiable: bool, joined: bool):
        self.size, self.used = function.size(differentiable), 0  # `Graphs.runs` when it was used last
        self.misused = False  # whether joined, and another backward came, or none
        self.inputs = [None if part is None else _leaf(part.clone(), differentiable) for part in inputs]
        self.claimed: Callable[[], Claim | None] = lambda: None  # the latest
        self.lock = threading.Lock()  # of the buffers: held from the copy into them to that out of them
        self.stream = torch.cuda.current_stream()  # where they were used last
        self.device = torch.cuda.current_device()
        parameters = [_leaf(parameter, differentiable) for parameter in function.parameters]
        call = function.rebind(parameters)
        attached: Sequence[Tensor] = ()
        checks = function.checks
        self.found: Tensor | None = None  # made by the rehearsal, written by each replay
        self.looked = torch.cuda.Event(external=True)  # to wait for it is not to wait for the rest of the graph

        def forward() -> list[Tensor]:
            nonlocal attached
            if checks is not None:
                self.found = checks.look(self.inputs, self.found)
                self.looked.record()
            attached = call(*self.inputs)
            return [result.detach() for result in attached]

        def backward() -> list[Tensor]:
            gradients = differentiate(attached, self.of_results, (*self.inputs, *parameters))
            gradients[len(inputs) :] = map(_in_layout_of, parameters, gradients[len(inputs) :])
            self.has_gradient = [gradient is not None for gradient in gradients]
            return [gradient for gradient in gradients if gradient is not None]

        stream = capture_stream(torch.device("cuda", torch.cuda.current_device()))
        with torch.set_grad_enabled(differentiable), casting_anew(autocast_dtype()), paused(), _apart():
            with _rehearsal(stream):
                first, *others = forward()
                self.differentiable = any(result.requires_grad for result in attached)
                self.joined = joined and self.differentiable and first.numel() == 1
                if self.differentiable:
                    self.of_results: list[Tensor | None] = [torch.zeros_like(result) for result in (first, *others)]
                    if self.joined:
                        self.of_results = [torch.ones_like(first), *(None for _ in others)]
                    backward()
            if self.differentiable:  # on this stream, as the inputs are
                self.of_results = [None if part is None else part.clone() for part in self.of_results]
            if self.joined:
                made, self.forward_graph = capture(lambda: [*forward(), *backward()], stream)
                self.results, self.gradients = made[: 1 + len(others)], made[1 + len(others) :]
            else:
                self.results, self.forward_graph = capture(forward, stream)
                if self.differentiable:
                    self.arrived = [False for _ in self.results]  # whether `of_results` are not zeros
                    pool = self.forward_graph.pool()
                    self.gradients, self.backward_graph = capture(backward, stream, pool)
                    self.copy_gradients = Copying(self.gradients)
        self.copy_inputs, self.copy_results = Copying(self.inputs), Copying(self.results)

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

    def forward(self, inputs: Tensors, checks: Checks | None) -> tuple[Tensor, ...]:
        """What the function gives for `inputs`, after its `checks`; to be called where autograd is off."""
        with self.lock:
            self._wait_for_others()
            self.copy_inputs(inputs, self.inputs)
            self.forward_graph.replay()
            results = tuple(self.copy_results.new(self.results))
            if checks is not None:
                assert self.found is not None
                self.looked.synchronize()
                checks.judge(self.found)
            return results

    def can_go_back(self, of_results: Tensors) -> bool:
        """Whether it has a backward of these gradients of its results."""
        of_loss, *others = of_results
        if self.joined and (of_loss is None or any(gradient is not None for gradient in others)):
            self.misused = True
        return not self.misused

    def backward(self, of_results: Tensors) -> list[Tensor | None]:
        """The gradients of the last forward's inputs and of the parameters; see `differentiate`."""
        with self.lock:
            self._wait_for_others()
            if self.joined:
                of_loss = of_results[0]
                assert of_loss is not None
                gradients = [*torch._foreach_mul(self.gradients, of_loss.reshape(()))]
            else:
                self.copy_results(of_results, self.of_results)
                for number, gradient in enumerate(of_results):
                    own = self.of_results[number]
                    if gradient is None and self.arrived[number] and own is not None:
                        own.zero_()
                    self.arrived[number] = gradient is not None
                self.backward_graph.replay()
                gradients = self.copy_gradients.new(self.gradients)
        made = iter(gradients)
        return [next(made) if has_gradient else None for has_gradient in self.has_gradient]

    def _wait_for_others(self) -> None:
        """Let this stream wait for what another did with the buffers, and their memory for this one."""
        stream = torch.cuda.current_stream()
        if stream != self.stream:
            stream.wait_stream(self.stream)
            for part in (*self.inputs, *(self.of_results if self.differentiable else ())):
                if part is not None:
                    part.record_stream(stream)
            self.stream = stream


class Claim:
    """A forward whose backward is to come; `graph` is None once it came."""

    def __init__(self, graph: Graph):
        self.graph: Graph | None = graph

    def forward(self, inputs: Tensors, checks: Checks | None) -> tuple[Tensor, ...]:
        """The graph's forward; if a check fails, there is no backward to come."""
        assert self.graph is not None
        try:
            return self.graph.forward(inputs, checks)
        except BaseException:
            self.graph = None
            raise

    def backward(self, of_results: Tensors) -> list[Tensor | None]:
        """The graph's backward; then the claim is over."""
        assert self.graph is not None
        gradients = self.graph.backward(of_results)
        self.graph = None
        return gradients

    def __del__(self) -> None:
        if self.graph is not None:
            self.graph.misused = self.graph.joined


class _Replay(torch.autograd.Function):
    """A graph with its backward."""

    @staticmethod
    def forward(ctx: Any, claim: Claim, function: Function, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.claim, ctx.function, ctx.dtype = claim, function, autocast_dtype()
        return claim.forward(tensors[: len(tensors) - len(function.parameters)], function.checks)

    @staticmethod
    def backward(ctx: Any, *of_results: Tensor | None) -> tuple[Any, ...]:
        refuse_second_derivative()
        saved = ctx.saved_tensors  # raises if one was changed since
        if all(gradient is None for gradient in of_results):
            return None, None, *(None for _ in saved)
        with torch.cuda.device_of(next(part for part in of_results if part is not None)):
            if ctx.claim.graph is not None and ctx.claim.graph.can_go_back(of_results):
                return None, None, *ctx.claim.backward(of_results)
            # A second backward, of the first one's graph nothing is left; or one that the graph does not have.
            with torch.enable_grad(), casting_anew(ctx.dtype), paused(), _apart():
                tensors = [None if tensor is None else _leaf(tensor) for tensor in saved]
                count = len(saved) - len(ctx.function.parameters)
                results = ctx.function.rebind(tensors[count:])(*tensors[:count])
                return None, None, *differentiate(results, of_results, tensors)


class Graphs:
    """The latest graphs of a model, by what their functions depend on. A copy of the model starts with none."""

    def __init__(self) -> None:
        self.graphs: dict[Hashable, Graph] = {}
        self.seen: OrderedDict[Hashable, None] = OrderedDict()
        self.runs = 0
        self.lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Graphs":
        return Graphs()

    def __reduce__(self) -> tuple[type["Graphs"], tuple[()]]:
        return Graphs, ()

    def clear(self) -> None:
        """Forget all of them, and free their buffers."""
        with self.lock:
            self.graphs.clear()
            self.seen.clear()

    def run(self, function: Function, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """What the function gives for `inputs`, differentiable once; by a graph if batches of their shape came before.

        Without one while an earlier batch of the shape holds its buffers, where these would take too much memory, and
        while another thread makes one.
        To be called where `can_capture`.
        """
        with torch.cuda.device_of(next(part for part in inputs if part is not None)):
            tensors = *inputs, *function.parameters
            differentiable = torch.is_grad_enabled() and any(
                part is not None and part.requires_grad for part in tensors
            )
            with self.lock:
                graph = self._get(function, inputs, differentiable)
                busy = graph is not None and graph.busy
                claim = graph.claim() if graph is not None and graph.differentiable and not busy else None
            if claim is not None:
                return _Replay.apply(claim, function, *tensors)
            if graph is not None and not busy:
                with torch.no_grad():
                    return graph.forward(inputs, function.checks)
            if function.checks is not None:
                function.checks.now(inputs)
            if busy:
                return function.call(*inputs)
            with paused():  # there is no graph of a part where one of all is to come
                return function.call(*inputs)

    def _get(self, function: Function, inputs: Tensors, differentiable: bool) -> Graph | None:
        shapes = tuple(None if part is None else (part.shape, part.dtype, part.requires_grad) for part in inputs)
        places = tuple(
            (part.data_ptr(), part.shape, part.stride(), part.dtype, part.requires_grad)
            for part in function.parameters
        )
        state = torch.cuda.current_device(), torch.backends.cuda.matmul.fp32_precision, autocast_dtype()
        key = function.depends_on, differentiable, state, shapes, places
        self.runs += 1
        graph = self.graphs.get(key)
        joined = function.gives_loss and differentiable
        if graph is not None and graph.misused and not graph.busy:
            graph, joined = None, False
            del self.graphs[key]  # its buffers go before there are others
        if graph is None and self._came_before(key):
            with turn_to_make() as is_free:
                if is_free and self._make_room(function.size(differentiable)):
                    with torch.inference_mode(False):  # whose buffers would be of use there alone
                        graph = self.graphs[key] = Graph(function, inputs, differentiable, joined)
        if graph is not None:
            graph.used = self.runs
        return graph

    def _make_room(self, size: int) -> bool:
        """Whether there is memory for a graph of `size` bytes, once those are gone that no batch uses any more."""
        device = torch.cuda.current_device()
        memory = torch.cuda.get_device_properties(device).total_memory
        if size > SHARE * memory:
            return False
        here = {key: graph for key, graph in self.graphs.items() if graph.device == device}
        while size + sum(graph.size for graph in here.values()) > TOTAL_SHARE * memory:
            oldest = min(here, key=lambda key: here[key].used)
            if self.runs - here[oldest].used < IDLE:
                return False
            del self.graphs[oldest], here[oldest]
        free, _ = torch.cuda.mem_get_info()
        return size <= free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()

    def _came_before(self, key: Hashable) -> bool:
        """Whether it did; from now on it has."""
        if key in self.seen:
            return True
        self.seen[key] = None
        if len(self.seen) > REMEMBERED:
            self.seen.popitem(last=False)
        return False
