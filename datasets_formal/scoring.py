"""The benchmark's accuracy, computed over whole arrays."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .registry import get_task
from .task import IGNORED, Task

SOLVED = 0.9


def formal_accuracy(
    predictions: Sequence[Any] | NDArray[np.integer],
    references: Sequence[Any] | NDArray[np.integer],
    task: str | Sequence[str],
    lengths: Sequence[int] | NDArray[np.integer] | None = None,
) -> dict[str, Any]:
    """Return the share of scored outputs that are right.

    An output is scored unless its reference is -100 or, in tasks with a terminator, it comes after the
    reference's first terminator. As in the benchmark's code, all scored outputs of a length are pooled (an
    example with more of them weighs more), and the score is the mean over lengths. The benchmark pools 64
    examples at a time and averages over such batches; we pool all examples of a length.

    Args:
        predictions: predicted classes: (rows,), (rows, outputs), or a list of lists. They may cover every
            position of `input_ids`, as references do that are -100 on the input.
        references: the true classes, of the same shape.
        task: the name of the task, which says what is scored, or the name of every row's task.
        lengths: (rows,) the requested length of every row.

    Returns:
        `accuracy` over all scored outputs; with `lengths` also `accuracy_by_length` (from length to
        accuracy), their mean `score`, and `solved`, whether that is at least 0.9. Given a task for every
        row: `by_task`, with the above for each, and `by_level`, the mean over the tasks of each level of
        their score (without `lengths`: of their accuracy).

    Raises:
        ValueError: shapes differ, classes are out of range, nothing is scored, or there is no such task.
    """
    predicted, predicted_sizes = flatten("predictions", predictions)
    expected, sizes = flatten("references", references)
    if not np.array_equal(predicted_sizes, sizes):
        raise ValueError(
            "predictions and references must have the same number of rows and of outputs in each, "
            f"got {len(predicted)} in {len(predicted_sizes)} rows and {len(expected)} in {len(sizes)}"
        )
    for name, column in (("lengths", lengths), ("task", None if isinstance(task, str) else task)):
        if column is not None and len(column) != len(sizes):
            raise ValueError(f"{name} must have one entry a row, got {len(column)} for {len(sizes)} rows")

    at = None if lengths is None else np.asarray(lengths)
    if isinstance(task, str):
        return _one_task(get_task(task), predicted, expected, sizes, at)
    by_task, by_level = {}, defaultdict(list)
    names = np.asarray(task)
    for name in dict.fromkeys(task):
        rows = names == name
        values = np.repeat(rows, sizes)
        result = _one_task(
            get_task(name), predicted[values], expected[values], sizes[rows], None if at is None else at[rows]
        )
        by_task[name] = result
        by_level[get_task(name).level].append(result["accuracy" if at is None else "score"])
    return {"by_task": by_task, "by_level": {level: float(np.mean(scores)) for level, scores in by_level.items()}}


def _one_task(
    task: Task,
    predicted: NDArray[Any],
    expected: NDArray[Any],
    sizes: NDArray[np.int64],
    lengths: NDArray[Any] | None,
) -> dict[str, Any]:
    """Score the rows of one task, given all their outputs in one array and how many each row has."""
    row = np.repeat(np.arange(len(sizes)), sizes)
    scored = expected != IGNORED
    if not scored.any():
        raise ValueError(f"references of {task.name} hold no scored output: all {len(expected)} are {IGNORED}")
    wrong = expected[scored & ((expected < 0) | (expected >= task.output_size))]
    if len(wrong):
        raise ValueError(
            f"references of {task.name} must be classes 0..{task.output_size - 1} or {IGNORED}, got {wrong[0]}"
        )
    if task.terminator is not None:
        ends = expected == task.terminator
        earlier = np.cumsum(ends) - ends
        first = np.minimum(np.cumsum(sizes) - sizes, len(earlier) - 1)
        scored &= earlier == earlier[first][row]
    right = scored & (predicted == expected)
    result: dict[str, Any] = {"accuracy": float(right.sum() / scored.sum())}
    if lengths is not None:
        found, which = np.unique(lengths, return_inverse=True)
        counted = np.bincount(which[row[scored]], minlength=len(found))
        if not counted.all():
            raise ValueError(f"references of {task.name} hold no scored output at length {found[counted == 0][0]}")
        accuracies = np.bincount(which[row[right]], minlength=len(found)) / counted
        result["accuracy_by_length"] = dict(zip(found.tolist(), accuracies.tolist(), strict=True))
        result["score"] = float(accuracies.mean())
        result["solved"] = result["score"] >= SOLVED
    return result


def flatten(name: str, rows: Sequence[Any] | NDArray[np.integer]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return all values in one array, and how many each row has; ValueError unless they are integers."""
    if isinstance(rows, np.ndarray) and rows.dtype != np.object_:
        flat, sizes = rows.reshape(-1), np.full(len(rows), rows[0].size if len(rows) else 0)
    else:
        parts = [np.atleast_1d(row) for row in rows]
        flat = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
        sizes = np.array([len(part) for part in parts], dtype=np.int64)
    if len(flat) and not np.issubdtype(flat.dtype, np.integer):
        raise ValueError(f"{name} must be classes (integers), got {flat.dtype}: take the argmax of logits")
    return flat, sizes
