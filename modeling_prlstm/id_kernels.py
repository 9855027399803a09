"""Triton kernels for what is done by tokens' ids: sums of gradients over equal ids, and merges of known states.

Imported only when they run.
"""

# The arguments of a kernel are values of Triton's language, which have no Python types.
# mypy: disable-error-code="no-untyped-def"

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from .fused import Pair, Pairs, Places
from .kernel_parts import (
    INTERPRETED,
    VARYING,
    at_rights,
    finish_cell,
    in_pairs,
    of_rights,
    sigmoid,
    slots_of,
    tanh,
    tiles_of,
    tl,
    total,
    triton,
)
from .layout import Target

# Up to this many ids, the gradients of their states are summed by products with one-hot ids. Else they are sorted, and
# windows of this many tokens in that order are summed apart where they have one id, so that no program has many more.
ONE_HOT_IDS, WINDOW = 128, 1024

# The same of tokens that were merged by their ids, of each of which there is more to do.
PAIRS_WINDOW = 128

# Merging by ids is worth it for so many merges, this many times more than ids, and of so many ids the terms fit the
# cache.
MERGES_BY_IDS, FEWER_IDS, IDS_IN_CACHE = 16384, 4, 2048


def are_many(ids: int) -> bool:
    """Whether `sum_by_id` needs an order of so many `ids`."""
    return ids > ONE_HOT_IDS


def merges_by_ids(ids: int, merges: int) -> bool:
    """`fused.Arithmetic.merges_by_ids`."""
    return ids <= IDS_IN_CACHE and merges >= max(MERGES_BY_IDS, FEWER_IDS * ids)


class Ordered(NamedTuple):
    """Tokens by id, once the stream has waited for them.

    Attributes:
        order: of the tokens [n].
        keys: theirs in that order [n].
        starts: where each key begins there [keys + 1].
        ready: when that is so; None: at once.
        read: what is read until then, and must stay.
    """

    order: Tensor
    keys: Tensor
    starts: Tensor
    ready: torch.cuda.Event | None
    read: tuple[Tensor, ...]

    def wait(self) -> None:
        """Let what follows on this stream wait."""
        if self.ready is not None:
            torch.cuda.current_stream().wait_event(self.ready)


@cache
def _stream_beside(stream: torch.cuda.Stream) -> torch.cuda.Stream:
    """One of its own for each: that of a stream which a graph captures is closed to others' work until its end."""
    return torch.cuda.Stream(stream.device)


def sort_by_id(ids: Tensor, known: int, sides: int) -> Ordered:
    """Bring the tokens with each of the `known` ids together, of `ids` [B, T]; with two `sides`, of each side apart.

    The left ones then have their ids for keys, and the right ones those of as many more. Unknown ids come last. On a
    GPU it is done by a stream of its own, whose many small kernels would else be waited for.
    """
    tokens, count = ids.numel(), sides * known
    narrow = torch.int16 if count < 2**15 else torch.int32  # quicker to sort
    # Memory of this stream, in which all of it stays until it was waited for: so no other use comes between.
    unsorted, keys = (torch.empty(tokens, dtype=narrow, device=ids.device) for _ in range(2))
    order, starts = (torch.empty(n, dtype=torch.int64, device=ids.device) for n in (tokens, count + 1))
    ordered = Ordered(order, keys, starts, None if INTERPRETED else torch.cuda.Event(), (ids, unsorted))
    with _beside(ordered):
        grid = (triton.cdiv(tokens, 256),)
        _keys[grid](ids, unsorted, *ids.stride(), known, len(ids), tokens, SIDES=sides, BLOCK=256)
        torch.sort(unsorted, stable=True, out=(keys, order))
        torch.searchsorted(keys, torch.arange(count + 1, dtype=narrow, device=ids.device), out=starts)
    return ordered


@contextmanager
def _beside(ordered: Ordered) -> Iterator[None]:
    """Work on the stream beside this one, until `ordered` is ready."""
    if ordered.ready is None:
        yield
        return
    beside = _stream_beside(torch.cuda.current_stream())
    beside.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(beside):
            yield
    except BaseException:
        torch.cuda.current_stream().wait_stream(beside)  # a capture that ends without would hide this error
        raise
    ordered.ready.record(beside)


def sum_by_id(gradient: Pair, target: Target, ids: Tensor, count: int, order: Ordered | None, in_tf32: bool) -> Pair:
    """The gradients [V, H] of the `count` leaves, summed over the slots of equal `ids` [B, T].

    Args:
        gradient: of all slots.
        target: the slots of the tokens.
        ids: see above.
        count: see above.
        order: of many ids.
        in_tf32: whether few are summed by products in TF32.
    """
    if order is None:
        of_hidden, of_cell = _sum_few(gradient, target, ids, count, "tf32" if in_tf32 else "ieee")
    else:
        order.wait()
        of_hidden, of_cell = (_sum_sorted_rows(part, order, target, len(ids)) for part in gradient)
    return of_hidden, of_cell


def _sum_few(gradient: Pair, target: Target, ids: Tensor, count: int, precision: str) -> Tensor:
    """`sum_by_id` [2, V, H] by products with one-hot ids in `precision`, as `tl.dot` calls it."""
    batch, length = ids.shape
    size = gradient[0].shape[-1]
    padded = max(16, triton.next_power_of_2(count))
    columns = min(64 if padded <= 64 else 32, max(16, triton.next_power_of_2(size)))
    parts = min(128, 8192 // padded, triton.cdiv(batch * length, 64))
    sums = gradient[1].new_empty(parts, 2, count, size)
    _sum_by_id[(parts, triton.cdiv(size, columns), 2)](
        ids,
        *gradient,
        sums,
        *ids.stride(),
        count,
        batch,
        length,
        *in_pairs(target, batch, batch * length),
        SIZE=size,
        PRECISION=precision,
        IDS=padded,
        ROWS=32,
        COLUMNS=columns,
    )
    return total(sums)


def _sum_sorted_rows(rows: Tensor, ordered: Ordered, target: Target, batch: int) -> Tensor:
    """The sums [V, W] of the `rows` [n, W] at the `target` of the tokens of each of V keys."""
    order, keys, starts, *_ = ordered
    count, windows, width = len(starts) - 1, len(order) // WINDOW, rows.shape[1]
    places = batch, *in_pairs(target, batch, len(order))
    columns = min(128, triton.next_power_of_2(width))
    sizes = {"WINDOW": WINDOW, "SIZE": width, "ROWS": 16, "COLUMNS": columns, "num_warps": 2}
    of_windows, sums = (rows.new_empty(n, width, dtype=torch.float32) for n in (windows, count))
    if windows:
        _sum_windows[windows, triton.cdiv(width, columns)](order, keys, rows, of_windows, *places, **sizes)
    _sum_sorted[count, triton.cdiv(width, columns)](order, starts, rows, of_windows, sums, *places, **sizes)
    return sums


def merge_by_ids(pairs: Pairs, unit: float, out: Pair, places: Places) -> None:
    """`fused.Arithmetic.forward_by_ids`, with hidden states in `unit`."""
    ids, terms, cell = pairs
    count, size = ids.numel() // 2, cell.shape[1]
    grid, sizes = tiles_of(count, size, 4)
    _forward[grid](
        *(ids, terms, cell, *out, *of_rights(places.rights), *ids.stride(), len(cell), count, places.batch),
        *in_pairs(places.target, places.batch, count),
        UNIT=unit,
        **sizes,
        num_warps=4,  # 4 states a thread
    )


def merge_by_ids_backward(
    gradient: Pair, places: Places, pairs: Pairs, order: Ordered, into: Pair, exact: bool
) -> None:
    """`fused.Arithmetic.backward_by_ids`, with tanh as `exact` as float32 or as half of its bits."""
    ids, terms, cell = pairs
    (known, size), tokens = cell.shape, ids.numel()
    order.wait()
    columns, windows = min(128, triton.next_power_of_2(size)), tokens // PAIRS_WINDOW
    of_windows = cell.new_empty(windows, 6 * size)
    read = *gradient, *of_rights(places.rights), ids, terms, cell, order.order
    where = *ids.stride(), known, places.batch, *in_pairs(places.target, places.batch, tokens // 2)
    sizes = {"WINDOW": PAIRS_WINDOW, "SIZE": size, "EXACT": exact}
    sizes |= {"ROWS": 4, "COLUMNS": columns, "num_warps": 4}  # 4 states a thread
    if windows:
        _pairs_of_windows[windows, triton.cdiv(size, columns)](*read, order.keys, of_windows, *where, **sizes)
    _pairs_of_ids[known, triton.cdiv(size, columns)](*read, order.starts, of_windows, *into, *where, **sizes)


@triton.jit
def _round_to_tf32(x):
    rounded = ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return tl.where(x == x, rounded, x)  # there are NaN that the sum makes a number


@triton.jit(do_not_specialize=VARYING)
def _sum_by_id(
    ids_ptr,  # [batch, length]
    hidden_slots_ptr,  # [slots, SIZE]
    cell_slots_ptr,  # [slots, SIZE], float32
    sums_ptr,  # [programs, 2, count, SIZE], float32
    ids_row,  # the ids' strides
    ids_step,
    count,
    batch,
    length,
    paired,
    base,
    pair,
    side,
    row,
    odd,
    odd_row,
    PRECISION: tl.constexpr,
    SIZE: tl.constexpr,
    IDS: tl.constexpr,  # at least count
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The sums of the slots of equal ids, over every ROWS-th part of the leaves that falls to a program."""
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    every = tl.arange(0, IDS)
    total = tl.zeros((IDS, COLUMNS), tl.float32)
    for start in range(tl.program_id(0) * ROWS, batch * length, tl.num_programs(0) * ROWS):
        rows = start + tl.arange(0, ROWS)
        in_rows = rows < batch * length
        inside = in_rows[:, None] & (columns < SIZE)[None, :]
        ids_at = (rows % batch).to(tl.int64) * ids_row + rows // batch * ids_step
        ids = tl.load(ids_ptr + ids_at, mask=in_rows, other=-1)
        at = slots_of(rows, batch, paired, base, pair, side, row, odd, odd_row)[:, None] * SIZE + columns[None, :]
        one_hot = (ids[None, :] == every[:, None]).to(tl.float32)
        if tl.program_id(2) == 0:
            values = tl.load(hidden_slots_ptr + at, mask=inside, other=0.0).to(tl.float32)
        else:
            values = tl.load(cell_slots_ptr + at, mask=inside, other=0.0)
        if PRECISION == "tf32":
            values = _round_to_tf32(values)  # the matrix units cut the excess bits off
        total = tl.dot(one_hot, values, total, input_precision=PRECISION)
    inside = (every < count)[:, None] & (columns < SIZE)[None, :]
    own = tl.program_id(0).to(tl.int64) * 2 + tl.program_id(2)
    tl.store(sums_ptr + own * count * SIZE + every[:, None] * SIZE + columns[None, :], total, mask=inside)


@triton.jit(do_not_specialize=["ids_row", "ids_step", "known", "batch", "count"])
def _keys(ids_ptr, keys_ptr, ids_row, ids_step, known, batch, count, SIDES: tl.constexpr, BLOCK: tl.constexpr):
    """The keys of `sort_by_id`."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    position = at // batch
    ids_at = ids_ptr + (at % batch).to(tl.int64) * ids_row + position * ids_step
    ids = tl.load(ids_at, mask=at < count, other=0).to(tl.int64)
    keys = tl.where((ids >= 0) & (ids < known), ids + position % SIDES * known, SIDES * known)
    tl.store(keys_ptr + at, keys.to(keys_ptr.dtype.element_ty), mask=at < count)


@triton.jit
def _add_rows(
    total,
    first,
    stop,
    order_ptr,
    values_ptr,
    columns,
    batch,
    paired,
    base,
    pair,
    side,
    row,
    odd,
    odd_row,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """`total`, and to it the slots of the tokens from `first` to `stop`."""
    for start in range(first, stop, ROWS):
        places = start + tl.arange(0, ROWS)
        in_rows = places < stop
        inside = in_rows[:, None] & (columns < SIZE)[None, :]
        rows = tl.load(order_ptr + places, mask=in_rows, other=0).to(tl.int32)  # quicker to divide
        slots = slots_of(rows, batch, paired, base, pair, side, row, odd, odd_row)
        values = tl.load(values_ptr + slots[:, None] * SIZE + columns[None, :], mask=inside, other=0.0)
        total += values.to(tl.float32)
    return total


@triton.jit(do_not_specialize=VARYING)
def _sum_windows(
    order_ptr,  # [tokens], int64: the tokens sorted by their keys
    keys_ptr,  # [tokens], in that order
    values_ptr,  # [slots, SIZE]
    sums_ptr,  # [tokens // WINDOW, SIZE], float32
    batch,
    paired,
    base,
    pair,
    side,
    row,
    odd,
    odd_row,
    WINDOW: tl.constexpr,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The sums of the slots of WINDOW tokens, if they have one key."""
    first = tl.program_id(0).to(tl.int64) * WINDOW
    stop = first + WINDOW
    if tl.load(keys_ptr + first) == tl.load(keys_ptr + stop - 1):
        columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        places = batch, paired, base, pair, side, row, odd, odd_row
        total = _add_rows(total, first, stop, order_ptr, values_ptr, columns, *places, SIZE=SIZE, ROWS=ROWS)
        at = tl.program_id(0).to(tl.int64) * SIZE + columns
        tl.store(sums_ptr + at, tl.sum(total, 0), mask=columns < SIZE)


@triton.jit
def _windows_of(start, stop, WINDOW: tl.constexpr):
    """The whole windows from `start` to `stop`: the first, what is past the last, and which tokens these are."""
    first = (start + WINDOW - 1) // WINDOW
    last = stop // WINDOW
    return first, last, tl.where(first < last, first * WINDOW, stop), tl.where(first < last, last * WINDOW, stop)


@triton.jit(do_not_specialize=VARYING)
def _sum_sorted(
    order_ptr,  # [tokens], int64: the tokens sorted by their keys
    starts_ptr,  # [keys + 1], int64: where each key begins among them
    values_ptr,  # [slots, SIZE]
    windows_ptr,  # [tokens // WINDOW, SIZE], float32: the sums of `_sum_windows`
    sums_ptr,  # [keys, SIZE], float32
    batch,
    paired,
    base,
    pair,
    side,
    row,
    odd,
    odd_row,
    WINDOW: tl.constexpr,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The sums of the slots of one key: of its windows, and of what is before and after these."""
    own = tl.program_id(0)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    start = tl.load(starts_ptr + own)
    stop = tl.load(starts_ptr + own + 1)
    first, last, before, after = _windows_of(start, stop, WINDOW)
    in_windows = tl.zeros((COLUMNS,), tl.float32)
    for window in range(first, last):
        in_windows += tl.load(windows_ptr + window * SIZE + columns, mask=columns < SIZE, other=0.0)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    places = batch, paired, base, pair, side, row, odd, odd_row
    total = _add_rows(total, start, before, order_ptr, values_ptr, columns, *places, SIZE=SIZE, ROWS=ROWS)
    total = _add_rows(total, after, stop, order_ptr, values_ptr, columns, *places, SIZE=SIZE, ROWS=ROWS)
    at = own.to(tl.int64) * SIZE + columns
    tl.store(sums_ptr + at, tl.sum(total, 0) + in_windows, mask=columns < SIZE)


@triton.jit(do_not_specialize=VARYING)
def _forward(
    ids_ptr,  # [batch, 2 * merges]
    terms_ptr,  # [2, known, 5 * SIZE], float32, with the bias in the left ones
    cell_ptr,  # [known, SIZE], float32
    hidden_out_ptr,  # [slots, SIZE], in UNIT
    cell_out_ptr,  # [slots, SIZE], float32
    block,  # with the next two: `layout.Rights`; None: the results go nowhere else
    start_slot,
    right_slot,
    ids_row,  # the ids' strides
    ids_step,
    known,
    count,
    batch,
    paired,
    base,
    pair,
    side,
    row,
    odd,
    odd_row,
    SIZE: tl.constexpr,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """`fused.Arithmetic.forward_by_ids`; one program makes ROWS x COLUMNS states. Unknown ids give NaN."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    in_columns = columns < SIZE
    inside = (rows < count)[:, None] & in_columns[None, :]
    ids_at = ids_ptr + (rows % batch).to(tl.int64) * ids_row + rows // batch * 2 * ids_step
    left_id = tl.load(ids_at, mask=rows < count, other=0).to(tl.int64)
    right_id = tl.load(ids_at + ids_step, mask=rows < count, other=0).to(tl.int64)
    are_known = (left_id >= 0) & (left_id < known) & (right_id >= 0) & (right_id < known)
    left_id, right_id = tl.where(are_known, left_id, 0), tl.where(are_known, right_id, 0)  # their cell states are read
    nan: tl.constexpr = float("nan")
    here = inside & are_known[:, None]
    left_at = terms_ptr + left_id[:, None] * (5 * SIZE) + columns[None, :]
    right_at = terms_ptr + (known + right_id)[:, None] * (5 * SIZE) + columns[None, :]
    i = tl.load(left_at, mask=here, other=nan) + tl.load(right_at, mask=here, other=nan)
    g = tl.load(left_at + SIZE, mask=here, other=nan) + tl.load(right_at + SIZE, mask=here, other=nan)
    o = tl.load(left_at + 2 * SIZE, mask=here, other=nan) + tl.load(right_at + 2 * SIZE, mask=here, other=nan)
    left = tl.load(left_at + 3 * SIZE, mask=here, other=nan) + tl.load(right_at + 3 * SIZE, mask=here, other=nan)
    right = tl.load(left_at + 4 * SIZE, mask=here, other=nan) + tl.load(right_at + 4 * SIZE, mask=here, other=nan)
    left_cell_at = cell_ptr + left_id[:, None] * SIZE + columns[None, :]
    right_cell_at = cell_ptr + right_id[:, None] * SIZE + columns[None, :]
    sums = i, g, o, left, right
    places = batch, paired, base, pair, side, row, odd, odd_row
    out = hidden_out_ptr, cell_out_ptr
    finish_cell(
        sums,
        left_cell_at,
        right_cell_at,
        None,
        out,
        None,
        (0, 0, 0, 0),
        (block, start_slot, right_slot),
        rows,
        columns,
        inside,
        places,
        None,
        SIZE,
        2,
        False,
        UNIT,
    )


@triton.jit
def _others(start, stop, order_ptr, ids_ptr, ids_row, ids_step, batch, ROWS: tl.constexpr):
    """The rows that merge the ROWS tokens from `start` on, and the other ids there."""
    at = start + tl.arange(0, ROWS)
    tokens = tl.load(order_ptr + at, mask=at < stop, other=0).to(tl.int32)  # quicker to divide
    position, member = tokens // batch, tokens % batch
    ids_at = ids_ptr + member.to(tl.int64) * ids_row + (position ^ 1) * ids_step
    return (position >> 1) * batch + member, tl.load(ids_at, mask=at < stop, other=0).to(tl.int64)


@triton.jit
def _add_pairs(
    totals,
    first,
    stop,
    of_side,
    gradients,
    rights,
    tables,
    order_ptr,
    columns,
    batch,
    places,
    SIZE: tl.constexpr,
    EXACT: tl.constexpr,
    ROWS: tl.constexpr,
):
    """`totals`, and to them the gradients by the tokens from `first` to `stop`, which are one id on one side.

    They are of the sums of the gates i, g, o, the own and the other's forget gate, and of the own cell state.
    """
    hidden_gradient_ptr, cell_gradient_ptr = gradients
    ids_ptr, ids_row, ids_step, known, terms_ptr, cell_ptr = tables
    side, own_id = of_side
    i_total, g_total, o_total, own_total, other_total, cell_total = totals
    in_columns = columns < SIZE
    own_gate, other_gate = (3 + side) * SIZE, (4 - side) * SIZE
    own_at = terms_ptr + (side * known + own_id) * (5 * SIZE) + columns
    own_i = tl.load(own_at, mask=in_columns, other=0.0)[None, :]
    own_g = tl.load(own_at + SIZE, mask=in_columns, other=0.0)[None, :]
    own_o = tl.load(own_at + 2 * SIZE, mask=in_columns, other=0.0)[None, :]
    own_own = tl.load(own_at + own_gate, mask=in_columns, other=0.0)[None, :]
    own_other = tl.load(own_at + other_gate, mask=in_columns, other=0.0)[None, :]
    own_cell = tl.load(cell_ptr + own_id * SIZE + columns, mask=in_columns, other=0.0)[None, :]
    nan: tl.constexpr = float("nan")
    ahead = _others(first, stop, order_ptr, ids_ptr, ids_row, ids_step, batch, ROWS=ROWS)
    for start in range(first, stop, ROWS):
        inside = (start + tl.arange(0, ROWS) < stop)[:, None] & in_columns[None, :]
        rows, other_ids = ahead
        ahead = _others(start + ROWS, stop, order_ptr, ids_ptr, ids_row, ids_step, batch, ROWS=ROWS)
        are_known = (other_ids >= 0) & (other_ids < known)
        here = inside & are_known[:, None]
        other_at = terms_ptr + ((1 - side) * known + other_ids)[:, None] * (5 * SIZE) + columns[None, :]
        i = sigmoid(own_i + tl.load(other_at, mask=here, other=nan))
        g = tanh(own_g + tl.load(other_at + SIZE, mask=here, other=nan), EXACT)
        o = sigmoid(own_o + tl.load(other_at + 2 * SIZE, mask=here, other=nan))
        own = sigmoid(own_own + tl.load(other_at + own_gate, mask=here, other=nan))
        other = sigmoid(own_other + tl.load(other_at + other_gate, mask=here, other=nan))
        other_cell = tl.load(cell_ptr + other_ids[:, None] * SIZE + columns[None, :], mask=here, other=0.0)
        activated = tanh(i * g + own * own_cell + other * other_cell, EXACT)

        slots = slots_of(rows, batch, *places)
        at = slots[:, None] * SIZE + columns[None, :]
        d_hidden = tl.load(hidden_gradient_ptr + at, mask=inside, other=0.0).to(tl.float32)
        d_cell = tl.load(cell_gradient_ptr + at, mask=inside, other=0.0)
        d_hidden, d_cell = at_rights(
            gradients, d_hidden, d_cell, rights, rows, batch, columns, inside, SIZE, BACK=True
        )
        d_cell += d_hidden * o * (1 - activated * activated)
        i_total += tl.where(inside, d_cell * g * i * (1 - i), 0.0)
        g_total += tl.where(inside, d_cell * i * (1 - g * g), 0.0)
        o_total += tl.where(inside, d_hidden * activated * o * (1 - o), 0.0)
        own_total += tl.where(inside, d_cell * own_cell * own * (1 - own), 0.0)
        other_total += tl.where(inside, d_cell * other_cell * other * (1 - other), 0.0)
        cell_total += tl.where(inside, d_cell * own, 0.0)
    return i_total, g_total, o_total, own_total, other_total, cell_total


@triton.jit
def _add_each(totals, at, mask, SIZE: tl.constexpr):
    """`totals`, and to each its SIZE columns at `at`."""
    a, b, c, d, e, f = totals
    a += tl.load(at, mask=mask, other=0.0)
    b += tl.load(at + SIZE, mask=mask, other=0.0)
    c += tl.load(at + 2 * SIZE, mask=mask, other=0.0)
    d += tl.load(at + 3 * SIZE, mask=mask, other=0.0)
    e += tl.load(at + 4 * SIZE, mask=mask, other=0.0)
    f += tl.load(at + 5 * SIZE, mask=mask, other=0.0)
    return a, b, c, d, e, f


@triton.jit(do_not_specialize=VARYING)
def _pairs_of_windows(
    hidden_gradient_ptr,  # [slots, SIZE]
    cell_gradient_ptr,  # [slots, SIZE], float32
    block,  # with the next two: `layout.Rights`; None: the results are read nowhere else
    start_slot,
    right_slot,
    ids_ptr,  # [batch, 2 * merges]
    terms_ptr,  # [2, known, 5 * SIZE], float32
    cell_ptr,  # [known, SIZE], float32
    order_ptr,  # [tokens], int64: the tokens sorted by their keys
    keys_ptr,  # [tokens], in that order
    sums_ptr,  # [tokens // WINDOW, 6 * SIZE], float32
    ids_row,  # the ids' strides
    ids_step,
    known,
    batch,
    paired,
    base,
    pair,
    side,
    row,
    odd,
    odd_row,
    WINDOW: tl.constexpr,
    SIZE: tl.constexpr,
    EXACT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """What `_add_pairs` sums, of WINDOW tokens, if they have one key and that is known."""
    first = tl.program_id(0).to(tl.int64) * WINDOW
    key = tl.load(keys_ptr + first).to(tl.int64)
    if (key == tl.load(keys_ptr + first + WINDOW - 1)) & (key < 2 * known):
        columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        gradients, rights = (hidden_gradient_ptr, cell_gradient_ptr), (block, start_slot, right_slot)
        tables = ids_ptr, ids_row, ids_step, known, terms_ptr, cell_ptr
        places = paired, base, pair, side, row, odd, odd_row
        of_side = key // known, key % known
        zeros = tl.zeros((ROWS, COLUMNS), tl.float32)
        totals = zeros, zeros, zeros, zeros, zeros, zeros
        reads = gradients, rights, tables, order_ptr, columns, batch, places
        totals = _add_pairs(totals, first, first + WINDOW, of_side, *reads, SIZE=SIZE, EXACT=EXACT, ROWS=ROWS)
        at = sums_ptr + tl.program_id(0).to(tl.int64) * (6 * SIZE) + columns
        for number in tl.static_range(6):
            tl.store(at + number * SIZE, tl.sum(totals[number], 0), mask=columns < SIZE)


@triton.jit(do_not_specialize=VARYING)
def _pairs_of_ids(
    hidden_gradient_ptr,  # [slots, SIZE]
    cell_gradient_ptr,  # [slots, SIZE], float32
    block,  # with the next two: `layout.Rights`; None: the results are read nowhere else
    start_slot,
    right_slot,
    ids_ptr,  # [batch, 2 * merges]
    terms_ptr,  # [2, known, 5 * SIZE], float32
    cell_ptr,  # [known, SIZE], float32
    order_ptr,  # [tokens], int64: the tokens sorted by their keys
    starts_ptr,  # [2 * known + 1], int64: where each key begins among them
    windows_ptr,  # [tokens // WINDOW, 6 * SIZE], float32: the sums of `_pairs_of_windows`
    of_terms_ptr,  # like the terms
    of_cell_ptr,  # like the cell states
    ids_row,  # the ids' strides
    ids_step,
    known,
    batch,
    paired,
    base,
    pair,
    side,
    row,
    odd,
    odd_row,
    WINDOW: tl.constexpr,
    SIZE: tl.constexpr,
    EXACT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """`fused.Arithmetic.backward_by_ids` for one id: its windows on each side, and what is before and after these."""
    own = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    in_columns = columns < SIZE
    gradients, rights = (hidden_gradient_ptr, cell_gradient_ptr), (block, start_slot, right_slot)
    tables = ids_ptr, ids_row, ids_step, known, terms_ptr, cell_ptr
    places = paired, base, pair, side, row, odd, odd_row
    reads = gradients, rights, tables, order_ptr, columns, batch, places
    of_cell = tl.load(of_cell_ptr + own * SIZE + columns, mask=in_columns, other=0.0)
    for which in range(2):
        key = which * known + own
        start = tl.load(starts_ptr + key)
        stop = tl.load(starts_ptr + key + 1)
        first, last, before, after = _windows_of(start, stop, WINDOW)
        zeros = tl.zeros((ROWS, COLUMNS), tl.float32)
        totals = zeros, zeros, zeros, zeros, zeros, zeros
        for part in range(2):  # a loop, for the code to be there once
            begin = tl.where(part == 0, start, after)
            end = tl.where(part == 0, before, stop)
            totals = _add_pairs(totals, begin, end, (which, own), *reads, SIZE=SIZE, EXACT=EXACT, ROWS=ROWS)
        for window in range(first, last, ROWS):
            windows = window + tl.arange(0, ROWS)
            at = windows_ptr + windows[:, None] * (6 * SIZE) + columns[None, :]
            totals = _add_each(totals, at, (windows < last)[:, None] & in_columns[None, :], SIZE=SIZE)
        of_terms_at = of_terms_ptr + key * (5 * SIZE) + columns
        for number in tl.static_range(6):
            total = tl.sum(totals[number], 0)
            if number == 5:
                of_cell += total
            else:
                gate = number if number < 3 else (3 + which if number == 3 else 4 - which)
                at = of_terms_at + gate * SIZE
                tl.store(at, tl.load(at, mask=in_columns, other=0.0) + total, mask=in_columns)
    tl.store(of_cell_ptr + own * SIZE + columns, of_cell, mask=in_columns)
