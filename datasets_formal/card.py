"""What a reader wants to know about the tasks, as text: the table and the worked examples of the cards."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from .streams import RowStreams
from .task import EMPTY_SYMBOL, Task

_EXAMPLE_LENGTH = 9


def spell(task: Task, inputs: NDArray[np.integer], outputs: NDArray[np.integer]) -> tuple[str, str]:
    """Return one row of input tokens and one of outputs as the symbols that stand for them."""
    written = "".join(task.alphabet[token] for token in inputs)
    answers = "".join(task.output_alphabet[value] if value >= 0 else EMPTY_SYMBOL for value in outputs)
    return written, answers


def example(task: Task) -> tuple[str, str]:
    """Return the input and the output of a short row, always the same."""
    inputs, outputs = task.draw(RowStreams.keyed("example", np.arange(1)), _EXAMPLE_LENGTH)
    return spell(task, inputs[0], outputs[0])


def table(tasks: Iterable[Task]) -> str:
    """Return a Markdown table of tasks, one worked example each."""
    lines = ["| task | level | answers | example | chance | source |", "|---|---|---|---|---|---|"]
    answers = {"class": "one", "sequence": "several, after the input", "tags": "one at every token"}
    for task in tasks:
        written, answer = example(task)
        lines.append(
            f"| `{task.name}`: {task.summary} | {task.level} | {answers[task.kind]} | `{written}` → `{answer}` "
            f"| {task.chance:.3g} | {task.source} |"
        )
    return "\n".join(lines)
