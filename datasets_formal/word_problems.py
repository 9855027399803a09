"""Word problems of permutation groups: the standard test of state tracking."""

from __future__ import annotations

import itertools
import string

import numpy as np
from numpy.typing import NDArray

from .streams import RowStreams
from .task import Kind, Task, Tokens

# 120 characters that can be told apart, for the 120 elements of S5.
SYMBOLS = string.digits + string.ascii_letters + "αβγδεζηθικλμνξπρστυφχψω" + "ΓΔΘΛΞΠΣΦΨΩ" + "бвгджзийлптфцчшщъыьэюяћђљ"

Permutation = tuple[int, ...]


class WordProblem(Task):
    """Multiply permutations from left to right.

    A symbol is a permutation p of 0..n-1, numbered in lexicographic order of (p(0), p(1), ...); the product
    of p and q applies p first, so that x goes to q(p(x)). The tokens are drawn evenly from the whole group;
    the answer is the product of all of them (kind "class") or of every prefix (kind "tags"). In S3, 0 is the
    identity, 1 exchanges the last two places and 2 the first two: 12 has the product 3, 21 the product 4. A5
    numbers the even permutations alone.
    """

    level = "regular"
    source = "Merrill, Petty and Sabharwal, ICML 2024, arXiv 2404.08819"

    def __init__(self, group: str, elements: list[Permutation], kind: Kind) -> None:
        self.name = f"{group}_word_problem" + ("_states" if kind == "tags" else "")
        self.kind = kind
        self.alphabet = self.output_alphabet = SYMBOLS[: len(elements)]
        self.chance = 1 / len(elements)
        self._group = group.upper()
        self._elements = elements
        self._table = _multiplication_table(elements)

    @property
    def summary(self) -> str:
        """What is multiplied and where the answers are."""
        answer = "after every token" if self.kind == "tags" else "at the end"
        return f"Multiply permutations of {self._group} from left to right; answer {answer}."

    def output_length(self, length: int) -> int:
        """Return 1, or an output for every token."""
        return 1 if self.kind == "class" else length

    def draw(self, streams: RowStreams, length: int) -> tuple[Tokens, Tokens]:
        """Draw elements evenly; all prefixes are multiplied at once, by doubling."""
        inputs = streams.symbols(self.input_size, length)
        products = inputs
        shift = 1
        while shift < length:
            later = self._table[products[:, :-shift], products[:, shift:]]
            products = np.concatenate([products[:, :shift], later], axis=1)
            shift *= 2
        return inputs, products[:, -self.output_length(length) :]

    def _solve(self, symbols: str) -> str:
        places = tuple(range(len(self._elements[0])))
        answers = []
        for symbol in symbols:
            permutation = self._elements[self.alphabet.index(symbol)]
            places = tuple(permutation[place] for place in places)
            answers.append(self.output_alphabet[self._elements.index(places)])
        return "".join(answers[-self.output_length(len(symbols)) :])


def word_problems() -> list[Task]:
    """Return the word problems of S3, A5 and S5, each with the answer at the end and at every position."""
    s5 = list(itertools.permutations(range(5)))
    groups = {
        "s3": list(itertools.permutations(range(3))),
        "a5": [permutation for permutation in s5 if _inversions(permutation) % 2 == 0],
        "s5": s5,
    }
    return [WordProblem(group, elements, kind) for group, elements in groups.items() for kind in ("class", "tags")]


def _inversions(permutation: Permutation) -> int:
    return sum(later < earlier for earlier, later in itertools.combinations(permutation, 2))


def _multiplication_table(elements: list[Permutation]) -> NDArray[np.int16]:
    """Return the number of the product of every two elements, (elements, elements)."""
    permutations = np.array(elements)
    products = permutations[:, permutations].transpose(1, 0, 2)
    # Read as digits, permutations in lexicographic order are rising numbers.
    weights = 10 ** np.arange(permutations.shape[1])[::-1]
    return np.searchsorted(permutations @ weights, products @ weights).astype(np.int16)
