"""The command line: `python -m datasets_formal list`, `show TASK` and `export FOLDER`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .datasets_formal import FormalConfig
from .export import export
from .registry import TASKS, get_task
from .task import check_integer


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; exits with status 2 and a message when an argument is wrong."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "list":
            _list()
        elif chosen.command == "show":
            _show(chosen.task, chosen.length, chosen.count, chosen.seed)
        else:
            settings = {name: getattr(chosen, name) for name in _EXPORT_SETTINGS}
            export(chosen.folder, chosen.task or list(TASKS), **settings)
    except (ValueError, FileExistsError) as error:
        parser.error(str(error))


_EXPORT_SETTINGS = {
    "seed": "part of every row's key",
    "train_examples": "number of training rows",
    "validation_examples": "number of validation rows",
    "test_examples_per_length": "number of test rows of every length",
    "train_lengths": "shortest and longest training and validation row",
    "test_lengths": "shortest and longest test row",
    "rows_per_length": "training rows in succession that share one length",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m datasets_formal", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="list all tasks")

    show = commands.add_parser("show", help="print rows of a task")
    show.add_argument("task")
    show.add_argument("--length", type=int, default=12, help="requested length (default: %(default)s)")
    show.add_argument("--count", type=int, default=5, help="number of rows (default: %(default)s)")
    show.add_argument("--seed", type=int, default=0, help="which rows (default: %(default)s)")

    out = commands.add_parser(
        "export",
        help="write tasks as a folder of Parquet files",
        description="Write tasks as a folder of Parquet files. Publish it with: "
        "hf upload USER/NAME FOLDER . --repo-type dataset",
    )
    out.add_argument("folder", type=Path)
    out.add_argument("--task", nargs="+", action="extend", metavar="TASK", help="tasks to write (default: all)")
    for name, help_text in _EXPORT_SETTINGS.items():
        default = getattr(FormalConfig, name)
        out.add_argument(
            f"--{name.replace('_', '-')}",
            type=int,
            nargs=2 if isinstance(default, tuple) else None,
            default=default,
            help=f"{help_text} (default: %(default)s)",
        )
    return parser


def _list() -> None:
    width = max(map(len, TASKS))
    for task in TASKS.values():
        print(f"{task.name:{width}}  {task.level:26}  {task.kind:8}  chance {task.chance:5.1%}  {task.summary}")


def _show(name: str, length: int, count: int, seed: int) -> None:
    task = get_task(name)
    check_integer("count", count, 1)
    check_integer("seed", seed, 0)
    rows = task.sample(np.random.default_rng(seed), count, length)
    print(task.name, task.description, "", sep="\n")
    for row in zip(*rows, strict=True):
        print(*task.spell(*row), sep="  ->  ")


if __name__ == "__main__":
    main()
