"""The table of tasks in the dataset cards."""

from __future__ import annotations

from collections.abc import Iterable

from .task import Task


def table(tasks: Iterable[Task]) -> str:
    """Return a Markdown table of tasks, one worked example each."""
    lines = ["| task | level | answers | example | chance | source |", "|---|---|---|---|---|---|"]
    answers = {"class": "one", "sequence": "several, after the input", "tags": "one at every token"}
    for task in tasks:
        written, answer = task.example
        lines.append(
            f"| `{task.name}`: {task.summary} | {task.level} | {answers[task.kind]} | `{written}` → `{answer}` "
            f"| {task.chance:.3g} | {task.source} |"
        )
    return "\n".join(lines)
