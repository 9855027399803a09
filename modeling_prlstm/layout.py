"""Where the fused paths keep the states of a tree: the merge plan of a batch as places in one buffer, in integers.

Every merge of the whole batch has a *row*, and every row two *slots*, 2 * row and 2 * row + 1, for the states that it
merges: left, right. A state is written straight into the slot where it is merged, so that the inputs of any run of
rows are one matrix [rows, 2H] with nothing to gather, and so that the weights' gradient is one product over all rows.
Within a level, merge p of batch row b is row p * batch + b. Slots past the last row hold what no merge takes.

A block of tokens depends on its tokens alone, so that V ids make V**2 different blocks of two, however many of them a
batch has. Where ids repeat that much, the lowest levels are *tables*: each pair of ids is merged once, and its number
is an id of the level above. Blocks of those levels are looked up where others are merged.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal, NamedTuple

from .schedule import block_levels, num_levels

# `whole`: the last state, all rows as long as the batch. `each`: the last state of rows of their own lengths.
# `every`: the state at every position.
Form = Literal["whole", "each", "every"]

# Pairs of ids are merged once each where there are this many times more pairs of tokens.
REPEATS = 8


class Target(NamedTuple):
    """The slots of the results of a step, or of leaves.

    That of merge (or leaf) p, batch row b goes to `base + p // 2 * pair + p % 2 * side + b * row`; but the last of an
    odd number of them to `odd + b * odd_row`.
    """

    base: int
    pair: int
    side: int
    row: int
    odd: int
    odd_row: int

    @classmethod
    def evenly(cls, base: int, step: int, count: int, row: int = 1) -> "Target":
        """Merge p of `count`, batch row b in slot `base + p * step + b * row`."""
        return cls(base, 2 * step, step, row, base + (count - 1) * step, row)


class Run(NamedTuple):
    """Slots at even distances: of the m-th block or prefix of batch row b, `base + m * step + b * row`."""

    base: int
    step: int
    row: int


class Step(NamedTuple):
    """Merges that can run at once: `merges` for each of `batch` rows, from row `first` on; results go to `target`."""

    first: int
    merges: int
    batch: int
    target: Target

    @property
    def rows(self) -> int:
        """How many rows its merges have."""
        return self.merges * self.batch

    def split(self, rows: int | None) -> Iterator["Step"]:
        """The step in parts of about `rows` rows, each of an even number of merges; None: in one."""
        size = max(2, self.merges if rows is None else rows // self.batch // 2 * 2)
        size += size % 2
        for start in range(0, self.merges, size):
            base = self.target.base + start // 2 * self.target.pair
            target = self.target._replace(base=base)
            yield Step(self.first + start * self.batch, min(size, self.merges - start), self.batch, target)


class Table(NamedTuple):
    """The merges of all pairs of `ids` ids: pair (i, j) is number `i * ids + j`, and its state in `result`."""

    ids: int
    step: Step
    result: slice

    @property
    def operands(self) -> Target:
        """The slots of the two ids of each pair."""
        return Target(2 * self.step.first, 0, 1, 2, 0, 0)


class LookUp(NamedTuple):
    """Blocks that are looked up by their ids: `columns` of the ids [B, T >> level] of their level, and their slots."""

    columns: slice
    target: Target


class Layout(NamedTuple):
    """The plan of one batch.

    Attributes:
        batch: rows of the batch.
        length: tokens of its longest row.
        tables: table k merges the pairs of the ids of level k to those of level k + 1.
        lookups: by level, up to the lowest that is no table, where its ids' states go. With no tables: the leaves.
        levels: merge the pairs of a level, from the lowest that is no table, to those of the next.
        appends: the merges that append a block to a prefix, after the levels: for `whole` the folds, highest block
            first; for `each` one for every level below the top, highest first; for `every` the same, all its prefixes.
        last: by level, the slots (first, step) of its last node where it has an odd number of them, else None.
        rows: merges of the whole batch.
        slots: places for states.
        result: first slot of the result: [batch], for `every` [batch, length].
        spare: first of the slots past the results and the tables: of `last` for `each` and `every`.
        scratch: first of [batch] slots for a merged state; for `each` alone.
    """

    batch: int
    length: int
    tables: tuple[Table, ...]
    lookups: tuple[tuple[LookUp, ...], ...]
    levels: tuple[Step, ...]
    appends: tuple[Step, ...]
    last: tuple[tuple[int, int] | None, ...]
    rows: int
    slots: int
    result: int
    spare: int
    scratch: int

    def nodes(self, level: int) -> int:
        """The number of complete blocks of `level`, that is of its nodes."""
        return self.length >> level

    def pairs(self, level: int) -> Step:
        """The step that merges the pairs of `level`, which has no table."""
        return self.levels[level - len(self.tables)]


def repeated_levels(form: Form, batch: int, length: int, ids: int) -> int:
    """How many levels of a batch, of `ids` ids, have pairs that repeat enough for a table."""
    if form == "each" or length < 4 or ids**2 * REPEATS > batch * (length // 2):
        return 0
    return 1 + repeated_levels(form, batch, length // 2, ids**2)


def make_layout(batch: int, length: int, form: Form, ids: int | None) -> Layout:
    """Lay out the tree of `batch` >= 1 rows of `length` >= 1 tokens, of `ids` ids; None: of tokens without ids."""
    counts = [length >> level for level in range(num_levels(length) + 1)]
    blocks = block_levels(length)
    below = range(len(counts) - 2, -1, -1)  # the levels under the top one
    lowest = 0 if ids is None else repeated_levels(form, batch, length, ids)
    numbers = [] if ids is None else [ids**2**level for level in range(lowest + 1)]
    merges = [0] * lowest + [count // 2 for count in counts[lowest:]]
    firsts = [sum(numbers[1:])]  # the first row of each level
    for count in merges:
        firsts.append(firsts[-1] + count * batch)
    if form == "whole":
        appended = [1] * (len(blocks) - 1)
    elif form == "each":
        appended = [1 for _ in below]
    else:
        appended = [(counts[level] - 1) // 2 for level in below]
    append_firsts = [firsts[-1]]
    for count in appended:
        append_firsts.append(append_firsts[-1] + count * batch)
    rows = append_firsts[-1]
    result = 2 * rows
    slots = result + batch * (length if form == "every" else 1)

    tables = []
    first = 0
    for few, many in pairwise(numbers):
        step = Step(first, 1, many, Target.evenly(slots, many, 1))
        tables.append(Table(few, step, slice(slots, slots + many)))
        first, slots = first + many, slots + many
    spare = slots

    last: list[tuple[int, int] | None] = [None] * len(counts)
    scratch = slots
    if form == "whole":  # a level has a last odd node where the length has a block of it
        for place, level in enumerate(blocks):
            fold, side = max(place - 1, 0), min(place, 1)
            last[level] = (2 * append_firsts[fold] + side, 2) if appended else (result, 1)
    else:
        slots += batch if form == "each" else 0
        for level in blocks:
            if level >= lowest:
                last[level] = (slots, 1)
                slots += batch

    def pairs_of(level: int) -> Target:
        odd, odd_row = last[level] or (0, 0)
        return Target(2 * firsts[level], 2 * batch, 1, 2, odd, odd_row)

    if form == "whole":
        ends = [*((2 * first, 2) for first in append_firsts[1:-1]), (result, 1)]
        targets = [Target(0, 0, 0, 0, *end) for end in ends]
    elif form == "each":
        targets = [Target.evenly(scratch, batch, 1) for _ in below]
    else:  # a block of level k, the odd one of its pair, ends the prefixes (3, 5, 7, ...) * 2**k
        targets = [
            Target.evenly(result + 3 * 2**level - 1, 2 * 2**level, count, length)
            for level, count in zip(below, appended, strict=True)
        ]
    levels = tuple(Step(firsts[k], counts[k + 1], batch, pairs_of(k + 1)) for k in range(lowest, len(counts) - 1))
    appends = tuple(map(Step, append_firsts, appended, [batch] * len(targets), targets))

    lookups = []
    for level in range(lowest):  # the blocks that are appended
        found = []
        odd = last[level]
        if form == "whole" and odd is not None:
            found.append(LookUp(slice(-1, None), Target(0, 0, 0, 0, *odd)))
        elif form == "every":
            found.append(LookUp(slice(1), Target.evenly(result + 2**level - 1, 0, 1, length)))
            step = appends[below.index(level)]
            right = Target.evenly(2 * step.first + 1, 2 * batch, step.merges, 2)
            found.append(LookUp(slice(2, None, 2), right))
        lookups.append(tuple(found))
    lookups.append((LookUp(slice(None), pairs_of(lowest)),))
    return Layout(
        batch, length, tuple(tables), tuple(lookups), levels, appends, tuple(last), rows, slots, result, spare, scratch
    )
