"""The LSTM cells of the fused path as Triton kernels: the gates of a merge are consumed in the kernel that makes them.

Forward, one kernel a cell: the products of all gates of a tile of states stay in registers, and the new states are
written straight to where the next merge reads them. Backward, one kernel makes the gates' gradients of the kept
gates; the products with the weights are the library's, where no units (below) come into them. No sum is made by
atomics: results do not change from run to run.

Where `torch.backends.cuda.matmul.fp32_precision`, or the older `allow_tf32`, allows TF32, float32 products are made in
float16, which keeps as many digits of a number as TF32 and is twice as fast. TF32's range, which float16 lacks, is
made up for by units: one for all hidden states, which are smaller than 1, and for each row of the weights and of the
gates' gradients a power of 2 by its largest number.

Imported only when it runs. With `TRITON_INTERPRET=1` set before the import it runs on a CPU, slowly, to be tested.
"""

# The arguments of a kernel are values of Triton's language, which have no Python types.
# mypy: disable-error-code="no-untyped-def"

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .fused import InUnits, Leaves, Order, Pair, Pairs, Places, Prefixes, Survey
from .id_kernels import are_many, merge_by_ids, merge_by_ids_backward, merges_by_ids, sort_by_id, sum_by_id
from .kernel_parts import (
    INTERPRETED,
    VARYING,
    TensorDescriptor,
    at_lefts,
    at_rights,
    finish_cell,
    in_pairs,
    kept_gate,
    multiply,
    of_prefixes,
    of_rights,
    sigmoid,
    slots_of,
    tanh,
    tiles_of,
    tl,
    total,
    triton,
)
from .layout import Run, Target
from .move_kernels import copy_states, last_blocks, move_leaves, move_starts, move_states, pair_ids

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# From so many rows on, tiles are large.
MANY_ROWS = 4096

# In place of TF32: the hidden states are kept as float16 times this.
HIDDEN_UNIT = 2.0**-15

# The rows of a product of the weights' gradients that have one unit, for which one operand is copied.
PRODUCT_ROWS = 32768

# The largest number of a row becomes this, or up to twice as much: near float16's end.
TOP = tl.constexpr(2.0**13)


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels cannot make hidden states of the `dtype` on the `device`; None if they can."""
    if dtype not in DTYPES:
        return f"its kernels take float32, bfloat16 and float16, and the states are {dtype}"
    if INTERPRETED:
        return None
    if device.type != "cuda":
        return f"its kernels need a GPU, and the model is on {device}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "its kernels need a GPU of compute capability 8.0 or more"
    return None


class _Tile(NamedTuple):
    """What one program of a product does: `rows` x `columns` states or results, `depth` of the product at a time."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    registers: int | None = None  # of a thread; None: as many as the compiler takes


class TritonArithmetic:
    """`fused.Arithmetic` in Triton kernels."""

    rows = None
    bears_unknown_ids = True

    def __init__(self) -> None:
        self.tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"

    def can_capture(self, ids: int) -> bool:
        """See `Arithmetic`."""
        return True

    def look(
        self, ids: Tensor | None, mask: Tensor | None, labels: Tensor | None, found: Tensor | None = None
    ) -> Tensor:
        """See `Arithmetic`."""
        rows = ids if ids is not None else mask
        batch, length = (0, 0) if rows is None else rows.shape
        count = 0 if labels is None else labels.numel()
        if found is None:  # the kernel writes to the host's own memory, which spares a copy
            programs = min(64, max(batch // 8, count // 1024) + 1)
            found = torch.zeros(8, programs, dtype=torch.int64, device="cpu", pin_memory=not INTERPRETED)
        strides = [stride for part in (ids, mask) for stride in ((0, 0) if part is None else part.stride())]
        flat = None if labels is None else labels.flatten()
        given = rows if rows is not None else flat
        if given is not None:
            with torch.cuda.device_of(given):
                grid = (found.shape[1],)
                _survey[grid](ids, mask, flat, found, batch, length, *strides, count, BLOCK=1024)
        return found

    def survey(self, found: Tensor) -> Survey:
        """See `Arithmetic`."""
        rows = found.tolist()
        return Survey(*((min(lows), max(highs)) for lows, highs in zip(rows[::2], rows[1::2], strict=True)))

    def operand(self, weight: Tensor) -> InUnits:
        """See `Arithmetic`."""
        weight = weight.contiguous()
        if self.hidden_dtype(weight.dtype) == weight.dtype:
            return InUnits(weight, None)
        count, width = weight.shape
        columns = triton.next_power_of_2(width)
        rows = max(1, 2048 // columns)
        operand = InUnits(torch.empty_like(weight, dtype=torch.float16), weight.new_empty(count))
        warps = max(4, min(16, columns // 512))
        grid = (triton.cdiv(count, rows),)
        _to_units[grid](weight, *operand, count, WIDTH=width, ROWS=rows, COLUMNS=columns, num_warps=warps)
        return operand

    def hidden_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """See `Arithmetic`."""
        return torch.float16 if dtype == torch.float32 and self.tf32 else dtype

    def gates_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """See `Arithmetic`."""
        # Float16 keeps as many of their bits as a TF32 product has; see `keep_gate`.
        return torch.float32 if dtype == torch.float32 and not self.tf32 else torch.float16

    def slopes(self, gates: Tensor, dtype: torch.dtype) -> InUnits:
        """See `Arithmetic`."""
        in_units = self.hidden_dtype(dtype) != dtype
        units = gates.new_empty(len(gates), dtype=torch.float32) if in_units else None
        return InUnits(gates.view(self.hidden_dtype(dtype)), units)

    def result(self, hidden: Tensor, dtype: torch.dtype) -> Tensor:
        """See `Arithmetic`."""
        if hidden.dtype == dtype:
            return hidden.clone()
        result = torch.empty_like(hidden, dtype=dtype)
        count = hidden.numel()
        _in_unit_1[(triton.cdiv(count, 1024),)](hidden, result, count, UNIT=HIDDEN_UNIT, BLOCK=1024)
        return result

    def leaf(self, product: Tensor) -> Pair:
        """See `Arithmetic`."""
        *shape, width = product.shape
        hidden = product.new_empty(*shape, width // 3, dtype=self.hidden_dtype(product.dtype))
        cell = torch.empty_like(hidden, dtype=torch.float32)
        rows = product.flatten(0, -2)
        grid, sizes = _leaf_tiles(rows)
        unit = _hidden_unit(hidden, product.dtype)
        _leaf[grid](rows, hidden, cell, len(rows), *rows.stride(), UNIT=unit, **sizes)
        return hidden, cell

    def leaf_backward(self, product: Tensor, gradient: Pair) -> Tensor:
        """See `Arithmetic`."""
        rows = product.flatten(0, -2)
        slopes = torch.empty_like(rows)  # their order in memory too: the weight's gradient is not copied then
        hidden, cell = gradient
        grid, sizes = _leaf_tiles(rows)
        _leaf_backward[grid](rows, hidden, cell, slopes, len(rows), *rows.stride(), *slopes.stride(), **sizes)
        return slopes.view(product.shape)

    def pair_ids(self, ids: Tensor, count: int) -> Tensor:
        """See `Arithmetic`."""
        return pair_ids(ids, count)

    def place(self, leaves: Leaves, out: Pair, target: Target) -> None:
        """See `Arithmetic`."""
        move_leaves(leaves.ids, leaves[1:], out, target, leaves.shape, back=False)

    def sort_ids(self, ids: Tensor, count: int, sides: int) -> Order:
        """See `Arithmetic`."""
        return sort_by_id(ids, count, sides) if sides == 2 or are_many(count) else None

    def gather(self, gradient: Pair, target: Target, leaves: Leaves, order: Order) -> Pair:
        """See `Arithmetic`."""
        if leaves.ids is not None:
            in_tf32 = self.tf32 or gradient[0].dtype != torch.float32
            return sum_by_id(gradient, target, leaves.ids, len(leaves.hidden), order, in_tf32)
        shape = *leaves.shape, leaves.hidden.shape[-1]
        of_tokens = gradient[0].new_empty(shape), gradient[1].new_empty(shape)
        move_leaves(None, of_tokens, gradient, target, leaves.shape, back=True)
        return of_tokens

    def copy(self, buffers: Pair, source: Run, into: Run, count: int, batch: int, add: bool) -> None:
        """See `Arithmetic`."""
        copy_states(buffers, source, into, count, batch, add)

    def last_blocks(self, lengths: Tensor, ends: Sequence[tuple[int, Target]]) -> Tensor:
        """See `Arithmetic`."""
        return last_blocks(lengths, ends)

    def move(self, buffers: Pair, source: Tensor, into: Tensor | int) -> None:
        """See `Arithmetic`."""
        move_states(buffers, source, into)

    def put_starts(self, buffers: Pair, starts: int, prefixes: Prefixes, batch: int) -> None:
        """See `Arithmetic`."""
        move_starts(buffers, starts, prefixes, batch, back=False)

    def take_starts(self, buffers: Pair, starts: int, prefixes: Prefixes, batch: int) -> None:
        """See `Arithmetic`."""
        move_starts(buffers, starts, prefixes, batch, back=True)

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
        count, states, size = cell.shape
        described = count >= MANY_ROWS // 2 and _can_describe(hidden, weight.values, size)
        tile = _forward_tile(count, states, size, hidden.dtype, described)
        columns = triton.cdiv(size, tile.columns)
        operands: tuple[Any, ...] = hidden, weight.values, None
        if described:
            by_gate = weight.values.view(3 + states, size, states * size)
            four, one = (TensorDescriptor.from_tensor(by_gate, [n, tile.columns, tile.depth]) for n in (4, 1))
            operands = TensorDescriptor.from_tensor(hidden, [tile.rows, tile.depth]), four, one
        _forward[(triton.cdiv(count, tile.rows) * columns,)](
            *operands,
            cell,
            weight.units,
            bias,
            gates,
            *out,
            *of_prefixes(places.prefixes),
            *of_rights(places.rights),
            count,
            places.batch,
            *in_pairs(places.target, places.batch, count),
            SIZE=size,
            STATES=states,
            KEEP=gates is not None,
            WHOLE=size % tile.columns == 0 and size % tile.depth == 0,
            DESCRIBED=described,
            UNIT=_hidden_unit(hidden, bias.dtype),
            WIDEN=INTERPRETED and hidden.dtype == torch.bfloat16,
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            DEPTH=tile.depth,
            num_warps=tile.warps,
            num_stages=tile.stages,
            **({"maxnreg": tile.registers} if tile.registers else {}),
        )

    def merges_by_ids(self, ids: int, merges: int) -> bool:
        """See `Arithmetic`."""
        return merges_by_ids(ids, merges)

    def factors(self, hidden: Tensor, weight: InUnits) -> tuple[Tensor, Tensor]:
        """See `Arithmetic`."""
        values = weight.values
        if weight.units is not None:
            hidden, values = hidden.float() * HIDDEN_UNIT, values.float() * weight.units[:, None]
        elif values.dtype == torch.float16:  # which sums of gradients may pass
            hidden, values = hidden.float(), values.float()
        return hidden, torch.stack(values.chunk(2, dim=1))

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        """See `Arithmetic`."""
        return _product_in_float32(left, right)

    def forward_by_ids(self, pairs: Pairs, dtype: torch.dtype, out: Pair, places: Places) -> None:
        """See `Arithmetic`."""
        merge_by_ids(pairs, _hidden_unit(out[0], dtype), out, places)

    def sums(self, count: int, dtype: torch.dtype) -> int:
        """See `Arithmetic`."""
        return triton.cdiv(count, _backward_rows(count, self.hidden_dtype(dtype) != dtype))

    def total(self, sums: Tensor) -> Tensor:
        """See `Arithmetic`."""
        return total(sums)

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
        _differentiate(gradient, places, gates, cell, weight.units, slopes, sums, into[1])
        if slopes.units is not None:
            self._multiply(slopes, weight.values, into[0])
        else:
            torch.mm(slopes.values, weight.values, out=into[0])

    def backward_by_ids(self, gradient: Pair, places: Places, pairs: Pairs, order: Order, into: Pair) -> None:
        """See `Arithmetic`."""
        exact = self.hidden_dtype(gradient[0].dtype) == torch.float32
        merge_by_ids_backward(gradient, places, pairs, order, into, exact)

    def _multiply(self, slopes: InUnits, weight: Tensor, into: Tensor) -> None:
        """Write `slopes` times `weight` to `into`."""
        (count, width), inputs = slopes.values.shape, weight.shape[1]
        described = count >= MANY_ROWS and _can_describe(slopes.values, weight, inputs)
        tile = _product_tile(count, inputs, described)
        operands: tuple[Any, ...] = slopes.values, weight
        if described:
            shapes = [tile.rows, tile.depth], [tile.depth, tile.columns]
            operands = tuple(map(TensorDescriptor.from_tensor, operands, shapes))
        _product[(triton.cdiv(count, tile.rows) * triton.cdiv(inputs, tile.columns),)](
            *(*operands, slopes.units, into, count),
            WIDTH=width,
            INPUTS=inputs,
            WHOLE=width % tile.depth == 0 and inputs % tile.columns == 0,
            DESCRIBED=described,
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            DEPTH=tile.depth,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )

    def weight_gradient(self, slopes: InUnits, inputs: Tensor, weight: InUnits) -> Tensor:
        """See `Arithmetic`."""
        if slopes.units is None or weight.units is None:
            return slopes.values.t() @ inputs
        total: Tensor | None = None
        for start in range(0, len(inputs), PRODUCT_ROWS):
            rows = slice(start, start + PRODUCT_ROWS)
            gradient = _weight_gradient(slopes.values[rows], slopes.units[rows], inputs[rows], weight.units)
            total = gradient if total is None else total.add_(gradient)
        assert total is not None
        return total


def _differentiate(
    gradient: Pair,
    places: Places,
    gates: Tensor,
    cell: Tensor,
    weight_units: Tensor | None,
    slopes: InUnits,
    sums: Tensor,
    of_cell: Tensor,
) -> None:
    """The slopes and the gradient of the cell states before; as in `Arithmetic.backward`."""
    count, states, size = of_cell.shape
    in_units = slopes.units is not None
    rows = _backward_rows(count, in_units)
    columns, at_once = min(64, triton.next_power_of_2(size)), min(rows, 16)
    warps = 2 if at_once * columns >= 64 else 1  # each state by one thread: what it reads, others must not replace
    if in_units:  # found from all of a row
        columns = triton.next_power_of_2(size)
        many = rows >= 16
        at_once = max(1, min(rows, 512 // columns)) if many else 1
        warps = max(1, min(16, at_once * columns // (256 if many else 128)))
    _backward[(len(sums) * triton.cdiv(size, columns),)](
        *(*gradient, *of_prefixes(places.prefixes), *of_rights(places.rights)),
        *(gates, cell, weight_units, *slopes, of_cell, sums, count, places.batch),
        *in_pairs(places.target, places.batch, count),
        SIZE=size,
        STATES=states,
        ROWS=rows,
        AT_ONCE=at_once,
        COLUMNS=columns,
        num_warps=warps,
    )


def _hidden_unit(hidden: Tensor, dtype: torch.dtype) -> float:
    """That of `hidden` states, of a model in `dtype`."""
    return 1.0 if hidden.dtype == dtype else HIDDEN_UNIT


def _weight_gradient(values: Tensor, units: Tensor, inputs: Tensor, weight_units: Tensor) -> Tensor:
    """The product of slopes and `inputs` in float32: these are brought to the largest of the slopes' units."""
    count, width = inputs.shape
    in_two = count >= MANY_ROWS and count % 128 == 0  # as one kernel alone would be a single program of the GPU
    largest = units.view(128, -1).amax(1).amax() if in_two else units.amax()
    in_unit = torch.empty_like(inputs)
    sizes = {"WIDTH": width, "ROWS": 16, "COLUMNS": min(256, triton.next_power_of_2(width))}
    tiles = triton.cdiv(width, sizes["COLUMNS"])
    _change_units[triton.cdiv(count, 16), tiles](inputs, units, largest, in_unit, count, OUT=None, **sizes)
    product = _product_in_float32(values.t()[None], in_unit[None])[0]
    grid = triton.cdiv(len(product), 16), tiles
    _change_units[grid](product, weight_units, largest, product, len(product), OUT=HIDDEN_UNIT, **sizes)
    return product


def _product_in_float32(left: Tensor, right: Tensor) -> Tensor:
    """The products of matrices [n, ...]."""
    if INTERPRETED or left.dtype == torch.float32:  # a CPU has no such product
        return left.float() @ right.float()
    return torch.bmm(left, right, out_dtype=torch.float32)


def _can_describe(left: Tensor, weight: Tensor, size: int) -> bool:
    """Whether to read a product's operands of many rows by descriptors: whole tiles, a GPU that has room for these."""
    if size % 64 or left.dtype == torch.float32 or weight.data_ptr() % 16:
        return False
    is_nvidia = torch.version.hip is None
    return INTERPRETED or (is_nvidia and torch.cuda.get_device_capability(left.device)[0] in (9, 10))


def _forward_tile(count: int, states: int, size: int, dtype: torch.dtype, described: bool) -> _Tile:
    """The tile for `count` rows: large ones for many, and for few as many programs as the chip has processors."""
    if dtype == torch.float32:
        return _Tile(64, 16, 16, 4, 2)
    if size < 64:
        return _Tile(32, 16, 16, 4, 2)
    if described and count >= MANY_ROWS:
        return _Tile(128, 32, 64, 4, 3) if states == 2 else _Tile(128, 32, 64, 8, 3, registers=128)
    if described:
        return _Tile(64, 32, 64, 4, 3)
    if count >= MANY_ROWS:
        return _Tile(128, 32, 32, 4 if states == 2 else 8, 4)
    if count >= 384:
        return _Tile(64, 16, 64, 4, 3)
    return _Tile(16, 16, 64, 4, 3) if states == 1 else _Tile(64, 16, 64, 4, 3)


def _product_tile(count: int, inputs: int, described: bool) -> _Tile:
    """The tile for the product of `count` rows of slopes with weights of so many `inputs`."""
    if described:
        return _Tile(128, 256, 64, 8, 4) if inputs >= 256 else _Tile(128, 64, 64, 4, 4)
    if inputs < 64:
        return _Tile(32, 16, 16, 4, 2)
    if count >= MANY_ROWS:
        return _Tile(128, 128, 64, 8, 3)
    if count >= 384:
        return _Tile(64, 64, 64, 4, 5) if inputs >= 512 else _Tile(64, 32, 64, 4, 5)
    return _Tile(16, 32, 64, 4, 5)


def _backward_rows(count: int, in_units: bool) -> int:
    """How many rows a program of the backward kernel takes: fewer at a time where it finds a unit for each."""
    if in_units:
        return 32 if count >= 4 * MANY_ROWS else 16 if count >= MANY_ROWS else 4 if count >= 1024 else 1
    return 32 if count >= 4 * MANY_ROWS else 16 if count >= 2048 else 4


def _leaf_tiles(product: Tensor) -> tuple[tuple[int, int], dict[str, int]]:
    """Grid and sizes of the leaf's kernels, of its `product` [n, 3H], whose rows may be the columns of a weight."""
    count, size = product.shape[0], product.shape[1] // 3
    rows, columns = (64, 16) if product.stride(0) == 1 else (8, 128)
    return tiles_of(count, size, rows, columns)


@triton.jit(do_not_specialize=["batch", "length", "ids_row", "ids_step", "mask_row", "mask_step", "count"])
def _survey(
    ids_ptr,  # [batch, length]; each of these three may be None
    mask_ptr,  # [batch, length]
    labels_ptr,  # [count]
    found_ptr,  # [8, programs], int64: the bounds of ids, mask, rows' tokens and labels, of each program's part
    batch,
    length,
    ids_row,  # strides
    ids_step,
    mask_row,
    mask_step,
    count,
    BLOCK: tl.constexpr,
):
    """`TritonArithmetic.look`."""
    ids_low = tl.zeros((BLOCK,), tl.int64)
    ids_high = tl.zeros((BLOCK,), tl.int64)
    mask_low = tl.zeros((BLOCK,), tl.int64)
    mask_high = tl.zeros((BLOCK,), tl.int64)
    labels_low = tl.zeros((BLOCK,), tl.int64)
    labels_high = tl.zeros((BLOCK,), tl.int64)
    shortest = tl.full((), 2**62, tl.int64)
    longest = tl.full((), -1, tl.int64)
    places = tl.arange(0, BLOCK).to(tl.int64)
    for row in range(tl.program_id(0), batch, tl.num_programs(0)):
        rows = row + tl.zeros((BLOCK,), tl.int64)
        tokens = tl.zeros((BLOCK,), tl.int64)
        for start in range(0, length, BLOCK):
            columns = start + places
            inside = columns < length
            if ids_ptr is not None:
                ids = tl.load(ids_ptr + rows * ids_row + columns * ids_step, mask=inside, other=0)
                ids_low = tl.minimum(ids_low, ids.to(tl.int64))
                ids_high = tl.maximum(ids_high, ids.to(tl.int64))
            if mask_ptr is not None:
                mask = tl.load(mask_ptr + rows * mask_row + columns * mask_step, mask=inside, other=0).to(tl.int64)
                mask_low = tl.minimum(mask_low, mask)
                mask_high = tl.maximum(mask_high, mask)
                tokens += (mask != 0).to(tl.int64)
        shortest = tl.minimum(shortest, tl.sum(tokens, 0))
        longest = tl.maximum(longest, tl.sum(tokens, 0))
    if labels_ptr is not None:
        for start in range(tl.program_id(0) * BLOCK, count, tl.num_programs(0) * BLOCK):
            labels = tl.load(labels_ptr + start + places, mask=start + places < count, other=0).to(tl.int64)
            labels = tl.where(labels == -100, 0, labels)
            labels_low = tl.minimum(labels_low, labels)
            labels_high = tl.maximum(labels_high, labels)
    found_at = found_ptr + tl.program_id(0)
    step = tl.num_programs(0)
    tl.store(found_at, tl.min(ids_low, 0))
    tl.store(found_at + step, tl.max(ids_high, 0))
    tl.store(found_at + 2 * step, tl.min(mask_low, 0))
    tl.store(found_at + 3 * step, tl.max(mask_high, 0))
    tl.store(found_at + 4 * step, shortest)
    tl.store(found_at + 5 * step, longest)
    tl.store(found_at + 6 * step, tl.min(labels_low, 0))
    tl.store(found_at + 7 * step, tl.max(labels_high, 0))


@triton.jit
def _unit_of(numbers, FLOOR: tl.constexpr):
    """Of rows [n, m]: the unit [n] in which the largest number, at least FLOOR, is TOP, or up to twice that."""
    largest = tl.maximum(tl.max(tl.abs(numbers), 1), FLOOR)
    return (largest.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True) / TOP


@triton.jit
def _to_units(
    x_ptr,  # [count, WIDTH]
    values_ptr,  # [count, WIDTH]
    units_ptr,  # [count], float32
    count,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """`TritonArithmetic.operand`."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    inside = (rows < count)[:, None] & (columns < WIDTH)[None, :]
    at = rows[:, None] * WIDTH + columns[None, :]
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    # The slopes are kept in these units too: with a much smaller one, those of a row of zeros would be lost.
    units = _unit_of(x, 1e-6)
    tl.store(values_ptr + at, (x * (1 / units)[:, None]).to(values_ptr.dtype.element_ty), mask=inside)
    tl.store(units_ptr + rows, units, mask=rows < count)


@triton.jit(do_not_specialize=["count"])
def _in_unit_1(x_ptr, result_ptr, count, UNIT: tl.constexpr, BLOCK: tl.constexpr):
    """`TritonArithmetic.result`."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(result_ptr + at, tl.load(x_ptr + at, mask=at < count).to(tl.float32) * UNIT, mask=at < count)


@triton.jit(do_not_specialize=VARYING)
def _leaf(
    product_ptr,  # [count, 3 * SIZE], rows i, g, o
    hidden_ptr,  # [count, SIZE], in UNIT
    cell_ptr,  # [count, SIZE], float32
    count,
    product_row,  # the product's strides
    product_column,
    UNIT: tl.constexpr,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """`fused.Arithmetic.leaf`."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (rows < count)[:, None] & (columns < SIZE)[None, :]
    product_at = product_ptr + rows[:, None] * product_row
    gates = columns.to(tl.int64)[None, :]
    i = sigmoid(tl.load(product_at + gates * product_column, mask=inside, other=0.0).to(tl.float32))
    g = tanh(tl.load(product_at + (gates + SIZE) * product_column, mask=inside, other=0.0).to(tl.float32), EXACT=True)
    o = sigmoid(tl.load(product_at + (gates + 2 * SIZE) * product_column, mask=inside, other=0.0).to(tl.float32))
    cell = i * g
    hidden = o * tanh(cell, EXACT=True) / UNIT
    at = rows[:, None] * SIZE + columns[None, :]
    tl.store(cell_ptr + at, cell, mask=inside)
    tl.store(hidden_ptr + at, hidden.to(hidden_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=VARYING)
def _leaf_backward(
    product_ptr,  # [count, 3 * SIZE]
    hidden_gradient_ptr,  # [count, SIZE]
    cell_gradient_ptr,  # [count, SIZE]
    slopes_ptr,  # [count, 3 * SIZE]
    count,
    product_row,  # the product's strides, and the slopes'
    product_column,
    slopes_row,
    slopes_column,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """`fused.Arithmetic.leaf_backward`."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (rows < count)[:, None] & (columns < SIZE)[None, :]
    product_at = product_ptr + rows[:, None] * product_row
    gates = columns.to(tl.int64)[None, :]
    at = rows[:, None] * SIZE + columns[None, :]
    i = sigmoid(tl.load(product_at + gates * product_column, mask=inside, other=0.0).to(tl.float32))
    g = tanh(tl.load(product_at + (gates + SIZE) * product_column, mask=inside, other=0.0).to(tl.float32), EXACT=True)
    o = sigmoid(tl.load(product_at + (gates + 2 * SIZE) * product_column, mask=inside, other=0.0).to(tl.float32))
    activated = tanh(i * g, EXACT=True)
    d_hidden = tl.load(hidden_gradient_ptr + at, mask=inside, other=0.0).to(tl.float32)
    d_cell = tl.load(cell_gradient_ptr + at, mask=inside, other=0.0).to(tl.float32)
    d_cell += d_hidden * o * (1 - activated * activated)
    dtype = slopes_ptr.dtype.element_ty
    slopes_at = slopes_ptr + rows[:, None] * slopes_row
    tl.store(slopes_at + gates * slopes_column, (d_cell * g * i * (1 - i)).to(dtype), mask=inside)
    tl.store(slopes_at + (gates + SIZE) * slopes_column, (d_cell * i * (1 - g * g)).to(dtype), mask=inside)
    for_o = d_hidden * activated * o * (1 - o)
    tl.store(slopes_at + (gates + 2 * SIZE) * slopes_column, for_o.to(dtype), mask=inside)


@triton.jit(do_not_specialize=VARYING)
def _forward(
    hidden_ptr,  # [count, STATES * SIZE], in UNIT
    weight_ptr,  # [(3 + STATES) * SIZE, STATES * SIZE], rows i, g, o, f_1 .. f_STATES
    right_ptr,  # None; where DESCRIBED these three are descriptors: of the weights' first gates, and of the last
    cell_ptr,  # [count, STATES, SIZE], float32
    units_ptr,  # [(3 + STATES) * SIZE], float32: of the weights' rows; None: 1
    bias_ptr,  # [(3 + STATES) * SIZE]
    gates_ptr,  # [count, (3 + STATES) * SIZE]: the sum of g, the others as `keep_gate` does; unused unless KEEP
    hidden_out_ptr,  # [slots, SIZE], in UNIT
    cell_out_ptr,  # [slots, SIZE], float32
    prefixes_ptr,  # [prefixes, SIZE], in UNIT; None: the results are no prefixes
    first,  # with the next three: `layout.Lefts`
    level,
    length,
    left_slot,
    block,  # with the next two: `layout.Rights`; None: the results go nowhere else
    start_slot,
    right_slot,
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
    STATES: tl.constexpr,
    KEEP: tl.constexpr,
    WHOLE: tl.constexpr,
    DESCRIBED: tl.constexpr,
    UNIT: tl.constexpr,
    WIDEN: tl.constexpr,  # the interpreter cannot multiply bfloat16
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """`fused.Arithmetic.forward`; one program makes ROWS x COLUMNS states."""
    tiles: tl.constexpr = (SIZE + COLUMNS - 1) // COLUMNS
    inputs: tl.constexpr = STATES * SIZE
    # Programs that read the same rows run together.
    first_row = tl.program_id(0) // tiles * ROWS
    first_column = tl.program_id(0) % tiles * COLUMNS
    rows = first_row + tl.arange(0, ROWS)
    columns = first_column + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    in_rows = rows < count
    in_columns = columns < SIZE
    places = batch, paired, base, pair, side, row, odd, odd_row
    slots = None
    if STATES == 1:  # here, where the operands are waited for; a binary cell has no registers to keep them
        slots = slots_of(rows, batch, paired, base, pair, side, row, odd, odd_row)

    # The gates i, g, o, f_1 side by side are one product: a wide one reads the states once. It starts with the bias,
    # which comes while the operands are waited for.
    abreast = tl.arange(0, 4 * COLUMNS)
    column = first_column + abreast % COLUMNS
    in_four = column < SIZE
    own = abreast // COLUMNS * SIZE + column
    four_bias = tl.load(bias_ptr + own, mask=in_four, other=0.0).to(tl.float32)
    if units_ptr is not None:
        four_bias /= tl.load(units_ptr + own, mask=in_four, other=1.0) * UNIT
    four = tl.zeros((ROWS, 4 * COLUMNS), tl.float32) + four_bias[None, :]
    right = tl.zeros((ROWS, COLUMNS), tl.float32)
    if STATES == 2:
        right_bias = tl.load(bias_ptr + 4 * SIZE + columns, mask=in_columns, other=0.0).to(tl.float32)
        if units_ptr is not None:
            right_bias /= tl.load(units_ptr + 4 * SIZE + columns, mask=in_columns, other=1.0) * UNIT
        right += right_bias[None, :]
    if not DESCRIBED:
        hidden_at = hidden_ptr + rows.to(tl.int64)[:, None] * inputs + depth[None, :]
        four_at = weight_ptr + own[None, :] * inputs + depth[:, None]
        right_at = weight_ptr + (4 * SIZE + columns)[None, :] * inputs + depth[:, None]
    for start in range(0, inputs, DEPTH):
        if DESCRIBED:
            x = hidden_ptr.load([first_row, start])
            w_four = tl.trans(tl.reshape(weight_ptr.load([0, first_column, start]), (4 * COLUMNS, DEPTH)))
            if STATES == 2:
                w_right = tl.trans(tl.reshape(right_ptr.load([4, first_column, start]), (COLUMNS, DEPTH)))
        elif WHOLE:
            x = tl.load(hidden_at + start, mask=in_rows[:, None], other=0.0)
            w_four = tl.load(four_at + start)
            if STATES == 2:
                w_right = tl.load(right_at + start)
        else:
            in_depth = depth + start < inputs
            x = tl.load(hidden_at + start, mask=in_rows[:, None] & in_depth[None, :], other=0.0)
            w_four = tl.load(four_at + start, mask=in_depth[:, None] & in_four[None, :], other=0.0)
            if STATES == 2:
                w_right = tl.load(right_at + start, mask=in_depth[:, None] & in_columns[None, :], other=0.0)
        four = multiply(x, w_four, four, WIDEN)
        if STATES == 2:
            right = multiply(x, w_right, right, WIDEN)
    if units_ptr is not None:
        four *= (tl.load(units_ptr + own, mask=in_four, other=0.0) * UNIT)[None, :]
        if STATES == 2:
            right *= (tl.load(units_ptr + 4 * SIZE + columns, mask=in_columns, other=0.0) * UNIT)[None, :]
    i_and_o, g_and_left = tl.permute(tl.reshape(four, (ROWS, 2, 2, COLUMNS)), (0, 3, 1, 2)).split()
    i, o = i_and_o.split()
    g, left = g_and_left.split()

    inside = in_rows[:, None] & in_columns[None, :]
    cell_at = cell_ptr + rows.to(tl.int64)[:, None] * inputs + columns[None, :]
    sums = i, g, o, left, right
    out = hidden_out_ptr, cell_out_ptr
    lefts = first, level, length, left_slot
    finish_cell(
        sums,
        cell_at,
        cell_at + SIZE,
        gates_ptr,
        out,
        prefixes_ptr,
        lefts,
        (block, start_slot, right_slot),
        rows,
        columns,
        inside,
        places,
        slots,
        SIZE,
        STATES,
        KEEP,
        UNIT,
    )


@triton.jit(do_not_specialize=VARYING)
def _backward(
    hidden_gradient_ptr,  # [slots, SIZE]
    cell_gradient_ptr,  # [slots, SIZE], float32
    prefixes_ptr,  # [prefixes, SIZE]: of their hidden states; None: the results are no prefixes
    first,  # with the next three: `layout.Lefts`
    level,
    length,
    left_slot,
    block,  # with the next two: `layout.Rights`; None: the results are read nowhere else
    start_slot,
    right_slot,
    gates_ptr,  # [count, (3 + STATES) * SIZE]: the sum of g, the others as `keep_gate` does
    cell_ptr,  # [count, STATES, SIZE], float32
    weight_units_ptr,  # [(3 + STATES) * SIZE], float32: of the weights' rows; None: 1
    slopes_ptr,  # like the gates, in the weights' units and their own; may be the gates' memory
    units_ptr,  # [count], float32: of the slopes' rows; None: 1
    before_gradient_ptr,  # [count, STATES, SIZE], float32; may be the cell states' memory
    sums_ptr,  # [tiles, (3 + STATES) * SIZE], float32
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
    STATES: tl.constexpr,
    ROWS: tl.constexpr,
    AT_ONCE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """`fused.Arithmetic.backward`; one program differentiates ROWS x COLUMNS states and sums over its rows."""
    width: tl.constexpr = (3 + STATES) * SIZE
    tiles: tl.constexpr = (SIZE + COLUMNS - 1) // COLUMNS
    # Programs that differentiate the same rows run together.
    own = tl.program_id(0) // tiles
    columns = tl.program_id(0) % tiles * COLUMNS + tl.arange(0, COLUMNS)
    in_columns = columns < SIZE
    i_sum = tl.zeros((AT_ONCE, COLUMNS), tl.float32)
    g_sum = tl.zeros((AT_ONCE, COLUMNS), tl.float32)
    o_sum = tl.zeros((AT_ONCE, COLUMNS), tl.float32)
    left_sum = tl.zeros((AT_ONCE, COLUMNS), tl.float32)
    right_sum = tl.zeros((AT_ONCE, COLUMNS), tl.float32)
    gradients, rights = (hidden_gradient_ptr, cell_gradient_ptr), (block, start_slot, right_slot)
    for start in range(0, ROWS, AT_ONCE):
        rows = own * ROWS + start + tl.arange(0, AT_ONCE)
        in_rows = rows < count
        inside = in_rows[:, None] & in_columns[None, :]
        slots = slots_of(rows, batch, paired, base, pair, side, row, odd, odd_row)
        from_at = slots[:, None] * SIZE + columns[None, :]
        gates_at = rows.to(tl.int64)[:, None] * width + columns[None, :]
        before_at = rows.to(tl.int64)[:, None] * (STATES * SIZE) + columns[None, :]

        exact: tl.constexpr = slopes_ptr.dtype.element_ty == tl.float32
        i = kept_gate(gates_ptr + gates_at, inside)
        g = tanh(tl.load(gates_ptr + gates_at + SIZE, mask=inside, other=0.0).to(tl.float32), exact)
        o = kept_gate(gates_ptr + gates_at + 2 * SIZE, inside)
        left = kept_gate(gates_ptr + gates_at + 3 * SIZE, inside)
        left_cell = tl.load(cell_ptr + before_at, mask=inside, other=0.0)
        cell = i * g + left * left_cell
        if STATES == 2:
            right = kept_gate(gates_ptr + gates_at + 4 * SIZE, inside)
            right_cell = tl.load(cell_ptr + before_at + SIZE, mask=inside, other=0.0)
            cell += right * right_cell
        activated = tanh(cell, exact)
        if prefixes_ptr is None:
            d_hidden = tl.load(hidden_gradient_ptr + from_at, mask=inside, other=0.0).to(tl.float32)
            d_cell = tl.load(cell_gradient_ptr + from_at, mask=inside, other=0.0)
        else:
            d_hidden = tl.load(prefixes_ptr + from_at, mask=inside, other=0.0).to(tl.float32)
            d_cell = tl.zeros((AT_ONCE, COLUMNS), tl.float32)
            number, member, lefts = first + 2 * (rows // batch), rows % batch, (level, length, left_slot)
            d_hidden, d_cell = at_lefts(
                gradients, d_hidden, d_cell, number, member, lefts, batch, columns, inside, SIZE, BACK=True
            )
        d_hidden, d_cell = at_rights(
            gradients, d_hidden, d_cell, rights, rows, batch, columns, inside, SIZE, BACK=True
        )
        d_cell += d_hidden * o * (1 - activated * activated)

        tl.store(before_gradient_ptr + before_at, d_cell * left, mask=inside)
        for_i = d_cell * g * i * (1 - i)
        for_g = d_cell * i * (1 - g * g)
        for_o = d_hidden * activated * o * (1 - o)
        for_left = d_cell * left_cell * left * (1 - left)
        i_sum += for_i
        g_sum += for_g
        o_sum += for_o
        left_sum += for_left
        if STATES == 2:
            tl.store(before_gradient_ptr + before_at + SIZE, d_cell * right, mask=inside)
            for_right = d_cell * right_cell * right * (1 - right)
            right_sum += for_right

        if units_ptr is not None:
            if weight_units_ptr is not None:
                weight_units_at = weight_units_ptr + columns
                for_i *= tl.load(weight_units_at, mask=in_columns, other=0.0)[None, :]
                for_g *= tl.load(weight_units_at + SIZE, mask=in_columns, other=0.0)[None, :]
                for_o *= tl.load(weight_units_at + 2 * SIZE, mask=in_columns, other=0.0)[None, :]
                for_left *= tl.load(weight_units_at + 3 * SIZE, mask=in_columns, other=0.0)[None, :]
            largest = tl.maximum(tl.maximum(tl.abs(for_i), tl.abs(for_g)), tl.maximum(tl.abs(for_o), tl.abs(for_left)))
            if STATES == 2:
                if weight_units_ptr is not None:
                    for_right *= tl.load(weight_units_ptr + columns + 4 * SIZE, mask=in_columns, other=0.0)[None, :]
                largest = tl.maximum(largest, tl.abs(for_right))
            unit = _unit_of(largest, 1e-30)
            tl.store(units_ptr + rows, unit, mask=in_rows)
            scale = (1 / unit)[:, None]
            for_i *= scale
            for_g *= scale
            for_o *= scale
            for_left *= scale
            if STATES == 2:
                for_right *= scale
        dtype = slopes_ptr.dtype.element_ty
        tl.store(slopes_ptr + gates_at, for_i.to(dtype), mask=inside)
        tl.store(slopes_ptr + gates_at + SIZE, for_g.to(dtype), mask=inside)
        tl.store(slopes_ptr + gates_at + 2 * SIZE, for_o.to(dtype), mask=inside)
        tl.store(slopes_ptr + gates_at + 3 * SIZE, for_left.to(dtype), mask=inside)
        if STATES == 2:
            tl.store(slopes_ptr + gates_at + 4 * SIZE, for_right.to(dtype), mask=inside)
    sums_at = sums_ptr + own.to(tl.int64) * width + columns
    tl.store(sums_at, tl.sum(i_sum, 0), mask=in_columns)
    tl.store(sums_at + SIZE, tl.sum(g_sum, 0), mask=in_columns)
    tl.store(sums_at + 2 * SIZE, tl.sum(o_sum, 0), mask=in_columns)
    tl.store(sums_at + 3 * SIZE, tl.sum(left_sum, 0), mask=in_columns)
    if STATES == 2:
        tl.store(sums_at + 4 * SIZE, tl.sum(right_sum, 0), mask=in_columns)


@triton.jit(do_not_specialize=["count"])
def _product(
    slopes_ptr,  # [count, WIDTH]
    weight_ptr,  # [WIDTH, INPUTS]; where DESCRIBED these two are descriptors
    units_ptr,  # [count], float32
    into_ptr,  # [count, INPUTS], float32
    count,
    WIDTH: tl.constexpr,
    INPUTS: tl.constexpr,
    WHOLE: tl.constexpr,
    DESCRIBED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """`TritonArithmetic._multiply`."""
    tiles: tl.constexpr = (INPUTS + COLUMNS - 1) // COLUMNS
    first_row = tl.program_id(0) // tiles * ROWS
    first_column = tl.program_id(0) % tiles * COLUMNS
    rows = (first_row + tl.arange(0, ROWS)).to(tl.int64)
    columns = first_column + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    in_rows = (rows < count)[:, None]
    in_columns = (columns < INPUTS)[None, :]
    if not DESCRIBED:
        slopes_at = slopes_ptr + rows[:, None] * WIDTH + depth[None, :]
        weight_at = weight_ptr + depth[:, None] * INPUTS + columns[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, WIDTH, DEPTH):
        if DESCRIBED:
            slopes = slopes_ptr.load([first_row, start])
            weight = weight_ptr.load([start, first_column])
        elif WHOLE:
            slopes = tl.load(slopes_at + start, mask=in_rows, other=0.0)
            weight = tl.load(weight_at + start * INPUTS)
        else:
            in_depth = depth + start < WIDTH
            slopes = tl.load(slopes_at + start, mask=in_rows & in_depth[None, :], other=0.0)
            weight = tl.load(weight_at + start * INPUTS, mask=in_depth[:, None] & in_columns, other=0.0)
        total = tl.dot(slopes, weight, total)
    total *= tl.load(units_ptr + rows, mask=rows < count, other=0.0)[:, None]
    at = into_ptr + rows[:, None] * INPUTS + columns[None, :]
    tl.store(at, total, mask=in_rows & in_columns)


@triton.jit(do_not_specialize=["count"])
def _change_units(
    x_ptr,  # [count, WIDTH]
    units_ptr,  # [count], float32
    unit_ptr,  # [], float32
    result_ptr,  # like x; may be its memory
    count,
    OUT: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Multiply rows by `units / unit`, or where OUT is a number by `unit * OUT / units`."""
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (rows < count)[:, None] & (columns < WIDTH)[None, :]
    at = rows[:, None] * WIDTH + columns[None, :]
    units = tl.load(units_ptr + rows, mask=rows < count, other=1.0)
    unit = tl.load(unit_ptr)
    factor = units / unit if OUT is None else unit * OUT / units
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32) * factor[:, None]
    tl.store(result_ptr + at, x.to(result_ptr.dtype.element_ty), mask=inside)
