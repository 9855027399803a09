"""Where the fused paths keep the states of a tree: the merge plan of a batch as places in one buffer, in integers.

Every merge of the whole batch has a *row*, and every row two neighbouring *slots* for the states that it merges: left,
right. A state is written straight into the slot where it is merged, so that the inputs of any run of
rows are one matrix [rows, 2H] with nothing to gather, and so that the weights' gradient is one product over all rows.
Within a level, merge p of batch row b is row p * batch + b. Slots past the last row hold what no merge takes.

A block of tokens depends on its tokens alone, so that V ids make V**2 different blocks of two, however many of them a
batch has. Where ids repeat that much, the lowest levels are *tables*: each pair of ids is merged once, and its number
is an id of the level above. Blocks of those levels are looked up where others are merged.

Where ids repeat, but not their pairs, the lowest level that is no table can be merged *by ids*: what the states of an
id add to the gates' sums is computed once. The rows of its merges come first; they have no slots, and no gates kept.
"""

from collections.abc import Callable, Iterator
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


class Lefts(NamedTuple):
    """Where prefixes are merged again, of `first * 2**level`, `(first + 2) * 2**level`, ... tokens, `first` being odd.

    The one of `(m + 1) * 2**(k + 1)` tokens is the left one of append m of each level k under its own `level`, as far
    as there are appends.

    Attributes:
        first: see above.
        level: see above.
        length: tokens of a row.
        slot: the first of the appends of the level below; those of lower levels follow.
    """

    first: int
    level: int
    length: int
    slot: int

    def appends(self, level: int) -> int:
        """How many there are of a level for each row of the batch."""
        return ((self.length >> level) - 1) // 2

    def at(self, level: int, batch: int) -> "Lefts":
        """Those of the prefixes that begin with as many blocks of a lower `level`."""
        above = sum(self.appends(k) for k in range(level, self.level))
        return self._replace(level=level, slot=self.slot + 2 * batch * above)

    def runs(self, count: int, batch: int) -> Iterator[tuple[Run, int]]:
        """By level, the slots of the first of `count` prefixes, and how many of them are merged there."""
        for level in reversed(range(self.level)):
            step = 1 << (self.level - level)  # from one prefix to the next, in appends
            start = self.first * step // 2 - 1
            here = min(count, -((start - self.appends(level)) // step))
            if here > 0:
                slot = self.at(level + 1, batch).slot
                yield Run(slot + 2 * batch * start, 2 * batch * step, 2), here


class Rights(NamedTuple):
    """Where every second block of a level is merged again, from block `first` on, which is even.

    Block 0 is the first prefix of its row; block 2m is the right one of append m - 1.

    Attributes:
        first: see above.
        start: the first slot of the blocks 0.
        slot: the first of the right ones.
    """

    first: int
    start: int
    slot: int

    def runs(self, count: int, batch: int) -> Iterator[tuple[Run, slice]]:
        """The slots, and of which of `count` blocks."""
        if self.first == 0:
            yield Run(self.start, 0, 1), slice(0, 1)
        start = 0 if self.first else 2
        if start < count:
            yield Run(self.slot + (self.first + start - 2) * batch, 2 * batch, 2), slice(start, None, 2)


class Step(NamedTuple):
    """Merges that can run at once.

    Attributes:
        first: their first row.
        slot: the first of the slots of what they merge; None where that is done by ids.
        merges: how many there are for each row of the batch.
        batch: rows of the batch.
        target: where the results go; of the appends of `every`, in a buffer of all prefixes [batch, length].
        lefts: where the results of these go too.
        rights: where the results of the levels of `every` go too.
    """

    first: int
    slot: int | None
    merges: int
    batch: int
    target: Target
    lefts: Lefts | None = None
    rights: Rights | None = None

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
            before = start * self.batch
            slot = None if self.slot is None else self.slot + 2 * before
            lefts = None if self.lefts is None else self.lefts._replace(first=self.lefts.first + 2 * start)
            rights = None if self.rights is None else self.rights._replace(first=self.rights.first + start)
            yield Step(self.first + before, slot, min(size, self.merges - start), self.batch, target, lefts, rights)


class Table(NamedTuple):
    """The merges of all pairs of `ids` ids: pair (i, j) is number `i * ids + j`, and its state in `result`."""

    ids: int
    step: Step
    result: slice

    @property
    def operands(self) -> Target:
        """The slots of the two ids of each pair."""
        assert self.step.slot is not None
        return Target(self.step.slot, 0, 1, 2, 0, 0)


class LookUp(NamedTuple):
    """Blocks that are looked up by their ids.

    Attributes:
        columns: which of the ids [B, T >> level] of their level; None: the last that each row has.
        target: their slots.
    """

    columns: slice | None
    target: Target


class Layout(NamedTuple):
    """The plan of one batch.

    Attributes:
        batch: rows of the batch.
        length: tokens of its longest row.
        tables: table k merges the pairs of the ids of level k to those of level k + 1.
        lookups: by level, up to the lowest that is no table, where its ids' states go. With no tables: the leaves.
        levels: merge the pairs of a level, from the lowest that is no table, to those of the next; the first may do it
            by ids.
        appends: the merges that append a block to a prefix, after the levels: for `whole` the folds, highest block
            first; for `each` one for every level below the top, highest first; for `every` the same, all its prefixes.
        last: by level, the slots (first, step) of its last node where it has an odd number of them, else None.
        rows: merges of the whole batch.
        slots: places for states.
        result: the slot past what is merged; of the result [batch], but for `every`, which has it in another buffer.
        spare: first of the slots past the results and the tables: of `last` for `each` and `every`, for `each` of
            `scratch` and of what the appends make, and for `every` of `starts`.
        ends: where the block of each level is that ends a row: how many of the level's nodes have their slots in
            pairs, and the target of all nodes. Of a level that is looked up, each row's last node alone has a slot,
            and none is in pairs. For `each` alone.
        scratch: first of [batch] slots whose content no one reads; for `each` alone.
        looked_up: of how many levels, from the lowest, blocks are looked up where they are appended.
        starts: first slot of the blocks that rows start with [levels, batch]; for `every` alone.
        start_lefts: where these are merged again: that of the highest level, see `Lefts.at`.
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
    ends: tuple[tuple[int, Target], ...]
    scratch: int
    looked_up: int
    starts: int
    start_lefts: Lefts

    def pairs(self, level: int) -> Step:
        """The step that merges the pairs of `level`, which has no table."""
        return self.levels[level - len(self.tables)]

    @property
    def by_ids(self) -> Step | None:
        """The step, if any, that merges by ids."""
        return self.levels[0] if self.levels and self.levels[0].slot is None else None


def repeated_levels(batch: int, length: int, ids: int) -> int:
    """How many levels of a batch, of `ids` ids, have pairs that repeat enough for a table."""
    if length < 4 or ids**2 * REPEATS > batch * (length // 2):
        return 0
    return 1 + repeated_levels(batch, length // 2, ids**2)


def make_layout(batch: int, length: int, form: Form, ids: int | None, worth_it: Callable[[int, int], bool]) -> Layout:
    """Lay out the tree of `batch` >= 1 rows of `length` >= 1 tokens.

    Args:
        batch: see above.
        length: see above.
        form: which states are wanted.
        ids: how many the tokens have; None: they have none.
        worth_it: whether to merge by ids, of their number and that of the merges.
    """
    counts = [length >> level for level in range(num_levels(length) + 1)]
    blocks = block_levels(length)
    below = range(len(counts) - 2, -1, -1)  # the levels under the top one
    lowest = 0 if ids is None else repeated_levels(batch, length, ids)
    numbers = [] if ids is None else [ids**2**level for level in range(lowest + 1)]
    merges = [0] * lowest + [count // 2 for count in counts[lowest:]]
    by_ids = ids is not None and merges[lowest] > 0 and worth_it(numbers[lowest], merges[lowest] * batch)
    firsts = [sum(numbers[1:])]  # the first row of each level
    for count in merges:
        firsts.append(firsts[-1] + count * batch)
    without_slots = merges[lowest] * batch if by_ids else 0
    if by_ids:
        firsts[lowest] = 0
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

    def slot_of(row: int) -> int:
        return 2 * (row - without_slots)

    result = slot_of(rows)
    slots = result + (0 if form == "every" else batch)

    tables = []
    first = without_slots
    for few, many in pairwise(numbers):
        step = Step(first, slot_of(first), 1, many, Target.evenly(slots, many, 1))
        tables.append(Table(few, step, slice(slots, slots + many)))
        first, slots = first + many, slots + many
    spare = slots

    last: list[tuple[int, int] | None] = [None] * len(counts)
    in_slots = lowest + by_ids  # the lowest level with slots for all of its blocks
    looked_up = lowest + 1 if form == "every" and ids is not None else in_slots
    scratch = starts = slots
    if form == "whole":  # a level has a last odd node where the length has a block of it
        for place, level in enumerate(blocks):
            fold, side = max(place - 1, 0), min(place, 1)
            last[level] = (slot_of(append_firsts[fold]) + side, 2) if appended else (result, 1)
    else:
        slots += batch * (1 + len(below))
        for level in range(len(counts)):
            # Where blocks are looked up, the last of each row has a slot, whichever its own length makes the last.
            if level in blocks if level >= in_slots else form == "each":
                last[level] = (slots, 1)
                slots += batch

    def pairs_of(level: int) -> Target:
        odd, odd_row = last[level] or (0, 0)
        return Target(slot_of(firsts[level]), 2 * batch, 1, 2, odd, odd_row)

    if form == "whole":
        next_left = [*((slot_of(first), 2) for first in append_firsts[1:-1]), (result, 1)]
        targets = [Target(0, 0, 0, 0, *place) for place in next_left]
    elif form == "each":
        targets = [Target.evenly(scratch + batch * (1 + place), batch, 1) for place in range(len(below))]
    else:  # a block of level k, the odd one of its pair, ends the prefixes (3, 5, 7, ...) * 2**k
        targets = [
            Target.evenly(3 * 2**level - 1, 2 * 2**level, count, length)
            for level, count in zip(below, appended, strict=True)
        ]
    start_lefts = Lefts(1, len(below), length, slot_of(append_firsts[0]))
    levels = []
    for level in range(lowest, len(counts) - 1):
        slot = None if by_ids and level == lowest else slot_of(firsts[level])
        rights = None
        if form == "every":
            append = append_firsts[below.index(level + 1)] if level + 1 in below else 0
            rights = Rights(0, starts + (level + 1) * batch, slot_of(append) + 1)
        levels.append(Step(firsts[level], slot, merges[level], batch, pairs_of(level + 1), rights=rights))
    lefts = [start_lefts.at(level, batch)._replace(first=3) if form == "every" else None for level in below]
    parts_of = append_firsts, map(slot_of, append_firsts), appended, [batch] * len(targets), targets, lefts
    appends = [*map(Step, *parts_of)]

    lookups = []
    for level in range(lowest + 1):
        found = []
        odd = last[level]
        if level < looked_up:  # the blocks that are appended
            if form == "whole" and odd is not None:
                found.append(LookUp(slice(-1, None), Target(0, 0, 0, 0, *odd)))
            elif form == "each" and odd is not None:
                found.append(LookUp(None, Target.evenly(odd[0], batch, 1)))
            elif form == "every":
                found.append(LookUp(slice(1), Target.evenly(starts + level * batch, batch, 1)))
                if level in below and (own := appends[below.index(level)]).merges:
                    right = Target.evenly(slot_of(own.first) + 1, 2 * batch, own.merges, 2)
                    found.append(LookUp(slice(2, None, 2), right))
        if level == in_slots:
            found.append(LookUp(slice(None), pairs_of(level)))
        lookups.append(tuple(found))
    in_pairs = [0 if level < in_slots else count // 2 * 2 for level, count in enumerate(counts)]
    ends = tuple((count, pairs_of(level)) for level, count in enumerate(in_pairs)) if form == "each" else ()
    return Layout(
        batch=batch,
        length=length,
        tables=tuple(tables),
        lookups=tuple(lookups),
        levels=tuple(levels),
        appends=tuple(appends),
        last=tuple(last),
        rows=rows,
        slots=slots,
        result=result,
        spare=spare,
        ends=ends,
        scratch=scratch,
        looked_up=looked_up,
        starts=starts,
        start_lefts=start_lefts,
    )
