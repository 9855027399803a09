"""From drawn tokens to the columns of a dataset."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .task import EMPTY_SYMBOL, IGNORED, Task, Tokens

DrawnGroup = tuple[NDArray[np.intp], Tokens, Tokens]


def column_types(task: Task) -> dict[str, Any]:
    """Return the columns' types as a dataset's metadata spells them, in words that old and new versions read."""
    number = {"dtype": "int32", "_type": "Value"}
    text = {"dtype": "string", "_type": "Value"}
    classes = {"names": list(task.output_alphabet), "_type": "ClassLabel"}
    return {
        "input_ids": {"feature": number, "_type": "Sequence"},
        "labels": classes if task.kind == "class" else {"feature": number, "_type": "Sequence"},
        "text": text,
        "target": text,
        "length": number,
    }


def encode(task: Task, lengths: NDArray[np.int64], groups: Iterable[DrawnGroup]) -> pa.Table:
    """Return the table of a block of rows.

    Args:
        task: the task that the rows belong to.
        lengths: (rows,) the requested length of every row.
        groups: for every length, which rows of the block have it, their inputs and their outputs.

    Returns:
        Columns `input_ids` (the input, then an empty token for every output unless the task is of kind
        "tags"), `labels` (the class, or a list as long as `input_ids` with -100 where nothing is asked),
        `text` (the symbols of `input_ids`, without the empty token that the tokenizers of "class" tasks
        append), `target` (the output symbols) and `length` (the requested length).
    """
    used, where = np.unique(lengths, return_inverse=True)
    taken = np.array([task.input_length(int(length)) for length in used])[where]
    given = np.array([task.output_length(int(length)) for length in used])[where]
    starts = _offsets(taken if task.kind == "tags" else taken + given)
    output_starts = _offsets(given)

    input_ids = np.full(starts[-1], task.input_size, dtype=np.int32)
    outputs = np.empty(output_starts[-1], dtype=np.int32)
    for rows, drawn_inputs, drawn_outputs in groups:
        input_ids[starts[rows][:, None] + np.arange(drawn_inputs.shape[1])] = drawn_inputs
        outputs[output_starts[rows][:, None] + np.arange(drawn_outputs.shape[1])] = drawn_outputs

    written, written_starts = input_ids, starts
    labels: pa.Array
    if task.kind == "class":
        labels = pa.array(outputs.astype(np.int64))
        written, written_starts = input_ids[input_ids != task.input_size], _offsets(taken)
    elif task.kind == "sequence":
        spread = np.full(len(input_ids), IGNORED, dtype=np.int32)
        spread[input_ids == task.input_size] = outputs
        labels = _lists(spread, starts)
    else:
        labels = _lists(outputs, starts)
    answers = np.where(outputs == IGNORED, task.output_size, outputs)
    return pa.table(
        {
            "input_ids": _lists(input_ids, starts),
            "labels": labels,
            "text": _strings(task.alphabet + EMPTY_SYMBOL, written, written_starts),
            "target": _strings(task.output_alphabet + EMPTY_SYMBOL, answers, output_starts),
            "length": pa.array(lengths.astype(np.int32)),
        }
    )


def _offsets(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(sizes)])


def _lists(values: NDArray[np.int32], offsets: NDArray[np.int64]) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))


def _strings(symbols: str, ids: NDArray[np.int32], offsets: NDArray[np.int64]) -> pa.Array:
    """Return the strings that flat symbol numbers spell, cut at the offsets."""
    encoded = [symbol.encode() for symbol in symbols]
    size = np.array([len(symbol) for symbol in encoded])
    width = int(size.max())
    table = np.frombuffer(b"".join(symbol.ljust(width) for symbol in encoded), dtype=np.uint8)
    data = table.reshape(-1, width)[ids]
    if width > 1:
        used = size[ids]
        data = data[np.arange(width) < used[:, None]]
        offsets = _offsets(used)[offsets]
    buffers = pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(np.ascontiguousarray(data))
    return pa.StringArray.from_buffers(len(offsets) - 1, *buffers)
