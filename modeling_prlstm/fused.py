"""The fused paths' schedule of a whole tree, forward and backward.

What a merge computes is left to an `Arithmetic`, one for each kind of device; here is which merges, in which order, on
which part of the buffers. The results are those of `cells.py` and `composer.py`, for LSTM cells alone (paper
section 3).
"""

from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .layout import Form, Layout, Lefts, Rights, Run, Step, Table, Target

# In place of an id, or of a slot, that there is none of.
NO_ID = NO_SLOT = -1

# So many sums over some of the rows are kept for each gradient of a bias, before they are summed themselves.
SUMS = 2048

Pair = tuple[Tensor, Tensor]

# The least and the greatest.
Bounds = tuple[int, int]


class Survey(NamedTuple):
    """What there is to check of a batch's values: bounds, of what there is none of 0.

    Attributes:
        ids: their bounds, or with 0, which is always right, between them.
        mask: likewise.
        lengths: of the numbers of tokens in the mask's rows.
        labels: like ids. -100, where there is none, counts as 0.
    """

    ids: Bounds
    mask: Bounds
    lengths: Bounds
    labels: Bounds


class InUnits(NamedTuple):
    """A matrix: `values` [n, m] times `units` [n], which are 1 where they are None."""

    values: Tensor
    units: Tensor | None

    def at(self, rows: slice) -> "InUnits":
        """Some of its rows."""
        return InUnits(self.values[rows], None if self.units is None else self.units[rows])


class Prefixes(NamedTuple):
    """Where the states of prefixes are, or their gradients, which add up.

    Attributes:
        hidden: [B * T, H], that of every prefix.
        lefts: where others, hidden and cell, are the left ones of merges.
    """

    hidden: Tensor
    lefts: Lefts


class Places(NamedTuple):
    """Where the results of merges go, and where their gradients are.

    Attributes:
        target: the slots of all, or if they are prefixes, their rows in `prefixes.hidden`.
        batch: rows of the batch.
        prefixes: where they are besides, if they are prefixes, which have no slots of their own; else None.
        rights: where every second of them is besides.
    """

    target: Target
    batch: int
    prefixes: Prefixes | None = None
    rights: Rights | None = None


class Arithmetic(Protocol):
    """One LSTM cell, forward and backward, for many rows at once.

    The binary cell and the refinement are one formula, with F = 2 and F = 1 states before it:
    `[i, g, o, f_1 .. f_F] = W [h_1 .. h_F] + b`, `c = σ(i) ⊙ tanh(g) + Σ σ(f_j) ⊙ c_j`, `h = σ(o) ⊙ tanh(c)`.
    """

    @property
    def rows(self) -> int | None:
        """How many rows to give it at once; None: as many as there are."""

    def can_capture(self, ids: int) -> bool:
        """Whether the work on leaves of `ids` ids can become a CUDA graph: where it does not wait for the GPU."""

    @property
    def bears_unknown_ids(self) -> bool:
        """Whether unknown ids make states NaN and do no other harm, so that they may be looked at later."""

    def look(
        self, ids: Tensor | None, mask: Tensor | None, labels: Tensor | None, found: Tensor | None = None
    ) -> Tensor:
        """Start to look at ids [B, T], a mask [B, T] and labels, which have no fractions.

        Returns:
            What `survey` reads once the device has looked: `found`, if it is given, which an earlier call gave for
            tensors of the same shapes.
        """

    def survey(self, found: Tensor) -> Survey:
        """Read what `look` gave."""

    def operand(self, weight: Tensor) -> InUnits:
        """`weight` as `forward` and `backward` take it."""

    def hidden_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of the hidden states in the buffers and of the slopes' values, for a model in `dtype`."""

    def gates_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype in which gates are kept for the backward, for a model in `dtype`."""

    def slopes(self, gates: Tensor, dtype: torch.dtype) -> InUnits:
        """A buffer for the slopes of a model in `dtype`, whose memory may be that of the kept `gates`.

        What it holds has the units of the weight's rows in it, besides its own.
        """

    def result(self, hidden: Tensor, dtype: torch.dtype) -> Tensor:
        """A copy in `dtype` of the `hidden` states of a buffer."""

    def leaf(self, product: Tensor) -> Pair:
        """The leaf cell: hidden and cell states [..., H], as in a buffer, of products [..., 3H], rows i, g, o."""

    def leaf_backward(self, product: Tensor, gradient: Pair) -> Tensor:
        """The gradient of `leaf`'s `product`, of its results' `gradient`."""

    def pair_ids(self, ids: Tensor, count: int) -> Tensor:
        """The numbers [B, T // 2] of the pairs of neighbours in `ids` [B, T]: of `count` ids; of others `NO_ID`."""

    def place(self, leaves: "Leaves", out: Pair, target: Target) -> None:
        """Copy the leaves' states to `out`, hidden and cell [slots, H]: position p of row b to its `target`."""

    def sort_ids(self, ids: Tensor, count: int, sides: int) -> "Order":
        """Start to bring the tokens with each of `count` ids together, of `ids` [B, T], beside the work that follows.

        Args:
            ids: see above.
            count: see above.
            sides: 1, for `gather`; or 2, for `backward_by_ids`: left and right ones apart.
        """

    def gather(self, gradient: Pair, target: Target, leaves: "Leaves", order: "Order") -> Pair:
        """The gradients of `leaves.hidden` and `leaves.cell`, of the `gradient` of all slots: `place` backwards.

        Args:
            gradient: see above.
            target: see `place`.
            leaves: see above.
            order: of their ids, if they have any.
        """

    def copy(self, buffers: Pair, source: Run, into: Run, count: int, batch: int, add: bool) -> None:
        """Copy, or `add`, the states at `source`, `count` a row, to those at `into` of the same buffers [slots, H]."""

    def last_blocks(self, lengths: Tensor, ends: Sequence[tuple[int, Target]]) -> Tensor:
        """The slots [levels, B] of the last block of each level of rows of `lengths` [B]; any where there is none.

        Args:
            lengths: see above.
            ends: see `Layout`.
        """

    def move(self, buffers: Pair, source: Tensor, into: Tensor | int) -> None:
        """Copy the states at the slots `source` [n], zeros for `NO_SLOT`, to others of the same buffers [slots, H].

        Args:
            buffers: see above.
            source: see above.
            into: the slots [n], no two of them the same; or the first of so many.
        """

    def put_starts(self, buffers: Pair, starts: int, prefixes: Prefixes, batch: int) -> None:
        """Copy the states of the blocks that rows start with, from the slots `starts` on, to where `prefixes` are."""

    def take_starts(self, buffers: Pair, starts: int, prefixes: Prefixes, batch: int) -> None:
        """Write the gradients of the blocks that rows start with: `put_starts` backwards."""

    def forward(
        self,
        state: Pair,
        weight: InUnits,
        bias: Tensor,
        gates: Tensor | None,
        out: Pair,
        places: Places,
    ) -> None:
        """Compute a cell.

        Args:
            state: hidden [n, F * H] and cell [n, F, H] before it.
            weight: `operand` of [(3 + F) * H, F * H], rows i, g, o, f_1 .. f_F; `bias` like its rows.
            bias: see `weight`.
            gates: takes what `backward` needs of the gates, [n, (3 + F) * H]; None: there will be none.
            out: hidden and cell [slots, H], which take the results at their slots.
            places: of the results.
        """

    def merges_by_ids(self, ids: int, merges: int) -> bool:
        """Whether `forward_by_ids` and what belongs to it are worth it for so many `merges` of states of `ids` ids."""

    def factors(self, hidden: Tensor, weight: InUnits) -> tuple[Tensor, Tensor]:
        """For `product`: `hidden` states [V, H], and the binary cell's `weight` by sides [2, 5H, H]."""

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        """The product, in float32 at least, of matrices in the dtype of `factors`."""

    def forward_by_ids(self, pairs: "Pairs", dtype: torch.dtype, out: Pair, places: Places) -> None:
        """Compute the binary cell of `pairs`, of a model in `dtype`; the rest as in `forward`."""

    def sums(self, count: int, dtype: torch.dtype) -> int:
        """How many sums `backward` makes of `count` rows, for a model in `dtype`."""

    def total(self, sums: Tensor) -> Tensor:
        """The sum of `sums` [n, ...], in float32 at least, over n."""

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
        """Differentiate a cell.

        Args:
            gradient: of the results, [slots, H] each; those of one result add up.
            places: of the results.
            gates: what `forward` kept of them [n, (3 + F) * H].
            cell: before the cell [n, F, H].
            weight: `operand` of [(3 + F) * H, F * H].
            slopes: takes the gradient of the gates' sums.
            sums: takes sums of the gates' sums' gradients over some of the rows each, [`sums`(n, ...), (3 + F) * H].
            into: take the gradients of the states before the cell, hidden [n, F * H] and cell [n, F, H]. The first
                may be where `gradient` has that of the same results, in any order; the last may be `cell` itself.
        """

    def backward_by_ids(self, gradient: Pair, places: Places, pairs: "Pairs", order: "Order", into: Pair) -> None:
        """Differentiate the binary cell of `pairs`, whose gates it computes again: that costs less than to keep them.

        Args:
            gradient: as in `backward`.
            places: as in `backward`.
            pairs: see `Pairs`.
            order: of their ids, by sides.
            into: the gradients of the pairs' terms [2, V, 5H] and cell states [V, H], to which these are added.
        """

    def weight_gradient(self, slopes: InUnits, inputs: Tensor, weight: InUnits) -> Tensor:
        """The gradient [(3 + F) * H, F * H] of a cell's `weight`, of the hidden states [n, F * H] that it read."""


# What `Arithmetic.sort_ids` gives, whose method `wait` lets what follows wait for it; None: there is nothing to sort.
Order = Any


class Leaves(NamedTuple):
    """The states of the leaves.

    Attributes:
        ids: [B, T], rows of the other two; None: these hold every leaf, [B, T, H].
        hidden: [N, H] or [B, T, H].
        cell: like it, in float32 at least.
    """

    ids: Tensor | None
    hidden: Tensor
    cell: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(B, T)."""
        batch, length = (self.hidden if self.ids is None else self.ids).shape[:2]
        return batch, length

    def at(self, columns: slice) -> "Leaves":
        """Those of some positions, of leaves with ids; of others, all."""
        return self if self.ids is None else self._replace(ids=self.ids[:, columns])

    def last(self, lengths: Tensor) -> "Leaves":
        """The last of each row, of leaves with ids and rows of `lengths` [B]; any of a row without one."""
        assert self.ids is not None
        return self._replace(ids=self.ids.gather(1, (lengths[:, None] - 1).clamp(min=0)))

    def all_pairs(self) -> "Leaves":
        """Every pair of ids, in order: leaves with ids [V**2, 2]."""
        count = len(self.hidden)
        return self._replace(ids=torch.tril_indices(count, count, count - 1, device=self.hidden.device).t())


class Pairs(NamedTuple):
    """Neighbours that are merged by their ids.

    Attributes:
        ids: [B, 2m], rows of `cell`.
        terms: what each id's state adds to the gates' sums [2, V, 5H], as the left one, with the bias, and as the
            right one, without.
        cell: [V, H], in float32 at least.
    """

    ids: Tensor
    terms: Tensor
    cell: Tensor


class _Kept(NamedTuple):
    """By cell of a merge: its kept gates [rows, (3 + F) * H], and the states [rows, H] that it gives the next.

    The rows of the binary cell's gates are those with slots, where all are kept.
    """

    gates: list[Tensor | None]
    between: list[Pair]


class Tree:
    """One batch's buffers and what is done in them; this class for rows that are all as long as the batch.

    Args:
        arithmetic: of the device.
        layout: of the batch.
        like: any tensor [..., H] with the model's dtype and device.
        cells: of a merge, in turn: `Arithmetic.operand` of its weight, and its bias.
        lengths: of the rows [B], int64; for `EachTree`.
        keep: whether to keep what the backward reads. Else it computes all gates again, not only those of merges by
            ids, and needs a third of the memory.
        rows: how many merges to do at a time, at most; None: as many as can be, or as `arithmetic` likes.
    """

    def __init__(
        self,
        arithmetic: Arithmetic,
        layout: Layout,
        like: Tensor,
        cells: list[tuple[InUnits, Tensor]],
        lengths: Tensor | None,
        keep: bool,
        rows: int | None,
    ):
        self.arithmetic, self.layout, self.lengths, self.keep = arithmetic, layout, lengths, keep
        self.cells = cells
        self.like = like.new_empty(0)
        self.size = like.shape[-1]
        self.wide = torch.promote_types(like.dtype, torch.float32)
        self.hidden_dtype = arithmetic.hidden_dtype(like.dtype)
        rows = arithmetic.rows or rows
        steps = *(table.step for table in layout.tables), *layout.levels, *layout.appends
        self.parts = {step: [*step.split(rows)] for step in steps}
        self.widest = max((part.rows for parts in self.parts.values() for part in parts), default=0)
        self.states = self._states(layout.slots, self.hidden_dtype)
        # The first rows, merged by ids, have no gates of the binary cell kept.
        self.without_gates = layout.by_ids.rows if keep and layout.by_ids is not None else 0
        self.kept = self._make_kept(layout.rows if keep else self.widest, gates=keep)

    def forward(self, leaves: Leaves) -> Tensor:
        """The prefixes' hidden states: [B, T, H] for the form `every`, else [B, H]."""
        self._look_up(leaves)
        for step in self.layout.levels:
            self._merge(step)
        return self._append()

    def backward(self, gradient: Tensor) -> tuple[Tensor, ...]:
        """The gradients of the leaves' hidden and cell states and the weights, of the hidden result's `gradient`.

        Once for a forward: the cell states' gradients take their place, as the slopes may that of the gates.
        """
        self.orders: dict[Target, Order] = {}  # of ids, by where their leaves are, or the merges of their pairs
        try:
            self._sort_ids()
            self._start_gradients()
            self._append_backward(gradient)
            self._levels_backward()
            of_leaves = self._look_up_backward()
        except BaseException:
            for order in self.orders.values():
                if order is not None:  # else its memory is free while it is sorted, and a capture hides the error
                    order.wait()
            raise
        del self.gradients, self.between_gradients  # room for the weights'
        return *of_leaves, *self._weights_backward()

    # Leaves.

    def _look_up(self, leaves: Leaves) -> None:
        """Put the leaves, and the blocks of pairs of them that have tables, where they are merged."""
        self.placed: list[list[tuple[Leaves, Target]]] = []  # by level
        for level, (table, lookups) in enumerate(zip_longest(self.layout.tables, self.layout.lookups)):
            placed = [(self._some_leaves(leaves, columns, level), target) for columns, target in lookups]
            if table is not None:
                placed.append((leaves.all_pairs(), table.operands))
            for part, target in placed:
                self.arithmetic.place(part, self.states, target)
            self.placed.append(placed)
            if table is not None:
                self._merge(table.step)
                assert leaves.ids is not None
                pairs = self.arithmetic.pair_ids(leaves.ids, table.ids)
                leaves = Leaves(pairs, *self._results(self.states, table))
        if self.layout.by_ids is not None:
            assert leaves.ids is not None
            hidden, sides = self.factors = self.arithmetic.factors(leaves.hidden, self.cells[0][0])
            terms = self.arithmetic.product(hidden.expand(2, -1, -1), sides.transpose(1, 2))
            terms[0] += self.cells[0][1]
            self.pairs = Pairs(leaves.ids, terms, leaves.cell)

    def _some_leaves(self, leaves: Leaves, columns: slice | None, level: int) -> Leaves:
        if columns is not None:
            return leaves.at(columns)
        assert self.lengths is not None
        return leaves.last(self.lengths >> level)

    def _sort_ids(self) -> None:
        """Start to bring equal ids together, for their gradients to be summed at the end."""
        for leaves, target in chain.from_iterable(self.placed):
            if leaves.ids is not None:
                self.orders[target] = self.arithmetic.sort_ids(leaves.ids, len(leaves.hidden), sides=1)
        if self.layout.by_ids is not None:
            for part in self.parts[self.layout.by_ids]:
                ids, _, cell = self._pairs_of(part)
                self.orders[part.target] = self.arithmetic.sort_ids(ids, len(cell), sides=2)

    def _look_up_backward(self) -> Pair:
        """The gradients of the leaves' states."""
        gradients: Pair | None = None
        for table, placed in reversed([*zip_longest(self.layout.tables, self.placed)]):
            if gradients is not None:
                for into, gradient in zip(self._results(self.gradients, table), gradients, strict=True):
                    into.copy_(gradient)
                self._merge_backward(table.step)
            found = [
                self.arithmetic.gather(self.gradients, target, leaves, self.orders.get(target))
                for leaves, target in placed
            ]
            if gradients is None and self.layout.by_ids is not None:
                found.append(self._pairs_backward())
            (hidden, cell), *others = found
            for more in others:
                hidden.add_(more[0])
                cell.add_(more[1])
            gradients = hidden, cell
        assert gradients is not None
        return gradients

    factors: Pair  # of the pairs' terms: the ids' hidden states and the weight by sides
    of_pairs: Pair  # the gradients of the pairs' terms and cell states

    def _pairs_backward(self) -> Pair:
        """The gradients of the states that were merged by ids; what their merges do to the weight's is kept."""
        of_terms, of_cell = self.of_pairs
        del self.of_pairs
        self._room_for_sums(0, 1)[0] = self.arithmetic.total(of_terms[0])
        hidden, sides = self.factors
        of_terms = of_terms.to(hidden.dtype)
        of_weight = self.arithmetic.product(of_terms.transpose(1, 2), hidden.expand(2, -1, -1))
        self.of_weight = of_weight.transpose(0, 1).flatten(1)
        of_left, of_right = self.arithmetic.product(of_terms, sides)
        return of_left.add_(of_right), of_cell

    def _results(self, buffers: Pair, table: Table) -> Pair:
        return buffers[0][table.result], buffers[1][table.result]

    # What the forms of the tree do each in their own way.

    def _append(self) -> Tensor:
        for step in self.layout.appends:
            self._merge(step)
        return self._last_states()

    def _append_backward(self, gradient: Tensor) -> None:
        self._start_at(gradient)
        for step in reversed(self.layout.appends):
            self._merge_backward(step)

    def _levels_backward(self) -> None:
        for step in reversed(self.layout.levels):
            self._merge_backward(step)

    def _result(self, buffer: Tensor) -> Tensor:
        return buffer[self.layout.result : self.layout.result + self.layout.batch]

    def _last_states(self) -> Tensor:
        """The hidden states of the whole rows [B, H]."""
        return self.arithmetic.result(self._result(self.states[0]), self.like.dtype)

    def _start_at(self, gradient: Tensor) -> None:
        """Begin with the result's `gradient`."""
        self._result(self.gradients[0]).copy_(gradient)
        self._result(self.gradients[1]).zero_()

    # Merges.

    def _merge(self, step: Step) -> None:
        for part in self.parts[step]:
            first = part.first if self.keep else 0
            self._run_cells(part, self.kept, first, self.states, self._places_of(part, self.prefixes))

    # The hidden states of all prefixes [B * T, H], where these are wanted, and their gradients.
    prefixes: Tensor | None = None
    of_prefixes: Tensor | None = None

    def _places_of(self, part: Step, hidden: Tensor | None) -> Places:
        """Those of the results of `part`, or of their gradients, of all prefixes' `hidden`."""
        prefixes = None if part.lefts is None or hidden is None else Prefixes(hidden, part.lefts)
        return Places(part.target, part.batch, prefixes, part.rights)

    def _in_order(self, part: Step) -> Places:
        """The results of `part` one after the other."""
        return Places(Target.evenly(0, part.batch, part.merges), part.batch)

    def _run_cells(self, part: Step, kept: _Kept, first: int, out: Pair, places: Places) -> None:
        """All cells of the merges `part`: what is kept goes to rows `first` on of `kept`, the states to `out`."""
        rows = slice(first, first + part.rows)
        state: Pair | None = None
        if part.slot is not None:
            state = self._inputs(self.states, part.slot, part.rows)
        for number, (weight, bias) in enumerate(self.cells):
            to, where = out, places
            if number < len(self.cells) - 1:
                hidden, cell = kept.between[number]
                to, where = (hidden[rows], cell[rows]), self._in_order(part)
            if state is None:
                self.arithmetic.forward_by_ids(self._pairs_of(part), bias.dtype, to, where)
            else:
                gates = kept.gates[number]
                gates = None if gates is None else gates[self._rows_of_gates(number, rows)]
                self.arithmetic.forward(state, weight, bias, gates, to, where)
            state = to[0], to[1][:, None]

    def _rows_of_gates(self, number: int, rows: slice) -> slice:
        """Where the gates of a cell, and their slopes, have the `rows` of what is kept."""
        without = 0 if number else self.without_gates
        return slice(rows.start - without, rows.stop - without)

    def _pairs_of(self, part: Step) -> Pairs:
        """What `part`, of the step that merges by ids, merges."""
        start = 2 * part.first // part.batch
        return self.pairs._replace(ids=self.pairs.ids[:, start : start + 2 * part.merges])

    def _merge_backward(self, step: Step) -> None:
        """Differentiate the merges."""
        for part in reversed(self.parts[step]):
            first = part.first
            if not self.keep:
                first = 0
                if part.slot is not None or len(self.cells) > 1:  # else its cell keeps nothing
                    self._run_cells(part, self.again, first, self.unused, self._in_order(part))
            self._cells_backward(part, self.kept if self.keep else self.again, first)

    def _cells_backward(self, part: Step, kept: _Kept, first: int) -> None:
        count = part.rows
        rows = slice(first, first + count)
        gradient, places = self.gradients, self._places_of(part, self.of_prefixes)
        for number in reversed(range(len(self.cells))):
            into: Pair
            if number:
                cell = kept.between[number - 1][1][rows, None]
                into = self._room_between(part, number), cell
            elif part.slot is None:
                pairs, order = self._pairs_of(part), self.orders[part.target]
                self.arithmetic.backward_by_ids(gradient, places, pairs, order, self.of_pairs)
                break
            else:
                cell = self._inputs(self.states, part.slot, count)[1]
                into = self._inputs(self.gradients, part.slot, count)
            gates, own = kept.gates[number], self._rows_of_gates(number, rows)
            assert gates is not None
            sums = self._room_for_sums(number, self.arithmetic.sums(count, self.like.dtype))
            weight, slopes = self.cells[number][0], self.slopes[number].at(own)
            self.arithmetic.backward(gradient, places, gates[own], cell, weight, slopes, sums, into)
            gradient, places = (into[0], into[1].flatten(1)), self._in_order(part)
        if not self.keep:  # what the next part computes again goes to the same buffers
            self._multiply_slopes(kept, part.slot, first, count)

    def _room_between(self, part: Step, number: int) -> Tensor:
        """The place for the gradients of the hidden states between two cells of `part`, of which `number` is the last.

        Where the results' gradients lie side by side it is theirs, as the last cell has read them by then.
        """
        if number == len(self.cells) - 1 and self._is_side_by_side(part):
            return self.gradients[0][part.target.base : part.target.base + part.rows]
        return self.between_gradients[(number - 1) % 2][: part.rows]

    def _is_side_by_side(self, part: Step) -> bool:
        """Whether the slots of the results of `part`, and of nothing else, follow each other."""
        batch, (_, pair, side, row, *_) = part.batch, part.target
        return part.merges % 2 == 0 and part.lefts is None and (pair, side, row) == (2 * batch, 1, 2)

    def _room_for_sums(self, number: int, count: int) -> Tensor:
        """The place for `count` more sums of a cell's slopes; where there is none, those before become one."""
        sums, before = self.bias_sums[number], self.summed[number]
        if before + count > len(sums):
            sums[0] = self.arithmetic.total(sums[:before])
            before = 1
        self.summed[number] = before + count
        return sums[before : before + count]

    def _multiply_slopes(self, kept: _Kept, slot: int | None, first: int, count: int) -> None:
        """Add what `count` rows do to the weights' gradients, from `first` on in `kept` and slopes.

        The last of them have their slots from `slot` on; None: all were merged by ids.
        """
        end = first + count
        with_slots = 0 if slot is None else min(count, (self.layout.result - slot) // 2)
        inputs = [self._inputs(self.states, slot, with_slots)[0]] if slot is not None and with_slots else []
        inputs += [hidden[first:end] for hidden, _ in kept.between]
        numbers = range(len(self.cells) - len(inputs), len(self.cells))
        for number, part in zip(numbers, inputs, strict=True):
            slopes = self.slopes[number].at(self._rows_of_gates(number, slice(end - len(part), end)))
            gradient = self.arithmetic.weight_gradient(slopes, part, self.cells[number][0])
            before = self.weight_gradients[number]
            # A sum of many parts in less than float32 would lose digits.
            self.weight_gradients[number] = gradient if before is None else before.to(self.wide).add_(gradient)

    def _inputs(self, buffers: Pair, slot: int, count: int) -> Pair:
        """What `count` rows merge, from `slot` on: hidden [count, 2H] and cell [count, 2, H]."""
        hidden, cell = (buffer[slot : slot + 2 * count] for buffer in buffers)
        return hidden.view(count, 2 * self.size), cell.view(count, 2, self.size)

    # Buffers.

    def _states(self, count: int, hidden_dtype: torch.dtype) -> Pair:
        """Uninitialised hidden and cell states [count, H]."""
        shape = count, self.size
        return self.like.new_empty(shape, dtype=hidden_dtype), self.like.new_empty(shape, dtype=self.wide)

    def _make_kept(self, rows: int, gates: bool) -> _Kept:
        dtype = self.arithmetic.gates_dtype(self.like.dtype)
        counts = [rows - self.without_gates, *(rows for _ in self.cells[1:])]
        return _Kept(
            [
                self.like.new_empty(count, len(bias), dtype=dtype) if gates else None
                for count, (_, bias) in zip(counts, self.cells, strict=True)
            ],
            [self._states(rows, self.hidden_dtype) for _ in self.cells[1:]],
        )

    def _start_gradients(self) -> None:
        layout = self.layout
        hidden, cell = self.states
        self.gradients = hidden.new_empty(hidden.shape, dtype=self.like.dtype), cell
        for part in self.gradients:
            part[layout.spare :].zero_()
        parts = [part for parts in self.parts.values() for part in parts]
        apart = max((part.rows for part in parts if not self._is_side_by_side(part)), default=0)
        between = len(self.cells) - 1
        widths = [self.widest] * (between - 1) + [apart] * min(between, 1)
        self.between_gradients = [self.like.new_empty(max(widths[k::2], default=0), self.size) for k in range(2)]
        if not self.keep:
            self.again = self._make_kept(self.widest, gates=True)
            self.unused = self._states(self.widest, self.hidden_dtype)
        gates = self.kept.gates if self.keep else self.again.gates
        self.slopes = [self.arithmetic.slopes(part, self.like.dtype) for part in gates if part is not None]
        self.weight_gradients: list[Tensor | None] = [None for _ in self.cells]
        if layout.by_ids is not None:
            self.of_pairs = torch.zeros_like(self.pairs.terms), torch.zeros_like(self.pairs.cell)
        counts = [self.arithmetic.sums(part.rows, self.like.dtype) for part in parts]
        count = min(sum(counts), max(SUMS, 1 + max(counts, default=0)))
        self.bias_sums = [self.like.new_empty(count, len(bias), dtype=self.wide) for _, bias in self.cells]
        self.summed = [0] * len(self.cells)  # how many of them there are by now

    def _weights_backward(self) -> list[Tensor]:
        if self.keep and self.layout.rows:
            self._multiply_slopes(self.kept, 0, 0, self.layout.rows)
        if self.layout.by_ids is not None:
            before = self.weight_gradients[0]
            self.weight_gradients[0] = self.of_weight if before is None else self.of_weight.add_(before)
        gradients = []
        parts = zip(self.weight_gradients, self.bias_sums, self.summed, self.cells, strict=True)
        for found, sums, count, (weight, bias) in parts:
            of_weight = torch.zeros_like(weight.values) if found is None else found
            gradients += [of_weight.to(bias.dtype), self.arithmetic.total(sums[:count]).to(bias.dtype)]
        return gradients


class EachTree(Tree):
    """A tree of rows with lengths of their own: the bits of a length say which blocks its row is made of.

    From the highest level down, the first of them is the row's first prefix, and each other is appended to it. Rows
    without a block of a level merge zeros there.
    """

    def _append(self) -> Tensor:
        prefix = self._plan()
        for step, sources in zip(self.layout.appends, reversed(self.operands.unbind()), strict=True):
            assert step.slot is not None
            self.arithmetic.move(self.states, sources, step.slot)
            self._merge(step)
        self.arithmetic.move(self.states, prefix, self.layout.result)
        return self._last_states()

    def _plan(self) -> Tensor:
        """Find the slots of what the rows merge, and of what reads the results; gives those of the last ones [B]."""
        layout, lengths = self.layout, self.lengths
        assert lengths is not None
        top, row = len(layout.appends), torch.arange(layout.batch, device=lengths.device)
        level = torch.arange(top + 1, device=lengths.device)[:, None]
        blocks = lengths >> level
        is_end = (blocks & 1).bool()
        appends = is_end & (blocks > 1)
        last = self.arithmetic.last_blocks(lengths, layout.ends)
        # The prefixes that end with a block of each level, and where they are the left one of a merge. The slots of
        # appends follow each other, from the highest level down.
        made = left = last
        if layout.appends:
            first = layout.appends[0]
            assert first.slot is not None
            place = (top - 1 - level) * layout.batch + row
            made, left = torch.where(appends, first.target.base + place, last), first.slot + 2 * place
        prefix = torch.full_like(row, NO_SLOT)
        before = []  # from the highest level down: the prefix that it finds
        for own, here in zip(reversed(made.unbind()), reversed(is_end.unbind()), strict=True):
            before.append(prefix)
            prefix = torch.where(here, own, prefix)
        reader = layout.result + row
        after = []  # from the lowest level up: where the prefix that it makes is read
        for own, here in zip(left, is_end, strict=True):
            after.append(reader)
            reader = torch.where(here, own, reader)
        readers = torch.stack(after)
        operands = torch.stack((torch.stack(before[::-1]), last), dim=2)
        # By level, what each append reads; where the gradients are of what appends make, and of the blocks that rows
        # end with; and the slots of these blocks.
        self.operands = torch.where(appends[:, :, None], operands, NO_SLOT).flatten(1)[:-1]
        self.of_merged = torch.where(appends, readers, NO_SLOT)[:-1]
        self.of_last = torch.where(appends, left + 1, readers)
        self.last = torch.where(is_end, last, layout.scratch + row)
        return prefix

    def _append_backward(self, gradient: Tensor) -> None:
        self._start_at(gradient)
        for step, sources in zip(reversed(self.layout.appends), self.of_merged, strict=True):
            self.arithmetic.move(self.gradients, sources, step.target.base)
            self._merge_backward(step)

    def _levels_backward(self) -> None:
        lowest = len(self.layout.tables)
        for level in reversed(range(len(self.last))):
            if lowest <= level < len(self.layout.appends):
                self._merge_backward(self.layout.pairs(level))
            # Now that what merges made of it, if anything, is there: the gradient of the block that ends a row.
            self.arithmetic.move(self.gradients, self.of_last[level], self.last[level])


class EveryTree(Tree):
    """A tree with the states of all prefixes.

    Downwards, the prefixes that end where a block of level k ends are every second time known from the level above;
    the others append one block of level k to the prefix before them. Prefixes and blocks are written to wherever they
    are merged, and their gradients gathered there.
    """

    def _append(self) -> Tensor:
        layout, dtype = self.layout, self.like.dtype
        for leaf, place, count in self._leaves_again():
            self._copy(self.states, leaf, place, count)
        self.prefixes = self.like.new_empty(layout.batch * layout.length, self.size, dtype=self.hidden_dtype)
        starts = Prefixes(self.prefixes, layout.start_lefts)
        self.arithmetic.put_starts(self.states, layout.starts, starts, layout.batch)
        for step in layout.appends:
            self._merge(step)
        prefixes, self.prefixes = self.prefixes, None
        prefixes = prefixes if prefixes.dtype == dtype else self.arithmetic.result(prefixes, dtype)
        return prefixes.view(layout.batch, layout.length, self.size)

    def _append_backward(self, gradient: Tensor) -> None:
        layout = self.layout
        self.of_prefixes = gradient.contiguous().view(-1, self.size)
        for step in reversed(layout.appends):
            self._merge_backward(step)
        starts = Prefixes(self.of_prefixes, layout.start_lefts)
        self.arithmetic.take_starts(self.gradients, layout.starts, starts, layout.batch)
        self.of_prefixes = None

    def _levels_backward(self) -> None:
        super()._levels_backward()
        for leaf, place, count in self._leaves_again():
            self._copy(self.gradients, place, leaf, count, add=True)

    def _leaves_again(self) -> Iterator[tuple[Run, Run, int]]:
        """Of leaves that are not looked up: the slots of those that are merged again, where that is, and how many."""
        layout, batch = self.layout, self.layout.batch
        if layout.looked_up:
            return
        odd = None if layout.last[0] is None else Run(layout.last[0][0], 0, layout.last[0][1])
        start = Run(layout.starts, 0, 1)
        if not layout.levels:
            assert odd is not None
            yield odd, start, 1
            return
        pairs, appends = layout.levels[0], layout.appends[-1]
        assert pairs.slot is not None
        assert appends.slot is not None
        yield Run(pairs.slot, 0, 2), start, 1
        right = Run(appends.slot + 1, 2 * batch, 2)
        yield Run(pairs.slot + 2 * batch, 2 * batch, 2), right, pairs.merges - 1
        if odd is not None:
            yield odd, right._replace(base=right.base + (pairs.merges - 1) * right.step), 1

    def _copy(self, buffers: Pair, source: Run, into: Run, count: int, add: bool = False) -> None:
        if count:
            self.arithmetic.copy(buffers, source, into, count, self.layout.batch, add)


TREES: dict[Form, type[Tree]] = {"whole": Tree, "each": EachTree, "every": EveryTree}
