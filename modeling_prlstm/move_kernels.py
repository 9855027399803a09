"""Triton kernels that move states between slots of a tree, leaves and prefixes; imported only when they run."""

# The arguments of a kernel are values of Triton's language, which have no Python types.
# mypy: disable-error-code="no-untyped-def"

from collections.abc import Sequence

from torch import Tensor

from .fused import NO_ID, NO_SLOT, Pair, Prefixes
from .kernel_parts import PLACES, VARYING, appends_of, at_lefts, in_pairs, of_prefixes, slots_of, tiles_of, tl, triton
from .layout import Run, Target


def move_leaves(
    ids: Tensor | None, states: Pair, slots: Pair, target: Target, shape: tuple[int, int], back: bool
) -> None:
    """Copy the leaves' `states` to their `slots`, or `back`."""
    batch, length = shape
    size = states[0].shape[-1]
    grid, sizes = tiles_of(batch * length, size, 16)
    ids_at = (length, 1) if ids is None else ids.stride()
    parts = (part.contiguous() for part in states)
    where = in_pairs(target, batch, batch * length)
    _move_leaves[grid](
        *(ids, *parts, *slots, *ids_at, states[0].numel() // size, batch, length, *where), BACK=back, **sizes
    )


def move_starts(buffers: Pair, starts: int, prefixes: Prefixes, batch: int, back: bool) -> None:
    """`fused.Arithmetic.put_starts`, or `back`: `take_starts`."""
    grid, sizes = tiles_of(batch, prefixes.hidden.shape[1], 4)
    levels = prefixes.lefts.level + 1
    _move_starts[*grid, levels](*buffers, *of_prefixes(prefixes), starts, batch, BACK=back, **sizes)


def pair_ids(ids: Tensor, count: int) -> Tensor:
    """`fused.Arithmetic.pair_ids`."""
    batch, length = ids.shape
    pairs = ids.new_empty(batch, length // 2)
    places = pairs.numel(), length // 2, count
    _pair[(triton.cdiv(pairs.numel(), 256),)](ids, pairs, *ids.stride(), *places, NO_ID=NO_ID, BLOCK=256)
    return pairs


def copy_states(buffers: Pair, source: Run, into: Run, count: int, batch: int, add: bool) -> None:
    """`fused.Arithmetic.copy`."""
    grid, sizes = tiles_of(count * batch, buffers[0].shape[1], 16)
    places = count * batch, batch, *source, *into
    _copy[grid](*buffers, *places, ADD=add, **sizes)


def last_blocks(lengths: Tensor, ends: Sequence[tuple[int, Target]]) -> Tensor:
    """`fused.Arithmetic.last_blocks`."""
    batch = len(lengths)
    slots = lengths.new_empty(len(ends), batch)
    grid = (triton.cdiv(batch, 256),)
    for level, (own, (paired, target)) in enumerate(zip(slots, ends, strict=True)):
        _last_blocks[grid](lengths, own, level, batch, paired, *target, BLOCK=256)
    return slots


def move_states(buffers: Pair, source: Tensor, into: Tensor | int) -> None:
    """`fused.Arithmetic.move`."""
    slots, first = (into, 0) if isinstance(into, Tensor) else (None, into)
    grid, sizes = tiles_of(len(source), buffers[0].shape[1], 4)
    _move_slots[grid](*buffers, source, slots, first, len(source), NO_SLOT=NO_SLOT, **sizes)


@triton.jit(do_not_specialize=["ids_row", "ids_step", "pairs", "length", "count"])
def _pair(ids_ptr, pairs_ptr, ids_row, ids_step, pairs, length, count, NO_ID: tl.constexpr, BLOCK: tl.constexpr):
    """`fused.Arithmetic.pair_ids`: `pairs` of them, `length` a row."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    left_at = (at // length).to(tl.int64) * ids_row + at % length * 2 * ids_step
    left = tl.load(ids_ptr + left_at, mask=at < pairs, other=0)
    right = tl.load(ids_ptr + left_at + ids_step, mask=at < pairs, other=0)
    known = (left >= 0) & (left < count) & (right >= 0) & (right < count)
    tl.store(pairs_ptr + at, tl.where(known, left * count + right, NO_ID), mask=at < pairs)


@triton.jit(do_not_specialize=VARYING)
def _move_leaves(
    ids_ptr,  # [batch, length], rows of the leaves; None: these are [batch * length, SIZE]
    hidden_ptr,  # leaves, [count, SIZE]
    cell_ptr,  # like them
    hidden_slots_ptr,  # [slots, SIZE]
    cell_slots_ptr,  # like them
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
    SIZE: tl.constexpr,
    BACK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """`fused.Arithmetic.place`, or BACK from the slots to the leaves. An id that there is none of gives NaN."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    in_rows = rows < batch * length
    known = in_rows
    leaf = (rows % batch).to(tl.int64) * ids_row + rows // batch * ids_step
    if ids_ptr is not None:
        leaf = tl.load(ids_ptr + leaf, mask=in_rows, other=0).to(tl.int64)
        known = in_rows & (leaf >= 0) & (leaf < count)
    inside = in_rows[:, None] & (columns < SIZE)[None, :]
    known = known[:, None] & inside
    leaf_at = leaf[:, None] * SIZE + columns[None, :]
    slot_at = slots_of(rows, batch, paired, base, pair, side, row, odd, odd_row)[:, None] * SIZE + columns[None, :]
    if BACK:
        tl.store(hidden_ptr + leaf_at, tl.load(hidden_slots_ptr + slot_at, mask=inside), mask=inside)
        tl.store(cell_ptr + leaf_at, tl.load(cell_slots_ptr + slot_at, mask=inside), mask=inside)
    else:
        nan: tl.constexpr = float("nan")
        tl.store(hidden_slots_ptr + slot_at, tl.load(hidden_ptr + leaf_at, mask=known, other=nan), mask=inside)
        tl.store(cell_slots_ptr + slot_at, tl.load(cell_ptr + leaf_at, mask=known, other=nan), mask=inside)


@triton.jit(do_not_specialize=["level", "batch", *PLACES])
def _last_blocks(
    lengths_ptr,  # [batch]
    slots_ptr,  # [batch], int64
    level,
    batch,
    paired,
    base,
    pair,
    side,
    row,
    odd,
    odd_row,
    BLOCK: tl.constexpr,
):
    """`fused.Arithmetic.last_blocks`, of one level."""
    own = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    node = tl.maximum((tl.load(lengths_ptr + own, mask=own < batch, other=0) >> level) - 1, 0)
    slots = slots_of(node * batch + own, batch, paired, base, pair, side, row, odd, odd_row)
    tl.store(slots_ptr + own, slots, mask=own < batch)


@triton.jit(do_not_specialize=["first", "count"])
def _move_slots(
    hidden_ptr,  # [slots, SIZE]
    cell_ptr,  # [slots, SIZE], float32
    source_ptr,  # [count], int64
    into_ptr,  # [count], int64; None: from `first` on
    first,
    count,
    NO_SLOT: tl.constexpr,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """`fused.Arithmetic.move`."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (rows < count)[:, None] & (columns < SIZE)[None, :]
    source = tl.load(source_ptr + rows, mask=rows < count, other=NO_SLOT)
    into = first + rows.to(tl.int64)
    if into_ptr is not None:
        into = tl.load(into_ptr + rows, mask=rows < count, other=0)
    here = inside & (source != NO_SLOT)[:, None]
    source_at = source[:, None] * SIZE + columns[None, :]
    at = into[:, None] * SIZE + columns[None, :]
    tl.store(hidden_ptr + at, tl.load(hidden_ptr + source_at, mask=here, other=0.0), mask=inside)
    tl.store(cell_ptr + at, tl.load(cell_ptr + source_at, mask=here, other=0.0), mask=inside)


@triton.jit(do_not_specialize=["first", "level", "length", "left_slot", "starts", "batch"])
def _move_starts(
    hidden_ptr,  # [slots, SIZE]
    cell_ptr,  # [slots, SIZE], float32
    prefixes_ptr,  # [batch * length, SIZE]
    first,
    level,
    length,
    left_slot,
    starts,
    batch,
    SIZE: tl.constexpr,
    BACK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """`move_starts`; one program moves ROWS rows' blocks of one level."""
    member = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    own = tl.program_id(2)
    inside = (member < batch)[:, None] & (columns < SIZE)[None, :]
    at = (starts + own * batch + member).to(tl.int64)[:, None] * SIZE + columns[None, :]
    tokens = 1 << own
    prefix_at = (member.to(tl.int64) * length + tokens - 1)[:, None] * SIZE + columns[None, :]
    slot = left_slot.to(tl.int64)
    for above in range(1, level - own + 1):
        slot += 2 * appends_of(length, level - above) * batch
    number = tl.full((ROWS,), 0, tl.int32) + first
    lefts = own, length, slot
    slots = hidden_ptr, cell_ptr
    if BACK:
        hidden = tl.load(prefixes_ptr + prefix_at, mask=inside, other=0.0).to(tl.float32)
        cell = tl.zeros((ROWS, COLUMNS), tl.float32)
        hidden, cell = at_lefts(slots, hidden, cell, number, member, lefts, batch, columns, inside, SIZE, BACK)
        tl.store(hidden_ptr + at, hidden.to(hidden_ptr.dtype.element_ty), mask=inside)
        tl.store(cell_ptr + at, cell, mask=inside)
    else:
        hidden = tl.load(hidden_ptr + at, mask=inside)
        tl.store(prefixes_ptr + prefix_at, hidden, mask=inside)
        cell = tl.load(cell_ptr + at, mask=inside)
        at_lefts(slots, hidden, cell, number, member, lefts, batch, columns, inside, SIZE, BACK)


@triton.jit(do_not_specialize=[*VARYING, "from_base", "from_step", "from_row", "step"])
def _copy(
    hidden_ptr,  # [slots, SIZE]
    cell_ptr,  # [slots, SIZE], float32
    count,
    batch,
    from_base,
    from_step,
    from_row,
    base,
    step,
    row,
    SIZE: tl.constexpr,
    ADD: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """`fused.Arithmetic.copy`."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (rows < count)[:, None] & (columns < SIZE)[None, :]
    member = (rows % batch).to(tl.int64)
    place = (rows // batch).to(tl.int64)
    source_at = (from_base + place * from_step + member * from_row)[:, None] * SIZE + columns[None, :]
    at = (base + place * step + member * row)[:, None] * SIZE + columns[None, :]
    hidden = tl.load(hidden_ptr + source_at, mask=inside)
    cell = tl.load(cell_ptr + source_at, mask=inside)
    if ADD:
        hidden = (hidden.to(tl.float32) + tl.load(hidden_ptr + at, mask=inside).to(tl.float32)).to(hidden.dtype)
        cell += tl.load(cell_ptr + at, mask=inside)
    tl.store(hidden_ptr + at, hidden, mask=inside)
    tl.store(cell_ptr + at, cell, mask=inside)
