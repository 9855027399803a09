"""Where the fused paths keep the states of a tree: the merge plan of a batch as places in one buffer, in integers.

Every merge of the whole batch has a *row*, and every row two *slots*, 2 * row and 2 * row + 1, for the states that it
merges: left, right. A state is written straight into the slot where it is merged, so that the inputs of any run of
rows are one matrix [rows, 2H] with nothing to gather, and so that the weights' gradient is one product over all rows.
Within a level, merge p of batch row b is row p * batch + b. Slots past the last row hold what no merge takes.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

from .schedule import block_levels, num_levels

# `whole`: the last state, all rows as long as the batch. `each`: the last state of rows of their own lengths.
# `every`: the state at every position.
Form = Literal["whole", "each", "every"]


class Target(NamedTuple):
    """The slots of the results of a step.

    That of merge p, batch row b goes to `base + p // 2 * pair + p % 2 * side + b * row`; but the last of an odd number
    of merges to `odd + b * odd_row`.
    """

    base: int
    pair: int
    side: int
    row: int
    odd: int
    odd_row: int

    @classmethod
    def evenly(cls, base: int, step: int, count: int) -> "Target":
        """Merge p, batch row b in slot `base + p * step + b`."""
        return cls(base, 2 * step, step, 1, base + (count - 1) * step, 1)


class Run(NamedTuple):
    """Slots at even distances: of the m-th block or prefix of batch row b, `base + m * step + b * row`."""

    base: int
    step: int
    row: int


class Step(NamedTuple):
    """Merges that can run at once: `merges` for each batch row, from row `first` on; their results go to `target`."""

    first: int
    merges: int
    target: Target

    def split(self, batch: int, rows: int | None) -> Iterator["Step"]:
        """The step in parts of about `rows` rows, each of an even number of merges; None: in one."""
        size = max(2, self.merges if rows is None else rows // batch // 2 * 2)
        size += size % 2
        for start in range(0, self.merges, size):
            base = self.target.base + start // 2 * self.target.pair
            yield Step(self.first + start * batch, min(size, self.merges - start), self.target._replace(base=base))


class Layout(NamedTuple):
    """The plan of one batch.

    Attributes:
        batch: rows of the batch.
        length: tokens of its longest row.
        leaves: where the leaves go.
        levels: step k merges the pairs of level k to level k + 1.
        appends: the merges that append a block to a prefix, after the levels: for `whole` the folds, highest block
            first; for `each` one for every level below the top, highest first; for `every` the same, all its prefixes.
        last: by level, the slots (first, step) of its last node where it has an odd number of them, else None.
        rows: merges of the whole batch.
        slots: places for states.
        result: first slot of the result: [batch], for `every` [length, batch].
        scratch: first of [batch] slots for a merged state; for `each` alone.
    """

    batch: int
    length: int
    leaves: Target
    levels: tuple[Step, ...]
    appends: tuple[Step, ...]
    last: tuple[tuple[int, int] | None, ...]
    rows: int
    slots: int
    result: int
    scratch: int

    def nodes(self, level: int) -> int:
        """The number of complete blocks of `level`, that is of its nodes."""
        return self.length >> level


def make_layout(batch: int, length: int, form: Form) -> Layout:
    """Lay out the tree of `batch` >= 1 rows of `length` >= 1 tokens."""
    counts = [length >> level for level in range(num_levels(length) + 1)]
    blocks = block_levels(length)
    firsts = [0]
    for count in counts:
        firsts.append(firsts[-1] + count // 2 * batch)
    below = range(len(counts) - 2, -1, -1)  # the levels under the top one
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

    last: list[tuple[int, int] | None] = [None] * len(counts)
    scratch = slots
    if form == "whole":  # a level has a last odd node where the length has a block of it
        for place, level in enumerate(blocks):
            fold, side = max(place - 1, 0), min(place, 1)
            last[level] = (2 * append_firsts[fold] + side, 2) if appended else (result, 1)
    else:
        slots += batch if form == "each" else 0
        for level in blocks:
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
            Target.evenly(result + (3 * 2**level - 1) * batch, 2 * 2**level * batch, count)
            for level, count in zip(below, appended, strict=True)
        ]
    levels = tuple(Step(firsts[level], counts[level + 1], pairs_of(level + 1)) for level in range(len(counts) - 1))
    appends = tuple(map(Step, append_firsts, appended, targets))
    return Layout(batch, length, pairs_of(0), levels, appends, tuple(last), rows, slots, result, scratch)
