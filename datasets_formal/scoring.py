"""The benchmark's accuracy, computed over whole arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .encoding import IGNORED
from .registry import get_task

SOLVED = 0.9


def formal_accuracy(
    predictions: Sequence[Any] | NDArray[np.integer],
    references: Sequence[Any] | NDArray[np.integer],
    task: str,
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
        task: the name of the task, which says what is scored.
        lengths: (rows,) the requested length of every row.

    Returns:
        `accuracy` over all scored outputs; with `lengths` also `accuracy_by_length` (from length to
        accuracy), their mean `score`, and `solved`, whether that is at least 0.9.

    Raises:
        ValueError: shapes differ, nothing is scored, or there is no such task.
    """
    predicted, predicted_sizes = _flatten("predictions", predictions)
    expected, sizes = _flatten("references", references)
    if not np.array_equal(predicted_sizes, sizes):
        raise ValueError(
            "predictions and references must have the same number of rows and of outputs in each, "
            f"got {len(predicted)} in {len(predicted_sizes)} rows and {len(expected)} in {len(sizes)}"
        )
    row = np.repeat(np.arange(len(sizes)), sizes)
    scored = expected != IGNORED
    terminator = get_task(task).terminator
    if terminator is not None:
        ends = expected == terminator
        earlier = np.cumsum(ends) - ends
        firsts = np.minimum(np.cumsum(sizes) - sizes, max(len(earlier) - 1, 0))
        scored &= earlier == earlier[firsts][row]
    if not scored.any():
        raise ValueError(f"references hold no scored output: all {len(expected)} of them are {IGNORED}")
    right = scored & (predicted == expected)
    result: dict[str, Any] = {"accuracy": float(right.sum() / scored.sum())}
    if lengths is None:
        return result

    if len(lengths) != len(sizes):
        raise ValueError(f"lengths must have one entry a row, got {len(lengths)} for {len(sizes)} rows")
    found, which = np.unique(np.asarray(lengths), return_inverse=True)
    counted = np.bincount(which[row[scored]], minlength=len(found))
    hits = np.bincount(which[row[right]], minlength=len(found))
    result["accuracy_by_length"] = dict(zip(found.tolist(), (hits / counted).tolist(), strict=True))
    result["score"] = float(np.mean(hits / counted))
    result["solved"] = result["score"] >= SOLVED
    return result


def _flatten(name: str, rows: Sequence[Any] | NDArray[np.integer]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return all values in one array, and how many each row has."""
    if isinstance(rows, np.ndarray) and rows.dtype != np.object_:
        flat, sizes = rows.reshape(-1), np.full(len(rows), rows[0].size if len(rows) else 0)
    else:
        parts = [np.atleast_1d(row) for row in rows]
        flat = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
        sizes = np.array([len(part) for part in parts], dtype=np.int64)
    if len(flat) and not np.issubdtype(flat.dtype, np.integer):
        raise ValueError(f"{name} must be classes (integers), got {flat.dtype}: take the argmax of logits")
    return flat, sizes
