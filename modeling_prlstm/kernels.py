"""The LSTM cells of the fused path as Triton kernels: the gates of a merge are consumed in the kernel that makes them.

Forward, one kernel a cell: the products of all gates of a tile of states stay in registers, and the new states are
written straight to where the next merge reads them. Backward, one kernel makes the gates' gradients of the gates'
values; the products with the weights are the library's, where no units (below) come into them. No sum is made by
atomics: results do not change from run to run.

Where `torch.backends.cuda.matmul.fp32_precision`, or the older `allow_tf32`, allows TF32, float32 products are made in
float16, which keeps as many digits of a number as TF32 and is twice as fast. TF32's range, which float16 lacks, is
made up for by units: one for all hidden states, which are smaller than 1, and for each row of the weights and of the
gates' gradients a power of 2 by its largest number.

Imported only when it runs. With `TRITON_INTERPRET=1` set before the import it runs on a CPU, slowly, to be tested.
"""

# The arguments of a kernel are values of Triton's language, which have no Python types.
# mypy: disable-error-code="no-untyped-def"

import os
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .fused import NO_ID, NO_SLOT, InUnits, Leaves, Order, Pair, Pairs, Places, Prefixes, Survey
from .layout import Rights, Run, Target

try:
    import triton
    import triton.language as tl
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError as error:
    raise ImportError("`backend='triton'` needs triton 3.6 or newer: `pip install --upgrade triton`.") from error

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


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


# Up to this many ids, the gradients of their states are summed by products with one-hot ids. Else they are sorted, and
# windows of this many tokens in that order are summed apart where they have one id, so that no program has many more.
ONE_HOT_IDS, WINDOW = 128, 1024

# The same of tokens that were merged by their ids, of each of which there is more to do.
PAIRS_WINDOW = 128

# From so many rows on, tiles are large.
MANY_ROWS = 4096

# Merging by ids is worth it for so many merges, this many times more than ids, and of so many ids the terms fit the
# cache.
MERGES_BY_IDS, FEWER_IDS, IDS_IN_CACHE = 16384, 4, 2048

# In place of TF32: the hidden states are kept as float16 times this.
HIDDEN_UNIT = 2.0**-15

# The rows of a product of the weights' gradients that have one unit, for which one operand is copied.
PRODUCT_ROWS = 32768

# Whether instructions of the GPU can be named.
PTX = tl.constexpr(not INTERPRETED and torch.version.hip is None)

# The largest number of a row becomes this, or up to twice as much: near float16's end.
TOP = tl.constexpr(2.0**13)


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
        # The gates' values lie in [-1, 1]: float16 keeps as many of their bits as a TF32 product has.
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
        batch, length = ids.shape
        pairs = ids.new_empty(batch, length // 2)
        places = pairs.numel(), length // 2, count
        _pair[(triton.cdiv(pairs.numel(), 256),)](ids, pairs, *ids.stride(), *places, NO_ID=NO_ID, BLOCK=256)
        return pairs

    def place(self, leaves: Leaves, out: Pair, target: Target) -> None:
        """See `Arithmetic`."""
        _move_leaves(leaves.ids, leaves[1:], out, target, leaves.shape, back=False)

    def sort_ids(self, ids: Tensor, count: int, sides: int) -> Order:
        """See `Arithmetic`."""
        return _sort_by_id(ids, count, sides) if sides == 2 or count > ONE_HOT_IDS else None

    def gather(self, gradient: Pair, target: Target, leaves: Leaves, order: Order) -> Pair:
        """See `Arithmetic`."""
        ids, count = leaves.ids, len(leaves.hidden)
        if ids is not None:
            if count <= ONE_HOT_IDS:
                in_tf32 = self.tf32 or gradient[0].dtype != torch.float32
                of_hidden, of_cell = _sum_few(gradient, target, ids, count, "tf32" if in_tf32 else "ieee")
            else:
                order.wait()
                of_hidden, of_cell = (_sum_sorted_rows(part, order, target, len(ids)) for part in gradient)
            return of_hidden, of_cell
        shape = *leaves.shape, leaves.hidden.shape[-1]
        of_tokens = gradient[0].new_empty(shape), gradient[1].new_empty(shape)
        _move_leaves(None, of_tokens, gradient, target, leaves.shape, back=True)
        return of_tokens

    def copy(self, buffers: Pair, source: Run, into: Run, count: int, batch: int, add: bool) -> None:
        """See `Arithmetic`."""
        size = buffers[0].shape[1]
        columns = min(128, triton.next_power_of_2(size))
        grid = triton.cdiv(count * batch, 16), triton.cdiv(size, columns)
        places = count * batch, batch, *source, *into
        _copy[grid](*buffers, *places, SIZE=size, ADD=add, ROWS=16, COLUMNS=columns)

    def last_blocks(self, lengths: Tensor, ends: Sequence[tuple[int, Target]]) -> Tensor:
        """See `Arithmetic`."""
        batch = len(lengths)
        slots = lengths.new_empty(len(ends), batch)
        grid = (triton.cdiv(batch, 256),)
        for level, (own, (paired, target)) in enumerate(zip(slots, ends, strict=True)):
            _last_blocks[grid](lengths, own, level, batch, paired, *target, BLOCK=256)
        return slots

    def move(self, buffers: Pair, source: Tensor, into: Tensor | int) -> None:
        """See `Arithmetic`."""
        size = buffers[0].shape[1]
        columns = min(128, triton.next_power_of_2(size))
        slots, first = (into, 0) if isinstance(into, Tensor) else (None, into)
        grid = triton.cdiv(len(source), 4), triton.cdiv(size, columns)
        _move_slots[grid](
            *(*buffers, source, slots, first, len(source)), NO_SLOT=NO_SLOT, SIZE=size, ROWS=4, COLUMNS=columns
        )

    def put_starts(self, buffers: Pair, starts: int, prefixes: Prefixes, batch: int) -> None:
        """See `Arithmetic`."""
        _move_starts(buffers, starts, prefixes, batch, back=False)

    def take_starts(self, buffers: Pair, starts: int, prefixes: Prefixes, batch: int) -> None:
        """See `Arithmetic`."""
        _move_starts(buffers, starts, prefixes, batch, back=True)

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
            *_of_prefixes(places.prefixes),
            *_of_rights(places.rights),
            count,
            places.batch,
            *_in_pairs(places.target, places.batch, count),
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
        return ids <= IDS_IN_CACHE and merges >= max(MERGES_BY_IDS, FEWER_IDS * ids)

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
        ids, terms, cell = pairs
        count, size = ids.numel() // 2, cell.shape[1]
        rows, columns = 4, min(128, triton.next_power_of_2(size))  # 4 states a thread
        _forward_by_ids[(triton.cdiv(count, rows), triton.cdiv(size, columns))](
            *(ids, terms, cell, *out, *_of_rights(places.rights), *ids.stride(), len(cell), count, places.batch),
            *_in_pairs(places.target, places.batch, count),
            SIZE=size,
            UNIT=_hidden_unit(out[0], dtype),
            ROWS=rows,
            COLUMNS=columns,
            num_warps=rows,
        )

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
        ids, terms, cell = pairs
        (known, size), tokens = cell.shape, ids.numel()
        order.wait()
        ordered, keys, starts = order.order, order.keys, order.starts
        columns, windows = min(128, triton.next_power_of_2(size)), tokens // PAIRS_WINDOW
        of_windows = cell.new_empty(windows, 6 * size)
        read = *gradient, *_of_rights(places.rights), ids, terms, cell, ordered
        where = *ids.stride(), known, places.batch, *_in_pairs(places.target, places.batch, tokens // 2)
        exact = self.hidden_dtype(gradient[0].dtype) == torch.float32
        sizes = {"WINDOW": PAIRS_WINDOW, "SIZE": size, "EXACT": exact}
        sizes |= {"ROWS": 4, "COLUMNS": columns, "num_warps": 4}  # 4 states a thread
        if windows:
            _pairs_of_windows[windows, triton.cdiv(size, columns)](*read, keys, of_windows, *where, **sizes)
        _pairs_of_ids[known, triton.cdiv(size, columns)](*read, starts, of_windows, *into, *where, **sizes)

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
        *(*gradient, *_of_prefixes(places.prefixes), *_of_rights(places.rights)),
        *(gates, cell, weight_units, *slopes, of_cell, sums, count, places.batch),
        *_in_pairs(places.target, places.batch, count),
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


def _in_pairs(target: Target, batch: int, count: int) -> tuple[int, ...]:
    """The arguments of `_slots`: how many merges have a partner, and `target`."""
    return count // batch // 2 * 2, *target


def _of_prefixes(prefixes: Prefixes | None) -> tuple[Any, ...]:
    """The arguments of the kernels that make or read prefixes."""
    return (None, 0, 0, 0, 0) if prefixes is None else (prefixes.hidden, *prefixes.lefts)


def _of_rights(rights: Rights | None) -> tuple[int | None, ...]:
    """The arguments of the kernels that make or read blocks."""
    return (None, 0, 0) if rights is None else rights


def _move_starts(buffers: Pair, starts: int, prefixes: Prefixes, batch: int, back: bool) -> None:
    """`fused.Arithmetic.put_starts`, or `back`: `take_starts`."""
    size = prefixes.hidden.shape[1]
    columns = min(128, triton.next_power_of_2(size))
    grid = triton.cdiv(batch, 4), triton.cdiv(size, columns), prefixes.lefts.level + 1
    _move_first[grid](
        *(*buffers, *_of_prefixes(prefixes), starts, batch), SIZE=size, BACK=back, ROWS=4, COLUMNS=columns
    )


def _leaf_tiles(product: Tensor) -> tuple[tuple[int, int], dict[str, int]]:
    """Grid and sizes of the leaf's kernels, of its `product` [n, 3H], whose rows may be the columns of a weight."""
    count, size = product.shape[0], product.shape[1] // 3
    rows, columns = (64, 16) if product.stride(0) == 1 else (8, 128)
    columns = min(columns, triton.next_power_of_2(size))
    grid = triton.cdiv(count, rows), triton.cdiv(size, columns)
    return grid, {"SIZE": size, "ROWS": rows, "COLUMNS": columns}


def _move_leaves(
    ids: Tensor | None, states: Pair, slots: Pair, target: Target, shape: tuple[int, int], back: bool
) -> None:
    """Copy the leaves' `states` to their `slots`, or `back`."""
    batch, length = shape
    size = states[0].shape[-1]
    columns = min(128, triton.next_power_of_2(size))
    grid = triton.cdiv(batch * length, 16), triton.cdiv(size, columns)
    ids_at = (length, 1) if ids is None else ids.stride()
    parts = (part.contiguous() for part in states)
    where = _in_pairs(target, batch, batch * length)
    _move[grid](
        *(ids, *parts, *slots, *ids_at, states[0].numel() // size, batch, length, *where),
        SIZE=size,
        BACK=back,
        ROWS=16,
        COLUMNS=columns,
    )


def _sum_few(gradient: Pair, target: Target, ids: Tensor, count: int, precision: str) -> Tensor:
    """The gradients [2, V, H] of the `count` leaves, summed over the slots of equal `ids` [B, T].

    By products in `precision`, as `tl.dot` calls it.
    """
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
        *_in_pairs(target, batch, batch * length),
        SIZE=size,
        PRECISION=precision,
        IDS=padded,
        ROWS=32,
        COLUMNS=columns,
    )
    return total(sums)


class _Ordered(NamedTuple):
    """Tokens by id, once the stream has waited for them.

    Attributes:
        order: of the tokens [n].
        keys: theirs in that order [n].
        starts: where each key begins there [keys + 1].
        ready: when that is so; None: at once.
        read: what is read until then.
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
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _sort_by_id(ids: Tensor, known: int, sides: int = 1) -> _Ordered:
    """Bring the tokens with each of the `known` ids together, of `ids` [B, T]; with two `sides`, of each side apart.

    The left ones then have their ids for keys, and the right ones those of as many more. Unknown ids come last. On a
    GPU it is done by a stream of its own, whose many small kernels would else be waited for.
    """
    tokens, count = ids.numel(), sides * known
    narrow = torch.int16 if count < 2**15 else torch.int32  # quicker to sort
    # Memory of this stream, in which all of it stays until it was waited for: so no other use comes between.
    unsorted, keys = (torch.empty(tokens, dtype=narrow, device=ids.device) for _ in range(2))
    order, starts = (torch.empty(n, dtype=torch.int64, device=ids.device) for n in (tokens, count + 1))
    beside = None if INTERPRETED else _side_stream(ids.device)
    if beside is not None:
        beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        grid = (triton.cdiv(tokens, 256),)
        _keys[grid](ids, unsorted, *ids.stride(), known, len(ids), tokens, SIDES=sides, BLOCK=256)
        torch.sort(unsorted, stable=True, out=(keys, order))
        torch.searchsorted(keys, torch.arange(count + 1, dtype=narrow, device=ids.device), out=starts)
    return _Ordered(order, keys, starts, None if beside is None else beside.record_event(), (ids, unsorted))


def _sum_sorted_rows(rows: Tensor, ordered: _Ordered, target: Target, batch: int) -> Tensor:
    """The sums [V, W] of the `rows` [n, W] at the `target` of the tokens of each of V keys."""
    order, keys, starts, *_ = ordered
    count, windows, width = len(starts) - 1, len(order) // WINDOW, rows.shape[1]
    places = batch, *_in_pairs(target, batch, len(order))
    columns = min(128, triton.next_power_of_2(width))
    sizes = {"WINDOW": WINDOW, "SIZE": width, "ROWS": 16, "COLUMNS": columns, "num_warps": 2}
    of_windows, sums = (rows.new_empty(n, width, dtype=torch.float32) for n in (windows, count))
    if windows:
        _sum_windows[windows, triton.cdiv(width, columns)](order, keys, rows, of_windows, *places, **sizes)
    _sum_sorted[count, triton.cdiv(width, columns)](order, starts, rows, of_windows, sums, *places, **sizes)
    return sums


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


# Sizes that change with the batch and its length: not worth a compilation each.
PLACES = ["paired", "base", "pair", "side", "row", "odd", "odd_row"]
LEFTS, RIGHTS = ["first", "level", "length", "left_slot"], ["block", "start_slot", "right_slot"]
VARYING = ["count", "batch", "ids_row", "ids_step", "known", *PLACES, *LEFTS, *RIGHTS]


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
def _slots(rows, batch, paired, base, pair, side, row, odd, odd_row):
    """The slots of the results `rows` (`layout.Target`), as int64: times H they may pass 2**31."""
    merge = rows // batch
    member = (rows % batch).to(tl.int64)
    in_pair = base + (merge >> 1).to(tl.int64) * pair + (merge & 1).to(tl.int64) * side + member * row
    return tl.where(merge < paired, in_pair, odd + member * odd_row)


@triton.jit
def _sigmoid(x, TIMES: tl.constexpr = 1):
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
def _tanh(x, EXACT: tl.constexpr):
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
    return tl.where(small, series, 2 * _sigmoid(x, 2) - 1)


@triton.jit
def _round_to_tf32(x):
    rounded = ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return tl.where(x == x, rounded, x)  # there are NaN that the sum makes a number


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
def multiply(x, w, onto, WIDEN: tl.constexpr):
    """`x` times `w`, added to `onto`; exact where they are float32."""
    if WIDEN:
        x = x.to(tl.float32)
        w = w.to(tl.float32)
    return tl.dot(x, w, onto, input_precision="ieee")


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
    i = _sigmoid(tl.load(product_at + gates * product_column, mask=inside, other=0.0).to(tl.float32))
    g = _tanh(tl.load(product_at + (gates + SIZE) * product_column, mask=inside, other=0.0).to(tl.float32), EXACT=True)
    o = _sigmoid(tl.load(product_at + (gates + 2 * SIZE) * product_column, mask=inside, other=0.0).to(tl.float32))
    cell = i * g
    hidden = o * _tanh(cell, EXACT=True) / UNIT
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
    i = _sigmoid(tl.load(product_at + gates * product_column, mask=inside, other=0.0).to(tl.float32))
    g = _tanh(tl.load(product_at + (gates + SIZE) * product_column, mask=inside, other=0.0).to(tl.float32), EXACT=True)
    o = _sigmoid(tl.load(product_at + (gates + 2 * SIZE) * product_column, mask=inside, other=0.0).to(tl.float32))
    activated = _tanh(i * g, EXACT=True)
    d_hidden = tl.load(hidden_gradient_ptr + at, mask=inside, other=0.0).to(tl.float32)
    d_cell = tl.load(cell_gradient_ptr + at, mask=inside, other=0.0).to(tl.float32)
    d_cell += d_hidden * o * (1 - activated * activated)
    dtype = slopes_ptr.dtype.element_ty
    slopes_at = slopes_ptr + rows[:, None] * slopes_row
    tl.store(slopes_at + gates * slopes_column, (d_cell * g * i * (1 - i)).to(dtype), mask=inside)
    tl.store(slopes_at + (gates + SIZE) * slopes_column, (d_cell * i * (1 - g * g)).to(dtype), mask=inside)
    for_o = d_hidden * activated * o * (1 - o)
    tl.store(slopes_at + (gates + 2 * SIZE) * slopes_column, for_o.to(dtype), mask=inside)


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
def _move(
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
    slot_at = _slots(rows, batch, paired, base, pair, side, row, odd, odd_row)[:, None] * SIZE + columns[None, :]
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
    slots = _slots(node * batch + own, batch, paired, base, pair, side, row, odd, odd_row)
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


@triton.jit
def _appends(length, level):
    return ((length >> level) - 1) // 2


@triton.jit
def _at_lefts(
    buffers, hidden, cell, number, member, lefts, batch, columns, inside, SIZE: tl.constexpr, BACK: tl.constexpr
):
    """Store the states of prefixes of `number` blocks where they are left ones (`layout.Lefts`).

    BACK: give the gradients `hidden` and `cell` with those added that the prefixes have there.
    """
    hidden_ptr, cell_ptr = buffers
    level, length, slot = lefts
    slot = slot.to(tl.int64)
    for below in range(1, level + 1):
        appends = _appends(length, level - below)
        append = (number << (below - 1)) - 1
        slots = slot + 2 * (append.to(tl.int64) * batch + member)
        here = inside & (append < appends)[:, None]
        at = slots[:, None] * SIZE + columns[None, :]
        if BACK:
            hidden += tl.load(hidden_ptr + at, mask=here, other=0.0).to(tl.float32)
            cell += tl.load(cell_ptr + at, mask=here, other=0.0)
        else:
            tl.store(hidden_ptr + at, hidden.to(hidden_ptr.dtype.element_ty), mask=here)
            tl.store(cell_ptr + at, cell, mask=here)
        slot += 2 * appends * batch
    return hidden, cell


@triton.jit
def _at_rights(buffers, hidden, cell, rights, rows, batch, columns, inside, SIZE: tl.constexpr, BACK: tl.constexpr):
    """Store the states of every second of the blocks `rows` where these are merged again, if any (`layout.Rights`).

    BACK: give the gradients `hidden` and `cell` with those added that the blocks have there.
    """
    hidden_ptr, cell_ptr = buffers
    block, start_slot, right_slot = rights
    if block is not None:
        number, member = block + rows // batch, (rows % batch).to(tl.int64)
        append = (number // 2 - 1).to(tl.int64)
        slots = tl.where(number == 0, start_slot + member, right_slot + 2 * (append * batch + member))
        here = inside & (number % 2 == 0)[:, None]
        at = slots[:, None] * SIZE + columns[None, :]
        if BACK:
            hidden += tl.load(hidden_ptr + at, mask=here, other=0.0).to(tl.float32)
            cell += tl.load(cell_ptr + at, mask=here, other=0.0)
        else:
            tl.store(hidden_ptr + at, hidden.to(hidden_ptr.dtype.element_ty), mask=here)
            tl.store(cell_ptr + at, cell, mask=here)
    return hidden, cell


@triton.jit(do_not_specialize=["first", "level", "length", "left_slot", "starts", "batch"])
def _move_first(
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
    """`_move_starts`; one program moves ROWS rows' blocks of one level."""
    member = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    own = tl.program_id(2)
    inside = (member < batch)[:, None] & (columns < SIZE)[None, :]
    at = (starts + own * batch + member).to(tl.int64)[:, None] * SIZE + columns[None, :]
    tokens = 1 << own
    prefix_at = (member.to(tl.int64) * length + tokens - 1)[:, None] * SIZE + columns[None, :]
    slot = left_slot.to(tl.int64)
    for above in range(1, level - own + 1):
        slot += 2 * _appends(length, level - above) * batch
    number = tl.full((ROWS,), 0, tl.int32) + first
    lefts = own, length, slot
    slots = hidden_ptr, cell_ptr
    if BACK:
        hidden = tl.load(prefixes_ptr + prefix_at, mask=inside, other=0.0).to(tl.float32)
        cell = tl.zeros((ROWS, COLUMNS), tl.float32)
        hidden, cell = _at_lefts(slots, hidden, cell, number, member, lefts, batch, columns, inside, SIZE, BACK)
        tl.store(hidden_ptr + at, hidden.to(hidden_ptr.dtype.element_ty), mask=inside)
        tl.store(cell_ptr + at, cell, mask=inside)
    else:
        hidden = tl.load(hidden_ptr + at, mask=inside)
        tl.store(prefixes_ptr + prefix_at, hidden, mask=inside)
        cell = tl.load(cell_ptr + at, mask=inside)
        _at_lefts(slots, hidden, cell, number, member, lefts, batch, columns, inside, SIZE, BACK)


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
        at = _slots(rows, batch, paired, base, pair, side, row, odd, odd_row)[:, None] * SIZE + columns[None, :]
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
    """The keys of `_sort_by_id`."""
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
        slots = _slots(rows, batch, paired, base, pair, side, row, odd, odd_row)
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
    hidden_ptr,  # [count, STATES * SIZE], in UNIT
    weight_ptr,  # [(3 + STATES) * SIZE, STATES * SIZE], rows i, g, o, f_1 .. f_STATES
    right_ptr,  # None; where DESCRIBED these three are descriptors: of the weights' first gates, and of the last
    cell_ptr,  # [count, STATES, SIZE], float32
    units_ptr,  # [(3 + STATES) * SIZE], float32: of the weights' rows; None: 1
    bias_ptr,  # [(3 + STATES) * SIZE]
    gates_ptr,  # [count, (3 + STATES) * SIZE], their values; unused unless KEEP
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
        slots = _slots(rows, batch, paired, base, pair, side, row, odd, odd_row)

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
    _finish(
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


@triton.jit
def _finish(
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
        dtype = gates_ptr.dtype.element_ty
        gates_at = gates_ptr + rows.to(tl.int64)[:, None] * ((3 + STATES) * SIZE) + columns[None, :]
    # In this order the registers suffice; in others some are spilled.
    left = _sigmoid(left)
    if KEEP:
        tl.store(gates_at + 3 * SIZE, left.to(dtype), mask=inside)
    cell = left * tl.load(left_cell_at, mask=inside, other=0.0)
    if STATES == 2:
        right = _sigmoid(right)
        if KEEP:
            tl.store(gates_at + 4 * SIZE, right.to(dtype), mask=inside)
        cell += right * tl.load(right_cell_at, mask=inside, other=0.0)
    i = _sigmoid(i)
    g = _tanh(g, exact)
    if KEEP:
        tl.store(gates_at, i.to(dtype), mask=inside)
        tl.store(gates_at + SIZE, g.to(dtype), mask=inside)
    cell += i * g
    o = _sigmoid(o)
    if KEEP:
        tl.store(gates_at + 2 * SIZE, o.to(dtype), mask=inside)
    if slots is None:
        slots = _slots(rows, batch, paired, base, pair, side, row, odd, odd_row)
    out_at = slots[:, None] * SIZE + columns[None, :]
    if prefixes_ptr is None:
        tl.store(cell_out_ptr + out_at, cell, mask=inside)
    hidden = o * _tanh(cell, exact) / UNIT
    if prefixes_ptr is None:
        tl.store(hidden_out_ptr + out_at, hidden.to(hidden_out_ptr.dtype.element_ty), mask=inside)
    else:
        tl.store(prefixes_ptr + out_at, hidden.to(prefixes_ptr.dtype.element_ty), mask=inside)
        first, level, length, left_slot = lefts
        number, member, lefts = first + 2 * (rows // batch), rows % batch, (level, length, left_slot)
        _at_lefts(out, hidden, cell, number, member, lefts, batch, columns, inside, SIZE, BACK=False)
    _at_rights(out, hidden, cell, rights, rows, batch, columns, inside, SIZE, BACK=False)


@triton.jit(do_not_specialize=VARYING)
def _forward_by_ids(
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
    _finish(
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
        i = _sigmoid(own_i + tl.load(other_at, mask=here, other=nan))
        g = _tanh(own_g + tl.load(other_at + SIZE, mask=here, other=nan), EXACT)
        o = _sigmoid(own_o + tl.load(other_at + 2 * SIZE, mask=here, other=nan))
        own = _sigmoid(own_own + tl.load(other_at + own_gate, mask=here, other=nan))
        other = _sigmoid(own_other + tl.load(other_at + other_gate, mask=here, other=nan))
        other_cell = tl.load(cell_ptr + other_ids[:, None] * SIZE + columns[None, :], mask=here, other=0.0)
        activated = _tanh(i * g + own * own_cell + other * other_cell, EXACT)

        slots = _slots(rows, batch, *places)
        at = slots[:, None] * SIZE + columns[None, :]
        d_hidden = tl.load(hidden_gradient_ptr + at, mask=inside, other=0.0).to(tl.float32)
        d_cell = tl.load(cell_gradient_ptr + at, mask=inside, other=0.0)
        d_hidden, d_cell = _at_rights(
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
    gates_ptr,  # [count, (3 + STATES) * SIZE]
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
        slots = _slots(rows, batch, paired, base, pair, side, row, odd, odd_row)
        from_at = slots[:, None] * SIZE + columns[None, :]
        gates_at = rows.to(tl.int64)[:, None] * width + columns[None, :]
        before_at = rows.to(tl.int64)[:, None] * (STATES * SIZE) + columns[None, :]

        i = tl.load(gates_ptr + gates_at, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(gates_ptr + gates_at + SIZE, mask=inside, other=0.0).to(tl.float32)
        o = tl.load(gates_ptr + gates_at + 2 * SIZE, mask=inside, other=0.0).to(tl.float32)
        left = tl.load(gates_ptr + gates_at + 3 * SIZE, mask=inside, other=0.0).to(tl.float32)
        left_cell = tl.load(cell_ptr + before_at, mask=inside, other=0.0)
        cell = i * g + left * left_cell
        if STATES == 2:
            right = tl.load(gates_ptr + gates_at + 4 * SIZE, mask=inside, other=0.0).to(tl.float32)
            right_cell = tl.load(cell_ptr + before_at + SIZE, mask=inside, other=0.0)
            cell += right * right_cell
        activated = _tanh(cell, EXACT=slopes_ptr.dtype.element_ty == tl.float32)
        if prefixes_ptr is None:
            d_hidden = tl.load(hidden_gradient_ptr + from_at, mask=inside, other=0.0).to(tl.float32)
            d_cell = tl.load(cell_gradient_ptr + from_at, mask=inside, other=0.0)
        else:
            d_hidden = tl.load(prefixes_ptr + from_at, mask=inside, other=0.0).to(tl.float32)
            d_cell = tl.zeros((AT_ONCE, COLUMNS), tl.float32)
            number, member, lefts = first + 2 * (rows // batch), rows % batch, (level, length, left_slot)
            d_hidden, d_cell = _at_lefts(
                gradients, d_hidden, d_cell, number, member, lefts, batch, columns, inside, SIZE, BACK=True
            )
        d_hidden, d_cell = _at_rights(
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
