"""The LSTM cells of the fused path in plain PyTorch: few passes, in place, on parts that stay in the cache.

Written for the CPU; it runs on every device and in every floating-point dtype.
"""

import torch
from torch import Tensor

from .cells import lstm_leaf
from .fused import Leaves, Pair, sum_by_id
from .layout import Run, Target

_sigmoid_backward = torch.ops.aten.sigmoid_backward
_tanh_backward = torch.ops.aten.tanh_backward


class TorchArithmetic:
    """`fused.Arithmetic` in plain PyTorch."""

    # Large enough for a product at full speed, small enough that its gates stay in the cache of a core or two.
    rows = 512

    def operand(self, weight: Tensor) -> Tensor:
        """The weight itself."""
        return weight

    def gates_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """See `Arithmetic`."""
        return torch.promote_types(dtype, torch.float32)

    def slopes(self, gates: Tensor, dtype: torch.dtype) -> Tensor:
        """See `Arithmetic`."""
        return gates if gates.dtype == dtype else torch.empty_like(gates, dtype=dtype)

    def leaf(self, product: Tensor) -> Pair:
        """See `Arithmetic`."""
        hidden, cell = lstm_leaf(product)
        return hidden, cell

    def leaf_backward(self, product: Tensor, gradient: Pair) -> Tensor:
        """See `Arithmetic`."""
        i, g, o = product.to(gradient[1].dtype).chunk(3, dim=-1)
        i, g, o = i.sigmoid(), g.tanh(), o.sigmoid()
        activated = (i * g).tanh_()
        d_hidden, d_cell = gradient[0].to(o.dtype), gradient[1]
        d_cell = d_cell + _tanh_backward(d_hidden * o, activated)
        slopes = torch.empty_like(product, memory_format=torch.contiguous_format)
        for_i, for_g, for_o = slopes.chunk(3, dim=-1)
        for_i.copy_(_sigmoid_backward(d_cell * g, i))
        for_g.copy_(_tanh_backward(d_cell * i, g))
        for_o.copy_(_sigmoid_backward(d_hidden * activated, o))
        return slopes

    def place(self, leaves: Leaves, out: Pair, target: Target) -> None:
        """See `Arithmetic`."""
        ids = leaves.ids
        for into, states in zip(out, leaves[1:], strict=True):
            pairs, last = _leaf_slots(into, target, leaves.shape)
            if ids is None:
                pairs.copy_(_in_pairs(states))
            else:
                torch.index_select(states, 0, _in_pairs(ids).flatten(), out=pairs.flatten(0, 2))
            if last is not None:
                last.copy_(states[:, -1] if ids is None else states[ids[:, -1]])

    def gather(self, gradient: Pair, target: Target, leaves: Leaves) -> Pair:
        """See `Arithmetic`."""
        of_hidden, of_cell = (
            _of_leaves(part, target, leaves, states) for part, states in zip(gradient, leaves[1:], strict=True)
        )
        return of_hidden, of_cell

    def copy(self, buffers: Pair, source: Run, into: Run, count: int, batch: int, add: bool) -> None:
        """See `Arithmetic`."""
        for buffer in buffers:
            there, here = (_run(buffer, run, count, batch) for run in (source, into))
            if add:
                here.add_(there)
            else:
                here.copy_(there)

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

    def sums(self, count: int) -> int:
        """See `Arithmetic`."""
        return 1

    def backward(
        self,
        gradient: Pair,
        target: Target,
        batch: int,
        gates: Tensor,
        cell: Tensor,
        weight: Tensor,
        slopes: Tensor,
        sums: Tensor,
        into: Pair,
        accumulate: bool,
    ) -> None:
        """See `Arithmetic`."""
        i, g, o, *forgets = gates.split(cell.shape[-1], dim=1)
        d_hidden, d_cell = (_read(part, target, batch, cell) for part in gradient)
        activated = _cell(i, g, forgets, cell).tanh_()
        product = d_hidden * o
        d_cell += _tanh_backward.grad_input(product, activated, grad_input=product)
        _sigmoid_backward.grad_input(d_hidden.mul_(activated), o, grad_input=o)
        for_i = torch.mul(d_cell, g, out=product)
        for_g = torch.mul(d_cell, i, out=activated)
        _sigmoid_backward.grad_input(for_i, i, grad_input=i)
        _tanh_backward.grad_input(for_g, g, grad_input=g)
        for forget, before, d_before in zip(forgets, cell.unbind(1), into[1].unbind(1), strict=True):
            if accumulate:
                d_before.addcmul_(d_cell, forget)
            else:
                torch.mul(d_cell, forget, out=d_before)
            _sigmoid_backward.grad_input(torch.mul(d_cell, before, out=product), forget, grad_input=forget)
        if slopes.dtype != gates.dtype:
            slopes.copy_(gates)
        torch.sum(gates, 0, keepdim=True, out=sums)
        if accumulate:
            into[0].addmm_(slopes, weight)
        else:
            torch.mm(slopes, weight, out=into[0])


def _of_leaves(gradient: Tensor, target: Target, leaves: Leaves, states: Tensor) -> Tensor:
    """The gradient of the leaves' `states`, of that of all slots."""
    pairs, last = _leaf_slots(gradient, target, leaves.shape)
    ids = leaves.ids
    if ids is None:
        result = torch.empty_like(states, memory_format=torch.contiguous_format)
        _in_pairs(result).copy_(pairs)
        if last is not None:
            result[:, -1] = last
        return result
    result = sum_by_id(pairs.flatten(0, 2), _in_pairs(ids).flatten(), len(states))
    return result if last is None else result + sum_by_id(last, ids[:, -1], len(states))


def _leaf_slots(buffer: Tensor, target: Target, shape: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
    """The slots of leaves of `shape` (B, T): of the pairs [T // 2, B, 2, H], of the last [B, H] if T is odd."""
    batch, length = shape
    pairs = buffer[target.base : target.base + length // 2 * 2 * batch].view(length // 2, batch, 2, buffer.shape[1])
    odd = slice(target.odd, target.odd + batch * target.odd_row, target.odd_row)
    return pairs, buffer[odd] if length % 2 else None


def _in_pairs(values: Tensor) -> Tensor:
    """The leaves that have a pair, of `values` [B, T, ...], in the order of their slots: [T // 2, B, 2, ...]."""
    pairs = values.shape[1] // 2
    return values[:, : 2 * pairs].unflatten(1, (pairs, 2)).transpose(0, 1)


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


def _run(buffer: Tensor, run: Run, count: int, batch: int) -> Tensor:
    """The slots [count, B, H] of a run."""
    size = buffer.shape[1]
    strides = run.step * size, run.row * size, 1
    return buffer.as_strided((count, batch, size), strides, buffer.storage_offset() + run.base * size)


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
