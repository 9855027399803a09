"""What the Triton kernels share: where states are, and the mathematics of a state; imported only when they run.

With `TRITON_INTERPRET=1` set before the import they run on a CPU, slowly, to be tested.
"""

# The arguments of a kernel are values of Triton's language, which have no Python types.
# mypy: disable-error-code="no-untyped-def"

import os
from typing import Any

import torch
from torch import Tensor

from .fused import Prefixes
from .layout import Rights, Target

try:
    import triton
    import triton.language as tl
    from triton.tools.tensor_descriptor import TensorDescriptor as TensorDescriptor  # for `cell_kernels.py`
except ImportError as error:
    raise ImportError("`backend='triton'` needs triton 3.6 or newer: `pip install --upgrade triton`.") from error

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# Whether instructions of the GPU can be named.
PTX = tl.constexpr(not INTERPRETED and torch.version.hip is None)

# Sizes that change with the batch and its length: not worth a compilation each.
PLACES = ["paired", "base", "pair", "side", "row", "odd", "odd_row"]
LEFTS, RIGHTS = ["first", "level", "length", "left_slot"], ["block", "start_slot", "right_slot"]
VARYING = ["count", "batch", "ids_row", "ids_step", "known", *PLACES, *LEFTS, *RIGHTS]


def in_pairs(target: Target, batch: int, count: int) -> tuple[int, ...]:
    """The arguments of `slots_of`: how many merges have a partner, and `target`."""
    return count // batch // 2 * 2, *target


def of_prefixes(prefixes: Prefixes | None) -> tuple[Any, ...]:
    """The arguments of the kernels that make or read prefixes."""
    return (None, 0, 0, 0, 0) if prefixes is None else (prefixes.hidden, *prefixes.lefts)


def of_rights(rights: Rights | None) -> tuple[int | None, ...]:
    """The arguments of the kernels that make or read blocks."""
    return (None, 0, 0) if rights is None else rights


def tiles_of(count: int, size: int, rows: int, columns: int = 128) -> tuple[tuple[int, int], dict[str, int]]:
    """Grid and sizes of a kernel that does something to each of `count` states of `size`, so many at a time."""
    columns = min(columns, triton.next_power_of_2(size))
    grid = triton.cdiv(count, rows), triton.cdiv(size, columns)
    return grid, {"SIZE": size, "ROWS": rows, "COLUMNS": columns}


def total(parts: Tensor) -> Tensor:
    """The sum of `parts` [n, ...] over n: of few in one kernel, of more in two."""
    count, width = len(parts), parts.shape[1:].numel()
    at_once = 1024 if count <= 1024 else 256
    programs = max(1, triton.cdiv(count, at_once))
    sums = parts.new_empty(programs, *parts.shape[1:])
    rows, warps = (128, 4) if count <= 128 else (at_once, at_once // 64)
    sizes = {"PARTS": at_once, "ROWS": rows, "COLUMNS": 16, "num_warps": warps}
    # The first dimension of a grid alone may pass 65,535.
    _sum[(triton.cdiv(width, 16), programs)](parts, sums, count, width, **sizes)
    return sums[0] if programs == 1 else total(sums)


@triton.jit(do_not_specialize=["count", "width"])
def _sum(
    parts_ptr,  # [count, width], float32
    sums_ptr,  # [programs, width], float32
    count,
    width,
    PARTS: tl.constexpr,  # how many of the parts a program adds up
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The sums of every PARTS of the parts."""
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    first = tl.program_id(1) * PARTS
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(first, tl.minimum(first + PARTS, count), ROWS):
        rows = start + tl.arange(0, ROWS)
        inside = (rows < count)[:, None] & (columns < width)[None, :]
        total += tl.load(parts_ptr + rows.to(tl.int64)[:, None] * width + columns[None, :], mask=inside, other=0.0)
    at = tl.program_id(1).to(tl.int64) * width + columns
    tl.store(sums_ptr + at, tl.sum(total, 0), mask=columns < width)


@triton.jit
def slots_of(rows, batch, paired, base, pair, side, row, odd, odd_row):
    """The slots of the results `rows` (`layout.Target`), as int64: times H they may pass 2**31."""
    merge = rows // batch
    member = (rows % batch).to(tl.int64)
    in_pair = base + (merge >> 1).to(tl.int64) * pair + (merge & 1).to(tl.int64) * side + member * row
    return tl.where(merge < paired, in_pair, odd + member * odd_row)


@triton.jit
def sigmoid(x, TIMES: tl.constexpr = 1):
    """Of TIMES `x`; as exact as Triton's own but for numbers below 2**-126, which cost thrice the instructions."""
    if PTX:
        power = x * (-1.4426950408889634 * TIMES)
        power = tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [power], dtype=tl.float32, is_pure=True, pack=1
        )
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [1 + power], dtype=tl.float32, is_pure=True, pack=1
        )
    return tl.sigmoid(TIMES * x)


@triton.jit
def tanh(x, EXACT: tl.constexpr):
    """By its series where the formula with the exponential loses the digits of a small result.

    Not EXACT: to 2e-5 of the result, a twentieth of what float16 rounds.
    """
    if EXACT:
        square = x * x
        small = square < 0.04
        series = x * (1 + square * (-1 / 3 + square * (2 / 15 - square * (17 / 315))))
    else:
        small = tl.abs(x) < 0.006
        series = x
    return tl.where(small, series, 2 * sigmoid(x, 2) - 1)


@triton.jit
def keep_gate(value, at, inside):
    """Store a gate's `value` for the backward, 1,024-fold: or if that is nearer to 0, the value less 1.

    Near 1 float16 would lose, of the value itself, all that the gradient of an open gate is made of.
    """
    lacking = tl.minimum((value - 1) * 1024, -1 / 16384)  # of an open one never 0, which is that of a closed one
    kept = tl.where(value > 0.5, lacking, value * 1024)
    tl.store(at, kept.to(at.dtype.element_ty), mask=inside)


@triton.jit
def kept_gate(at, inside):
    """The value that `keep_gate` stored."""
    kept = tl.load(at, mask=inside, other=0.0).to(tl.float32) * (1 / 1024)
    return tl.where(kept < 0, 1 + kept, kept)


@triton.jit
def multiply(x, w, onto, WIDEN: tl.constexpr):
    """`x` times `w`, added to `onto`; exact where they are float32."""
    if WIDEN:
        x = x.to(tl.float32)
        w = w.to(tl.float32)
    return tl.dot(x, w, onto, input_precision="ieee")


@triton.jit
def appends_of(length, level):
    """How many appends of a level prefixes of up to `length` tokens have (`layout.Lefts`)."""
    return ((length >> level) - 1) // 2


@triton.jit
def _at_slots(buffers, hidden, cell, slots, columns, here, SIZE: tl.constexpr, BACK: tl.constexpr):
    """Store states at `slots`, or BACK: give the gradients `hidden` and `cell` with those there added."""
    hidden_ptr, cell_ptr = buffers
    at = slots[:, None] * SIZE + columns[None, :]
    if BACK:
        hidden += tl.load(hidden_ptr + at, mask=here, other=0.0).to(tl.float32)
        cell += tl.load(cell_ptr + at, mask=here, other=0.0)
    else:
        tl.store(hidden_ptr + at, hidden.to(hidden_ptr.dtype.element_ty), mask=here)
        tl.store(cell_ptr + at, cell, mask=here)
    return hidden, cell


@triton.jit
def at_lefts(
    buffers, hidden, cell, number, member, lefts, batch, columns, inside, SIZE: tl.constexpr, BACK: tl.constexpr
):
    """Store the states of prefixes of `number` blocks where they are left ones (`layout.Lefts`).

    BACK: give the gradients `hidden` and `cell` with those added that the prefixes have there.
    """
    level, length, slot = lefts
    slot = slot.to(tl.int64)
    for below in range(1, level + 1):
        appends = appends_of(length, level - below)
        append = (number << (below - 1)) - 1
        slots = slot + 2 * (append.to(tl.int64) * batch + member)
        here = inside & (append < appends)[:, None]
        hidden, cell = _at_slots(buffers, hidden, cell, slots, columns, here, SIZE, BACK)
        slot += 2 * appends * batch
    return hidden, cell


@triton.jit
def at_rights(buffers, hidden, cell, rights, rows, batch, columns, inside, SIZE: tl.constexpr, BACK: tl.constexpr):
    """Store the states of every second of the blocks `rows` where these are merged again, if any (`layout.Rights`).

    BACK: give the gradients `hidden` and `cell` with those added that the blocks have there.
    """
    block, start_slot, right_slot = rights
    if block is not None:
        number, member = block + rows // batch, (rows % batch).to(tl.int64)
        append = (number // 2 - 1).to(tl.int64)
        slots = tl.where(number == 0, start_slot + member, right_slot + 2 * (append * batch + member))
        here = inside & (number % 2 == 0)[:, None]
        hidden, cell = _at_slots(buffers, hidden, cell, slots, columns, here, SIZE, BACK)
    return hidden, cell


@triton.jit
def finish_cell(
    sums,
    left_cell_at,
    right_cell_at,
    gates_ptr,
    out,
    prefixes_ptr,
    lefts,
    rights,
    rows,
    columns,
    inside,
    places,
    slots,
    SIZE: tl.constexpr,
    STATES: tl.constexpr,
    KEEP: tl.constexpr,
    UNIT: tl.constexpr,
):
    """The rest of a cell, of its gates' `sums`."""
    i, g, o, left, right = sums
    hidden_out_ptr, cell_out_ptr = out
    batch, paired, base, pair, side, row, odd, odd_row = places
    exact: tl.constexpr = hidden_out_ptr.dtype.element_ty == tl.float32
    if KEEP:
        gates_at = gates_ptr + rows.to(tl.int64)[:, None] * ((3 + STATES) * SIZE) + columns[None, :]
    # In this order the registers suffice; in others some are spilled.
    left = sigmoid(left)
    if KEEP:
        keep_gate(left, gates_at + 3 * SIZE, inside)
    cell = left * tl.load(left_cell_at, mask=inside, other=0.0)
    if STATES == 2:
        right = sigmoid(right)
        if KEEP:
            keep_gate(right, gates_at + 4 * SIZE, inside)
        cell += right * tl.load(right_cell_at, mask=inside, other=0.0)
    i = sigmoid(i)
    if KEEP:
        keep_gate(i, gates_at, inside)
        tl.store(gates_at + SIZE, g.to(gates_ptr.dtype.element_ty), mask=inside)
    cell += i * tanh(g, exact)
    o = sigmoid(o)
    if KEEP:
        keep_gate(o, gates_at + 2 * SIZE, inside)
    if slots is None:
        slots = slots_of(rows, batch, paired, base, pair, side, row, odd, odd_row)
    out_at = slots[:, None] * SIZE + columns[None, :]
    if prefixes_ptr is None:
        tl.store(cell_out_ptr + out_at, cell, mask=inside)
    hidden = o * tanh(cell, exact) / UNIT
    if prefixes_ptr is None:
        tl.store(hidden_out_ptr + out_at, hidden.to(hidden_out_ptr.dtype.element_ty), mask=inside)
    else:
        tl.store(prefixes_ptr + out_at, hidden.to(prefixes_ptr.dtype.element_ty), mask=inside)
        first, level, length, left_slot = lefts
        number, member, lefts = first + 2 * (rows // batch), rows % batch, (level, length, left_slot)
        at_lefts(out, hidden, cell, number, member, lefts, batch, columns, inside, SIZE, BACK=False)
    at_rights(out, hidden, cell, rights, rows, batch, columns, inside, SIZE, BACK=False)
