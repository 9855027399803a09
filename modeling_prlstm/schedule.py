"""The order of the merges: a length turned into a merge plan, in integers alone (paper section 3).

The composition is not associative, so the order of its merges is part of the model. It is the one of a parallel
prefix scan: written in binary, a prefix length n is cut from the left into blocks of decreasing power-of-two size;
each block is reduced as a perfect binary tree; the blocks are folded from left to right. Length 7 = 4 + 2 + 1 is
`(B4 ∘ B2) ∘ B1`.

Level k of the tree holds the states of the complete blocks of 2**k neighbouring tokens; block j of it covers the
tokens j * 2**k to (j + 1) * 2**k - 1.
"""

# A graph that is traced for any length cannot loop on the length. It runs this many levels, enough for
# 2**(TRACED_LEVELS + 1) - 1 tokens, and pads every TRACED_STAGE levels.
TRACED_LEVELS = 18
TRACED_STAGE = 3


def num_levels(length: int) -> int:
    """The number of merge levels above the leaves of a prefix of `length` >= 1 tokens: floor(log2(length))."""
    return length.bit_length() - 1


def block_levels(length: int) -> tuple[int, ...]:
    """The levels of the blocks that a prefix of `length` tokens is cut into, from left to right.

    They are the set bits of `length`, highest first: 7 gives (2, 1, 0).
    """
    return tuple(level for level in reversed(range(length.bit_length())) if length >> level & 1)


def block_index(length: int, level: int) -> int:
    """The place, among the blocks of its level, of the block of `level` that a prefix of `length` tokens ends in.

    `level` is one of `block_levels(length)`. The blocks before it cover `length >> level` - 1 blocks of its size.
    """
    return (length >> level) - 1
