"""The builder behind `load_dataset("datasets_formal", task)`; on datasets 3 this file is a loading script."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import datasets
import pyarrow as pa

# datasets 3 copies exactly the siblings that are imported here, one a line, and none of their own imports.
from .context_free import StackManipulation
from .context_sensitive import BinaryAddition
from .encoding import column_types
from .expressions import evaluate
from .listops import ListOps
from .recall import AssociativeRecall
from .recognition import First
from .registry import NAME, TASKS, get_task
from .regular import ParityCheck
from .splits import GENERATOR_VERSION, Shard, Split
from .streams import RowStreams
from .task import Task, check_integer
from .word_problems import WordProblem

__all__ = [
    "AssociativeRecall",
    "BinaryAddition",
    "DatasetsFormal",
    "First",
    "FormalConfig",
    "ListOps",
    "ParityCheck",
    "RowStreams",
    "StackManipulation",
    "Task",
    "WordProblem",
    "evaluate",
]

MAX_LENGTH = 131_072
ENDLESS = "endless"
# Datasets wants a list of shards, so an endless stream ends: after eight times what the paper's training reads.
_ENDLESS_ROWS = 1 << 30


@dataclass
class FormalConfig(datasets.BuilderConfig):
    """What can be asked of a task.

    Attributes:
        seed: rows of different seeds have nothing in common.
        train_examples: number of training rows, or "endless" with streaming=True: 2**30 rows.
        validation_examples: number of validation rows.
        test_examples_per_length: number of test rows of every length; the benchmark's is 512.
        train_lengths: shortest and longest requested length of training and validation rows.
        test_lengths: shortest and longest requested length of test rows.
        rows_per_length: so many training or validation rows in succession share one length. With the batch
            size here, reading the rows in order is the benchmark's protocol: one length a batch.
    """

    seed: int = 0
    train_examples: int | str = 100_000
    validation_examples: int = 2_000
    test_examples_per_length: int = 32
    train_lengths: tuple[int, int] = (1, 40)
    test_lengths: tuple[int, int] = (41, 500)
    rows_per_length: int = 1

    def validate(self) -> None:
        """Raise ValueError for the first setting that makes no sense."""
        check_integer("seed", self.seed)
        if isinstance(self.train_examples, str):
            if self.train_examples != ENDLESS:
                raise ValueError(f"train_examples must be an integer or {ENDLESS!r}, got {self.train_examples!r}")
        else:
            check_integer("train_examples", self.train_examples, 1)
        for name in ("validation_examples", "test_examples_per_length", "rows_per_length"):
            check_integer(name, getattr(self, name), 1)
        for name in ("train_lengths", "test_lengths"):
            lengths = getattr(self, name)
            if not isinstance(lengths, tuple | list) or len(lengths) != 2:
                raise ValueError(f"{name} must be a pair (shortest, longest), got {lengths!r}")
            for length in lengths:
                check_integer(name, length, 1)
            if not lengths[0] <= lengths[1] <= MAX_LENGTH:
                raise ValueError(
                    f"{name} must rise and stay within 1..{MAX_LENGTH}, got {lengths!r}: give (shortest, longest)"
                )

    def splits(self) -> list[Split]:
        """Return the train, validation and test splits of the task that the configuration is named after."""
        task = get_task(self.name)
        train_rows = _ENDLESS_ROWS if self.train_examples == ENDLESS else int(self.train_examples)
        train_lengths = (self.train_lengths[0], self.train_lengths[1])
        test_lengths = (self.test_lengths[0], self.test_lengths[1])
        each = self.test_examples_per_length
        test_rows = (test_lengths[1] - test_lengths[0] + 1) * each
        return [
            Split(task, "train", self.seed, train_rows, train_lengths, self.rows_per_length),
            Split(task, "validation", self.seed, self.validation_examples, train_lengths, self.rows_per_length),
            Split(task, "test", self.seed, test_rows, test_lengths, each, ordered=True),
        ]


class DatasetsFormal(datasets.ArrowBasedBuilder):
    """Builds the splits of one task; `BUILDER_CONFIGS` has one configuration a task."""

    BUILDER_CONFIG_CLASS = FormalConfig
    BUILDER_CONFIGS = [  # noqa: RUF012 -- the name and the type that datasets looks for
        FormalConfig(name=task.name, version=GENERATOR_VERSION, description=task.summary) for task in TASKS.values()
    ]

    def _create_builder_config(self, config_name: str | None = None, *args: Any, **kwargs: Any) -> Any:
        if config_name is None:
            raise ValueError(f"Name a task: load_dataset({NAME!r}, TASK). The tasks are: {', '.join(TASKS)}.")
        get_task(config_name)
        config, config_id = super()._create_builder_config(config_name, *args, **kwargs)
        config.validate()
        if config.version != GENERATOR_VERSION:
            raise ValueError(f"version must be {GENERATOR_VERSION}, which this code generates, got {config.version}")
        if config.data_dir or config.data_files:
            raise ValueError(f"{NAME} generates its rows: leave out data_dir and data_files")
        return config, config_id

    def _info(self) -> datasets.DatasetInfo:
        task = get_task(self.config.name)
        features = datasets.Features.from_dict(column_types(task))
        return datasets.DatasetInfo(description=task.description, features=features)

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        if self.config.train_examples == ENDLESS and not dl_manager.is_streaming:
            raise ValueError(f"train_examples={ENDLESS!r} needs streaming=True; to store rows, give a number")
        return [
            datasets.SplitGenerator(name=split.name, gen_kwargs={"split": split, "shards": split.shards()})
            for split in self.config.splits()
        ]

    def _generate_tables(self, split: Split, shards: list[Shard]) -> Iterator[tuple[str, pa.Table]]:
        for shard in shards:
            for number, table in enumerate(split.tables(shard)):
                yield f"{shard[0]}-{number}", table
