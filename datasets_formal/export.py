"""Writes tasks as a folder of Parquet files that any version of datasets loads and that the Hub takes as it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets.utils import tqdm

from .card import table
from .datasets_formal import ENDLESS, FormalConfig
from .encoding import column_types
from .registry import get_task
from .splits import GENERATOR_VERSION, Split

_TOKENS_PER_FILE = 1 << 27


def export(folder: Path, names: Sequence[str], progress: bool = True, **settings: Any) -> None:
    """Write tasks into a new folder.

    It gets one sub-folder a task with the Parquet files of its splits, `README.md` (the dataset card, whose
    head tells datasets the configurations and splits) and `SHA256SUMS`, to be checked by `sha256sum -c`.

    Args:
        folder: where to write; must not exist or be empty.
        names: the tasks; none is written twice.
        progress: whether to show a progress bar.
        settings: the settings of `FormalConfig`, the same for every task.

    Raises:
        FileExistsError: the folder holds something, or is a file.
        ValueError: there is no such task, or a setting makes no sense.
    """
    configs = [FormalConfig(name=get_task(name).name, **settings) for name in dict.fromkeys(names)]
    for config in configs:
        config.validate()
        if config.train_examples == ENDLESS:
            raise ValueError(f"train_examples={ENDLESS!r} has no end to export: give a number")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not an empty folder: name a new one, or empty it first")

    splits = [split for config in configs for split in config.splits()]
    files = []
    with tqdm(total=sum(split.rows for split in splits), unit=" rows", disable=not progress) as bar:
        for split in splits:
            bar.set_description(f"{split.task.name} {split.name}")
            files += _write_split(split, folder / split.task.name, bar)
    (folder / "README.md").write_text(_card(configs, splits), encoding="utf-8")
    sums = [f"{_digest(file)}  {file.relative_to(folder).as_posix()}\n" for file in [*files, folder / "README.md"]]
    (folder / "SHA256SUMS").write_text("".join(sums), encoding="utf-8")


def _write_split(split: Split, folder: Path, bar: tqdm) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"info": {"features": column_types(split.task)}}
    count = -(-split.rows * split.longest_row // _TOKENS_PER_FILE)
    files = [folder / f"{split.name}-{number:05d}-of-{count:05d}.parquet" for number in range(count)]
    for number, file in enumerate(files):
        part = (split.rows * number // count, split.rows * (number + 1) // count)
        schema: pa.Schema | None = None
        for rows in split.tables(part):
            if schema is None:
                schema = rows.schema.with_metadata({"huggingface": json.dumps(metadata)})
                writer = pq.ParquetWriter(file, schema)
            writer.write_table(rows.cast(schema))
            bar.update(len(rows))
        writer.close()
    return files


def _card(configs: Sequence[FormalConfig], splits: Sequence[Split]) -> str:
    lines = ["---", "pretty_name: Formal-language tasks", "license: apache-2.0", "configs:"]
    for config in configs:
        lines += [f"- config_name: {config.name}", "  data_files:"]
        for split in splits:
            if split.task.name == config.name:
                lines += [f"  - split: {split.name}", f"    path: {config.name}/{split.name}-*.parquet"]
    lines += ["---", _BODY.format(version=GENERATOR_VERSION, settings=_settings(configs[0]))]
    return "\n".join(lines) + table([get_task(config.name) for config in configs]) + "\n"


def _settings(config: FormalConfig) -> str:
    names = [name for name in FormalConfig.__annotations__ if name in vars(config)]
    return ", ".join(f"{name}={getattr(config, name)!r}" for name in names)


_BODY = """
# Formal-language tasks

Rows of formal-language tasks for studying state tracking and length generalisation, drawn by
`datasets_formal` {version} with {settings}.

```python
from datasets import load_dataset

rows = load_dataset("PATH_OR_NAME_OF_THIS_DATASET", "TASK", split="train")
```

`input_ids` is the input followed by one empty token (the id after the alphabet's last) for every answer;
`labels` is the class, or a list aligned with `input_ids` that is -100 where nothing is asked; `text` and `target`
are the same in symbols, `_` being the empty token; `length` is the requested length of the input. Training and
validation rows have lengths drawn evenly from `train_lengths`; test rows come in the order of their length.
`sha256sum -c SHA256SUMS` checks the files.

"""


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
