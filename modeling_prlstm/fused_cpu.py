"""The LSTM cells of the fused path in plain PyTorch: few passes, in place, on parts that stay in the cache.

Written for the CPU; it runs on every device and in every floating-point dtype.
"""

import torch
from torch import Tensor

from .fused import Pair
from .layout import Target

_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
_tanh_backward = torch.ops.aten.tanh_backward.grad_input


class TorchArithmetic:
    """`fused.Arithmetic` in plain PyTorch."""

    # Large enough for a product at full speed, small enough that its gates stay in the cache of a core or two.
    rows = 256

    def operand(self, weight: Tensor) -> Tensor:
        """The weight itself."""
        return weight

    def gates_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """See `Arithmetic`."""
        return torch.promote_types(dtype, torch.float32)

    def slopes(self, gates: Tensor, dtype: torch.dtype) -> Tensor:
        """See `Arithmetic`."""
        return gates if gates.dtype == dtype else torch.empty_like(gates, dtype=dtype)

    def forward(
        self, state: Pair, weight: Tensor, bias: Tensor, gates: Tensor | None, out: Pair, target: Target, batch: int
    ) -> None:
        """See `Arithmetic`."""
        hidden, cell = state
        if gates is None or gates.dtype != hidden.dtype:
            product = torch.addmm(bias, hidden, weight.t())
            gates = product.to(cell.dtype) if gates is None else gates.copy_(product)
        else:
            torch.addmm(bias, hidden, weight.t(), out=gates)
        size = cell.shape[-1]
        i, g, o, *forgets = gates.split(size, dim=1)
        i.sigmoid_()
        g.tanh_()
        gates[:, 2 * size :].sigmoid_()
        after = _cell(i, g, forgets, cell)
        _write(out[1], target, batch, after)
        _write(out[0], target, batch, after.tanh_().mul_(o))

    def backward(
        self,
        gradient: Pair,
        target: Target,
        batch: int,
        gates: Tensor,
        cell: Tensor,
        slopes: Tensor,
        cell_gradient: Tensor,
        accumulate: bool,
    ) -> Tensor:
        """See `Arithmetic`."""
        i, g, o, *forgets = gates.split(cell.shape[-1], dim=1)
        d_hidden, d_cell = (_read(part, target, batch, cell) for part in gradient)
        activated = _cell(i, g, forgets, cell).tanh_()
        product = d_hidden * o
        d_cell += _tanh_backward(product, activated, grad_input=product)
        _sigmoid_backward(d_hidden.mul_(activated), o, grad_input=o)
        for_i = torch.mul(d_cell, g, out=product)
        for_g = torch.mul(d_cell, i, out=activated)
        _sigmoid_backward(for_i, i, grad_input=i)
        _tanh_backward(for_g, g, grad_input=g)
        for forget, before, into in zip(forgets, cell.unbind(1), cell_gradient.unbind(1), strict=True):
            if accumulate:
                into.addcmul_(d_cell, forget)
            else:
                torch.mul(d_cell, forget, out=into)
            _sigmoid_backward(torch.mul(d_cell, before, out=product), forget, grad_input=forget)
        if slopes.dtype != gates.dtype:
            slopes.copy_(gates)
        return gates.sum(0, keepdim=True)


def _cell(i: Tensor, g: Tensor, forgets: list[Tensor], before: Tensor) -> Tensor:
    """The new cell state [n, H] of the gates' values [n, H] and the cell states `before` [n, F, H]."""
    after = i * g
    for forget, state in zip(forgets, before.unbind(1), strict=True):
        after.addcmul_(forget, state)
    return after


def _write(buffer: Tensor, target: Target, batch: int, states: Tensor) -> None:
    """Copy `states` [n, H] to their slots of `buffer` [slots, H]."""
    for place, part in _places(buffer, target, batch, len(states)):
        place.copy_(states[part].view(place.shape))


def _read(buffer: Tensor, target: Target, batch: int, like: Tensor) -> Tensor:
    """A copy [n, H] of the slots of `buffer` [slots, H], in the dtype of `like` [n, ..., H]."""
    states = like.new_empty(len(like), like.shape[-1])
    for place, part in _places(buffer, target, batch, len(states)):
        states[part].view(place.shape).copy_(place)
    return states


def _places(buffer: Tensor, target: Target, batch: int, count: int) -> list[tuple[Tensor, slice]]:
    """The slots of `count` results as views of `buffer` [slots, H], each with the results that it holds."""
    size = buffer.shape[1]
    start = buffer.storage_offset()
    pairs = count // batch // 2
    paired = 2 * pairs * batch
    places = []
    if pairs:
        strides = target.pair * size, target.side * size, target.row * size, 1
        view = buffer.as_strided((pairs, 2, batch, size), strides, start + target.base * size)
        places.append((view, slice(paired)))
    if paired < count:
        view = buffer.as_strided((batch, size), (target.odd_row * size, 1), start + target.odd * size)
        places.append((view, slice(paired, None)))
    return places
