import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

import datasets_formal  # noqa: F401 -- registers the name

FIXTURE = Path(__file__).parents[1] / "fixtures" / "reference_tasks.jsonl.gz"

Load = Callable[..., Any]


@pytest.fixture(scope="session")
def reference_rows() -> list[dict[str, Any]]:
    with gzip.open(FIXTURE, "rt") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """load_dataset in an empty folder, without network, with a cache of its own and small splits."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()

    def load(task: str, **settings: Any) -> Any:
        small = {"train_examples": 300, "validation_examples": 20, "test_examples_per_length": 2}
        if "test_lengths" not in settings:
            small["test_lengths"] = (41, 50)
        return datasets.load_dataset(
            "datasets_formal", task, cache_dir=str(tmp_path / "cache"), **{**small, **settings}
        )

    return load
