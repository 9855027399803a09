"""All tasks by name, and the name of them all."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType

from .context_free import ModularArithmeticBrackets, ReverseString, SolveEquation, StackManipulation
from .context_sensitive import (
    BinaryAddition,
    BinaryMultiplication,
    BucketSort,
    ComputeSqrt,
    DuplicateString,
    MissingDuplicateString,
    OddsFirst,
)
from .listops import ListOps
from .recall import AssociativeRecall
from .recognition import BoundedDyck, First, Majority
from .regular import CycleNavigation, EvenPairs, ModularArithmetic, ParityCheck
from .task import Task
from .word_problems import word_problems

NAME = "datasets_formal"
"""What `load_dataset` knows this package by."""

_ALL: tuple[Task, ...] = (
    EvenPairs(),
    ModularArithmetic(),
    ParityCheck(),
    CycleNavigation(),
    StackManipulation(),
    ReverseString(),
    ModularArithmeticBrackets(),
    SolveEquation(),
    DuplicateString(),
    MissingDuplicateString(),
    OddsFirst(),
    BinaryAddition(),
    BinaryMultiplication(),
    ComputeSqrt(),
    BucketSort(),
    *word_problems(),
    BoundedDyck(kinds=2, depth=3),
    BoundedDyck(kinds=4, depth=4),
    ListOps(),
    First(),
    Majority(),
    AssociativeRecall(),
)

TASKS: Mapping[str, Task] = MappingProxyType({task.name: task for task in _ALL})


def get_task(name: str) -> Task:
    """Return the task of that name.

    Raises:
        ValueError: there is none; the message has the closest name and all names.
    """
    if name in TASKS:
        return TASKS[name]
    close = [known for known in TASKS if str(name) in known] or difflib.get_close_matches(str(name), TASKS)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"There is no task {name!r}.{hint} The tasks are: {', '.join(TASKS)}.")
