"""The LSTM cells of the fused path in plain PyTorch: few passes, in place, on parts that stay in the cache.

Written for the CPU; it runs on every device and in every floating-point dtype.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .cells import lstm_leaf
from .fused import NO_ID, NO_SLOT, InUnits, Leaves, Order, Pair, Pairs, Places, Prefixes, Survey
from .layout import Lefts, Rights, Run, Target

# Up to this many ids, the gradients of equal ids are summed by a product with the one-hot ids: on a GPU up to many,
# because the other way waits for the GPU.
ONE_HOT_IDS = {"cpu": 64, "cuda": 1024}

# Merging by ids is worth it where there are this many times more merges.
FEWER_IDS = 4

_sigmoid_backward = torch.ops.aten.sigmoid_backward
_tanh_backward = torch.ops.aten.tanh_backward


class TorchArithmetic:
    """`fused.Arithmetic` in plain PyTorch."""

    # Large enough to keep many cores busy, small enough that the gates stay in their caches.
    rows = 2048

    bears_unknown_ids = False

    def can_capture(self, ids: int) -> bool:
        """See `Arithmetic`."""
        return ids <= ONE_HOT_IDS["cuda"]

    def look(
        self, ids: Tensor | None, mask: Tensor | None, labels: Tensor | None, found: Tensor | None = None
    ) -> Tensor:
        """See `Arithmetic`."""
        lengths = None if mask is None else (mask != 0).sum(dim=1)
        labels = None if labels is None else labels.long()  # first: -100 is 156 in uint8
        labels = None if labels is None else labels.masked_fill(labels == -100, 0)
        parts = ids, None if mask is None else mask.long(), lengths, labels
        device = next((part.device for part in parts if part is not None), "cpu")
        bounds = torch.zeros(4, 2, dtype=torch.int64, device=device) if found is None else found
        for own, part in zip(bounds, parts, strict=True):
            if part is not None:
                own.copy_(torch.stack(part.aminmax()))
        return bounds

    def survey(self, found: Tensor) -> Survey:
        """See `Arithmetic`."""
        return Survey(*((low, high) for low, high in found.tolist()))

    def operand(self, weight: Tensor) -> InUnits:
        """See `Arithmetic`."""
        return InUnits(weight, None)

    def hidden_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """See `Arithmetic`."""
        return dtype

    def gates_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """See `Arithmetic`."""
        return torch.promote_types(dtype, torch.float32)

    def slopes(self, gates: Tensor, dtype: torch.dtype) -> InUnits:
        """See `Arithmetic`."""
        return InUnits(gates if gates.dtype == dtype else torch.empty_like(gates, dtype=dtype), None)

    def result(self, hidden: Tensor, dtype: torch.dtype) -> Tensor:
        """See `Arithmetic`."""
        return hidden.clone(memory_format=torch.contiguous_format)

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

    def pair_ids(self, ids: Tensor, count: int) -> Tensor:
        """See `Arithmetic`."""
        known = ids.clamp(0, count - 1) == ids
        pairs = torch.add(ids[:, 1::2], ids[:, :-1:2], alpha=count)
        return torch.where(known[:, 1::2] & known[:, :-1:2], pairs, NO_ID)

    def place(self, leaves: Leaves, out: Pair, target: Target) -> None:
        """See `Arithmetic`."""
        for into, states in zip(out, leaves[1:], strict=True):
            for slots, positions in _leaf_slots(into, target, leaves.shape):
                if leaves.ids is None:
                    slots.copy_(_in_slots(states, positions))
                    continue
                ids = _in_slots(leaves.ids, positions)
                if slots.is_contiguous():
                    torch.index_select(states, 0, ids.flatten(), out=slots.view(-1, states.shape[1]))
                else:
                    slots.copy_(states[ids])

    def sort_ids(self, ids: Tensor, count: int, sides: int) -> Order:
        """See `Arithmetic`."""
        return None

    def gather(self, gradient: Pair, target: Target, leaves: Leaves, order: Order) -> Pair:
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

    def last_blocks(self, lengths: Tensor, ends: Sequence[tuple[int, Target]]) -> Tensor:
        """See `Arithmetic`."""
        row = torch.arange(len(lengths), device=lengths.device)
        found = []
        for level, (paired, (base, pair, side, step, odd, odd_step)) in enumerate(ends):
            node = (lengths >> level) - 1
            in_pairs = base + node // 2 * pair + node % 2 * side + row * step
            found.append(torch.where(node < paired, in_pairs, odd + row * odd_step))
        return torch.stack(found)

    def move(self, buffers: Pair, source: Tensor, into: Tensor | int) -> None:
        """See `Arithmetic`."""
        is_none = (source == NO_SLOT)[:, None]
        for buffer in buffers:
            states = buffer[source.clamp(min=0)].masked_fill_(is_none, 0)
            if isinstance(into, Tensor):
                buffer.index_copy_(0, into, states)
            else:
                buffer[into : into + len(states)] = states

    def put_starts(self, buffers: Pair, starts: int, prefixes: Prefixes, batch: int) -> None:
        """See `Arithmetic`."""
        for own, target, lefts in _starts(starts, prefixes.lefts, batch):
            _write(prefixes.hidden, target, batch, buffers[0][own])
            for buffer in buffers:
                _write_lefts(buffer, lefts, batch, buffer[own])

    def take_starts(self, buffers: Pair, starts: int, prefixes: Prefixes, batch: int) -> None:
        """See `Arithmetic`."""
        hidden, cell = buffers
        for own, target, lefts in _starts(starts, prefixes.lefts, batch):
            hidden[own] = _add_lefts(_read(prefixes.hidden, target, batch, cell[own]), hidden, lefts, batch)
            cell[own] = _add_lefts(torch.zeros_like(cell[own]), cell, lefts, batch)

    def forward(
        self,
        state: Pair,
        weight: InUnits,
        bias: Tensor,
        gates: Tensor | None,
        out: Pair,
        places: Places,
    ) -> None:
        """See `Arithmetic`."""
        hidden, cell = state
        if gates is None or gates.dtype != hidden.dtype:
            product = torch.addmm(bias, hidden, weight.values.t())
            gates = product.to(cell.dtype) if gates is None else gates.copy_(product)
        else:
            torch.addmm(bias, hidden, weight.values.t(), out=gates)
        _activate(gates, cell.shape[-1])
        _finish(gates, cell, out, places)

    def merges_by_ids(self, ids: int, merges: int) -> bool:
        """See `Arithmetic`."""
        return merges >= FEWER_IDS * ids

    def factors(self, hidden: Tensor, weight: InUnits) -> tuple[Tensor, Tensor]:
        """See `Arithmetic`."""
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        return hidden.to(dtype), torch.stack(weight.values.to(dtype).chunk(2, dim=1))

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        """See `Arithmetic`."""
        return left @ right

    def forward_by_ids(self, pairs: Pairs, dtype: torch.dtype, out: Pair, places: Places) -> None:
        """See `Arithmetic`."""
        ids = _each_side(pairs)
        cell = _cells_of(pairs, ids)
        _finish(_gates_of(pairs, ids), cell, out, places)

    def sums(self, count: int, dtype: torch.dtype) -> int:
        """See `Arithmetic`."""
        return 1

    def total(self, sums: Tensor) -> Tensor:
        """See `Arithmetic`."""
        return sums.sum(0)

    def backward(
        self,
        gradient: Pair,
        places: Places,
        gates: Tensor,
        cell: Tensor,
        weight: InUnits,
        slopes: InUnits,
        sums: Tensor,
        into: Pair,
    ) -> None:
        """See `Arithmetic`."""
        _differentiate(gradient, places, gates, cell, into[1])
        if slopes.values.dtype != gates.dtype:
            slopes.values.copy_(gates)
        torch.sum(gates, 0, keepdim=True, out=sums)
        torch.mm(slopes.values, weight.values, out=into[0])

    def backward_by_ids(self, gradient: Pair, places: Places, pairs: Pairs, order: Order, into: Pair) -> None:
        """See `Arithmetic`."""
        ids = _each_side(pairs)
        cell, gates = _cells_of(pairs, ids), _gates_of(pairs, ids)
        _differentiate(gradient, places, gates, cell, cell)
        for side, of_terms, of_cell in zip(ids, into[0], cell.unbind(1), strict=True):
            _add_by_id(of_terms, gates, side)
            _add_by_id(into[1], of_cell, side)

    def weight_gradient(self, slopes: InUnits, inputs: Tensor, weight: InUnits) -> Tensor:
        """See `Arithmetic`."""
        return slopes.values.t() @ inputs


def _of_leaves(gradient: Tensor, target: Target, leaves: Leaves, states: Tensor) -> Tensor:
    """The gradient of the leaves' `states`, of that of all slots."""
    views = _leaf_slots(gradient, target, leaves.shape)
    ids = leaves.ids
    if ids is None:
        result = torch.empty_like(states, memory_format=torch.contiguous_format)
        for slots, positions in views:
            _in_slots(result, positions).copy_(slots)
        return result
    result, *others = (
        _sum_by_id(slots.flatten(0, 2), _in_slots(ids, positions).flatten(), len(states)) for slots, positions in views
    )
    for other in others:
        result += other
    return result


def _sum_by_id(gradients: Tensor, ids: Tensor, count: int) -> Tensor:
    """The sums [count, H] of the `gradients` [n, H] of equal `ids` [n], in an order that does not change."""
    if count > ONE_HOT_IDS.get(ids.device.type, 0):
        return torch.ops.aten.embedding_dense_backward(gradients, ids.long(), count, -1, False)
    one_hot = ids == torch.arange(count, device=ids.device)[:, None]
    return one_hot.to(gradients.dtype) @ gradients


def _add_by_id(total: Tensor, values: Tensor, ids: Tensor) -> None:
    """Add the sums of the `values` [n, W] of equal `ids` [n] to `total` [V, W], in an order that does not change."""
    if ids.device.type == "cpu":
        total.scatter_add_(0, ids.long()[:, None].expand_as(values), values)
    else:
        total.add_(_sum_by_id(values, ids, len(total)))


def _leaf_slots(buffer: Tensor, target: Target, shape: tuple[int, int]) -> list[tuple[Tensor, slice]]:
    """The slots of leaves of `shape` (B, T) as views [m, B, n, H] of `buffer`, each with the m * n positions in it."""
    batch, length = shape
    views = []
    for place, part in _places(buffer, target, batch, batch * length):
        positions = slice((part.start or 0) // batch, None if part.stop is None else part.stop // batch)
        views.append((place.transpose(1, 2) if place.dim() == 4 else place[None, :, None], positions))
    return views


def _in_slots(values: Tensor, positions: slice) -> Tensor:
    """The `positions` of `values` [B, T, ...] in the order of their slots, [m, B, n, ...]: one, or all in pairs."""
    chosen = values[:, positions]
    return chosen.unflatten(1, (-1, min(2, chosen.shape[1]))).transpose(0, 1)


def _each_side(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """The ids of the left ones and the right ones, in the order of the rows [n] that merge them."""
    left, right = (pairs.ids[:, side::2].t().flatten() for side in (0, 1))
    return left, right


def _cells_of(pairs: Pairs, ids: tuple[Tensor, Tensor]) -> Tensor:
    """Their cell states [n, 2, H], of the `ids` of each side."""
    return torch.stack([pairs.cell.index_select(0, side) for side in ids], dim=1)


def _gates_of(pairs: Pairs, ids: tuple[Tensor, Tensor]) -> Tensor:
    """Their gates' values [n, 5H], of the `ids` of each side."""
    left, right = (terms.index_select(0, side) for terms, side in zip(pairs.terms, ids, strict=True))
    return _activate(left.add_(right), pairs.cell.shape[1])


def _activate(gates: Tensor, size: int) -> Tensor:
    """Replace the gates' sums [n, (3 + F) * H] by their values; gives them."""
    gates[:, :size].sigmoid_()
    gates[:, size : 2 * size].tanh_()
    gates[:, 2 * size :].sigmoid_()
    return gates


def _finish(gates: Tensor, cell: Tensor, out: Pair, places: Places) -> None:
    """The rest of a cell, of its `gates`' values [n, (3 + F) * H]."""
    i, g, o, *forgets = gates.split(cell.shape[-1], dim=1)
    after = _cell(i, g, forgets, cell)
    _put(out[1], places, after)
    hidden = after.tanh_().mul_(o)
    _put(out[0], places, hidden)
    if places.prefixes is not None:
        _write(places.prefixes.hidden, places.target, places.batch, hidden)


def _differentiate(gradient: Pair, places: Places, gates: Tensor, cell: Tensor, of_cell: Tensor) -> None:
    """The slopes, which replace the gates' values, and the gradient of the cell states before, as `backward` does."""
    i, g, o, *forgets = gates.split(cell.shape[-1], dim=1)
    target, batch, prefixes, rights = places
    if prefixes is None:
        d_hidden, d_cell = (_read(part, target, batch, cell) for part in gradient)
    else:
        d_hidden = _read(prefixes.hidden, target, batch, cell)
        d_cell = torch.zeros_like(d_hidden)
        for total, part in zip((d_hidden, d_cell), gradient, strict=True):
            _add_lefts(total, part, prefixes.lefts, batch)
    if rights is not None:
        for total, part in zip((d_hidden, d_cell), gradient, strict=True):
            _add_rights(total, part, rights, batch)
    activated = _cell(i, g, forgets, cell).tanh_()
    product = d_hidden * o
    d_cell += _tanh_backward.grad_input(product, activated, grad_input=product)
    _sigmoid_backward.grad_input(d_hidden.mul_(activated), o, grad_input=o)
    for_i = torch.mul(d_cell, g, out=product)
    for_g = torch.mul(d_cell, i, out=activated)
    _sigmoid_backward.grad_input(for_i, i, grad_input=i)
    _tanh_backward.grad_input(for_g, g, grad_input=g)
    for forget, before, d_before in zip(forgets, cell.unbind(1), of_cell.unbind(1), strict=True):
        torch.mul(d_cell, before, out=product)  # first, as its gradient may take its place
        torch.mul(d_cell, forget, out=d_before)
        _sigmoid_backward.grad_input(product, forget, grad_input=forget)


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


def _put(buffer: Tensor, places: Places, states: Tensor) -> None:
    """Copy `states` [n, H] to all of their slots of `buffer` [slots, H]."""
    target, batch, prefixes, rights = places
    if prefixes is None:
        _write(buffer, target, batch, states)
    else:
        _write_lefts(buffer, prefixes.lefts, batch, states)
    if rights is not None:
        _write_rights(buffer, rights, batch, states)


def _starts(first: int, lefts: Lefts, batch: int) -> Iterator[tuple[slice, Target, Lefts]]:
    """By level, the block that rows start with: its slots, its places among all prefixes, where it is a left one."""
    for level in range(lefts.level + 1):
        slot = first + level * batch
        target = Target.evenly(2**level - 1, 0, 1, lefts.length)
        yield slice(slot, slot + batch), target, lefts.at(level, batch)


def _write_lefts(buffer: Tensor, lefts: Lefts, batch: int, states: Tensor) -> None:
    """Copy the `states` [n, H] of prefixes to where they are left ones, in `buffer` [slots, H]."""
    for run, count in lefts.runs(len(states) // batch, batch):
        _run(buffer, run, count, batch).copy_(states[: count * batch].view(count, batch, -1))


def _add_lefts(total: Tensor, buffer: Tensor, lefts: Lefts, batch: int) -> Tensor:
    """Add to `total` [n, H], of prefixes, what is in `buffer` [slots, H] where they are left ones; gives it."""
    for run, count in lefts.runs(len(total) // batch, batch):
        total[: count * batch].view(count, batch, -1).add_(_run(buffer, run, count, batch))
    return total


def _write_rights(buffer: Tensor, rights: Rights, batch: int, states: Tensor) -> None:
    """Copy every second of the `states` [n, H] of blocks to where they are right ones, in `buffer` [slots, H]."""
    blocks = states.view(-1, batch, states.shape[1])
    for run, which in rights.runs(len(blocks), batch):
        _run(buffer, run, len(blocks[which]), batch).copy_(blocks[which])


def _add_rights(total: Tensor, buffer: Tensor, rights: Rights, batch: int) -> None:
    """Add to `total` [n, H], of blocks, what is in `buffer` [slots, H] where every second is a right one."""
    blocks = total.view(-1, batch, total.shape[1])
    for run, which in rights.runs(len(blocks), batch):
        blocks[which].add_(_run(buffer, run, len(blocks[which]), batch))


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
