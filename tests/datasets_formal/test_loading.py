import hashlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from datasets_formal import TASKS, build_tokenizer, loading

from .conftest import Load

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", TASKS)
def test_columns_agree_with_each_other_and_with_the_solver(name: str, load: Load) -> None:
    task, tokenizer = TASKS[name], build_tokenizer(name)
    splits = load(name, test_examples_per_length=1)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 300, "validation": 20, "test": 10}
    for row in itertools.chain(splits["train"].select(range(100)), splits["test"]):
        taken, given = task.input_length(row["length"]), task.output_length(row["length"])
        inputs, empties = row["input_ids"][:taken], row["input_ids"][taken:]
        assert empties == ([] if task.kind == "tags" else [task.input_size] * given)
        answer = task.solve(inputs)
        assert row["target"] == "".join("_" if value < 0 else task.output_alphabet[value] for value in answer)
        assert tokenizer(row["text"])["input_ids"] == row["input_ids"]
        expected = {"class": answer[0], "sequence": [-100] * taken + answer, "tags": answer}
        assert row["labels"] == expected[task.kind]
    assert set(splits["train"]["length"]) <= set(range(1, 41))
    assert list(splits["test"]["length"]) == list(range(41, 51))


def test_the_programs_folder_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "datasets_formal").mkdir()
    (tmp_path / "datasets_formal" / "decoy.csv").write_text("a,b\n1,2\n")
    program = """
import sys
import datasets_formal
assert not {"torch", "transformers"} & set(sys.modules)
from datasets import get_dataset_config_names, load_dataset
chosen = dict(split="validation", seed=1)
rows = load_dataset("datasets_formal", "parity_check", **chosen)
assert list(load_dataset("datasets_formal", "parity_check", streaming=True, **chosen)) == list(rows)
print(len(rows), len(get_dataset_config_names("datasets_formal")))
"""
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(ROOT),
        "PYTHONSAFEPATH": "1",
    }
    for folder in (tmp_path, tmp_path / "datasets_formal"):
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["2000", str(len(TASKS))]


def test_other_names_still_go_to_datasets(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    rows = datasets.load_dataset("csv", data_files=str(tmp_path / "rows.csv"), cache_dir=str(tmp_path / "c"))
    assert rows["train"][0] == {"a": 1, "b": 2}


def test_inspection_works(load: Load) -> None:
    assert datasets.get_dataset_config_names("datasets_formal") == list(TASKS)
    assert datasets.get_dataset_split_names("datasets_formal", "odds_first") == ["train", "validation", "test"]
    info = load("parity_check", split="train").info
    assert info.features["labels"].names == ["0", "1"]
    for part in ("even (0) or odd (1)", "regular", "101001011 -> 1", "50.0%", "arXiv 2207.02098"):
        assert part in info.description


def test_batches_can_share_a_length(load: Load) -> None:
    lengths = np.array(load("parity_check", split="train", rows_per_length=10)["length"]).reshape(30, 10)
    assert (lengths == lengths[:, :1]).all()
    assert len(np.unique(lengths[:, 0])) > 10


def test_lengths_are_drawn_evenly(load: Load) -> None:
    lengths = load("parity_check", split="train", train_examples=8000, train_lengths=(3, 10))["length"]
    counts = np.bincount(lengths)[3:]
    assert len(counts) == 8
    assert ((counts - 1000) ** 2 / 1000).sum() < 30


def test_arguments_change_the_rows_and_the_cache(load: Load, tmp_path: Path) -> None:
    base = load("bucket_sort", split="train")["text"]
    assert load("bucket_sort", split="train", seed=1)["text"] != base
    assert load("bucket_sort", split="train", rows_per_length=2)["text"] != base
    assert load("bucket_sort", split="train")["text"] == base
    assert load("bucket_sort", split="train", train_examples=400)["text"][:300] == base
    folders = list((tmp_path / "cache" / "datasets_formal").glob("bucket_sort*/*/*/"))
    assert len(folders) == 4
    assert {folder.name for folder in folders} == {loading.code_hash()}


def rows_digest(rows: Any) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def test_rows_do_not_depend_on_how_they_are_read(load: Load) -> None:
    reference = rows_digest(load("solve_equation", split="train"))
    assert rows_digest(load("solve_equation", split="train", streaming=True)) == reference
    assert rows_digest(load("solve_equation", split="train", num_proc=2, seed=0)) == reference


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": "one"}, "seed must be an integer, got 'one'"),
        ({"train_examples": 0}, "train_examples must be an integer of at least 1, got 0"),
        ({"train_examples": "all"}, "train_examples must be an integer or 'endless', got 'all'"),
        ({"train_examples": "endless"}, "needs streaming=True"),
        ({"validation_examples": True}, "validation_examples must be an integer"),
        ({"rows_per_length": 0}, "rows_per_length must be an integer of at least 1"),
        ({"train_lengths": 40}, r"train_lengths must be a pair \(shortest, longest\), got 40"),
        ({"train_lengths": (0, 40)}, "train_lengths must be an integer of at least 1, got 0"),
        ({"test_lengths": (50, 41)}, r"test_lengths must rise and stay within 1\.\.131072"),
        ({"version": "0.9.0"}, r"version must be 1\.0\.0, which this code generates, got 0\.9\.0"),
        ({"data_dir": "rows"}, "datasets_formal generates its rows: leave out data_dir"),
        ({"lengths": (1, 2)}, "doesn't have a 'lengths' key"),
    ],
)
def test_bad_arguments_say_what_is_wrong(settings: dict[str, Any], message: str, load: Load) -> None:
    with pytest.raises(ValueError, match=message):
        load("parity_check", **settings)


def test_wrong_task_names_list_the_right_ones(load: Load) -> None:
    with pytest.raises(ValueError, match=r"Did you mean 'reverse_string'.*bucket_sort"):
        load("revers_string")


@pytest.mark.parametrize("settings", [{}, {"seed": 1}])
def test_a_missing_task_name_is_asked_for(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"Name a task: load_dataset\('datasets_formal', TASK\).*bucket_sort"):
        datasets.load_dataset("datasets_formal", **settings)
