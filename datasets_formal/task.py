"""What a task is: an alphabet, a vectorised sampler, an independent solver, and what counts for the score."""

from __future__ import annotations

import inspect
import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .streams import RowStreams

Level = Literal["regular", "deterministic context-free", "context-sensitive"]
Kind = Literal["class", "sequence", "tags"]
Tokens = NDArray[np.int16]

EMPTY_SYMBOL = "_"
IGNORED = -100
_EXAMPLE_LENGTH = 9


class Task(ABC):
    """A task of the benchmark.

    Inputs are tokens 0..input_size-1, outputs are classes 0..output_size-1. The token input_size is the
    "empty" token, read as many times as there are outputs, after the input: the answer to output j is read
    off the model at the j-th empty token. Tasks of kind "tags" have no empty tokens: output j is read at
    token j, and is -100 (`_` as a symbol) where nothing is asked.

    Attributes:
        name: the name to load the task by.
        level: the level of the Chomsky hierarchy that its source puts the task on.
        kind: "class" for one output after the input, "sequence" for `output_length(length)` of them, "tags"
            for one at every input token.
        alphabet: the symbol of every input token, one character each.
        output_alphabet: the symbol of every class, one character each.
        terminator: the class after whose first occurrence outputs no longer count, or None.
        chance: the accuracy of guessing evenly among the classes that an output can take.
        source: where the task was published.
    """

    name: str
    level: Level
    kind: Kind
    alphabet: str
    output_alphabet: str
    terminator: int | None = None
    chance: float
    source: str = "Delétang et al., ICLR 2023, arXiv 2207.02098"

    @property
    def input_size(self) -> int:
        """Number of input tokens; also the id of the empty token."""
        return len(self.alphabet)

    @property
    def output_size(self) -> int:
        """Number of classes."""
        return len(self.output_alphabet)

    @property
    def summary(self) -> str:
        """First line of the task's documentation."""
        return (self.__doc__ or "").partition("\n")[0]

    @property
    def description(self) -> str:
        """The documentation, then level, kind, symbols, an example, chance and source, a line each."""
        details = inspect.cleandoc(self.__doc__ or "").partition("\n")[2].strip()
        return (
            f"{self.summary}\n\n{details}\n\n"
            f"Level: {self.level}\n"
            f"Kind: {self.kind}\n"
            f"Alphabet: {self.alphabet}\n"
            f"Outputs: {self.output_alphabet}\n"
            f"Example: {' -> '.join(self.example)}\n"
            f"Chance: {self.chance:.1%}\n"
            f"Source: {self.source}"
        )

    def input_length(self, length: int) -> int:
        """Return the number of input tokens in a row of the requested length."""
        return length

    def output_length(self, length: int) -> int:
        """Return the number of outputs of a row of the requested length."""
        return 1

    @abstractmethod
    def draw(self, streams: RowStreams, length: int) -> tuple[Tokens, Tokens]:
        """Return one row of the requested length for every stream.

        Returns:
            inputs (rows, input_length(length)) and outputs (rows, output_length(length)), both int16.
        """

    @abstractmethod
    def _solve(self, symbols: str) -> str:
        """Return the output symbols for the input symbols, by other means than `draw`."""

    def sample(self, generator: np.random.Generator, batch: int, length: int) -> tuple[Tokens, Tokens]:
        """Draw `batch` rows of the requested length.

        Args:
            generator: the only source of randomness.
            batch: number of rows, at least 0.
            length: requested input length, at least 1.

        Returns:
            inputs (batch, input_length(length)) and outputs (batch, output_length(length)), both int16.

        Raises:
            TypeError: `generator` is no numpy generator.
            ValueError: `batch` or `length` is no integer or too small.
        """
        if not isinstance(generator, np.random.Generator):
            raise TypeError(f"generator must be a numpy Generator, as np.random.default_rng(seed), got {generator!r}")
        check_integer("batch", batch, 0)
        check_integer("length", length, 1)
        return self.draw(RowStreams.seeded(generator, batch), length)

    def solve(self, tokens: Sequence[int]) -> list[int]:
        """Return the outputs that belong to one row of input tokens.

        Raises:
            ValueError: a token is outside the alphabet, or the row is not an input of this task.
        """
        if len(tokens) == 0:
            raise ValueError(f"{self.name} needs at least one input token, got none")
        for token in tokens:
            if not hasattr(token, "__index__") or token not in range(self.input_size):
                raise ValueError(f"{self.name} knows the tokens 0..{self.input_size - 1}, got {token!r}")
        answer = self._solve("".join(self.alphabet[token] for token in tokens))
        return [IGNORED if symbol == EMPTY_SYMBOL else self.output_alphabet.index(symbol) for symbol in answer]

    def __repr__(self) -> str:
        return (
            f"<{self.name}: {self.level}, {self.kind}, alphabet {self.alphabet!r}, outputs {self.output_alphabet!r}, "
            f"chance {self.chance:.3g}>"
        )

    def spell(self, inputs: NDArray[np.integer], outputs: NDArray[np.integer]) -> tuple[str, str]:
        """Return one row of input tokens and one of outputs as the symbols that stand for them."""
        written = "".join(self.alphabet[token] for token in inputs)
        answers = "".join(self.output_alphabet[value] if value >= 0 else EMPTY_SYMBOL for value in outputs)
        return written, answers

    @property
    def example(self) -> tuple[str, str]:
        """Input and output of a short row, in symbols; always the same."""
        inputs, outputs = self.draw(RowStreams.keyed("example", np.arange(1)), _EXAMPLE_LENGTH)
        return self.spell(inputs[0], outputs[0])

    def scored(self, outputs: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Return which outputs count for the benchmark's accuracy, (rows, outputs) bool."""
        asked = outputs != IGNORED
        if self.terminator is None:
            return asked
        ends = outputs == self.terminator
        return asked & (np.cumsum(ends, axis=-1) - ends == 0)


def check_integer(name: str, value: Any, least: int | None = None) -> None:
    """Raise ValueError, with the argument's name and value, unless it is an integer that is large enough."""
    wanted = "an integer" if least is None else f"an integer of at least {least}"
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be {wanted}, got {value!r}") from None
    if isinstance(value, bool) or (least is not None and number < least):
        raise ValueError(f"{name} must be {wanted}, got {value!r}")
