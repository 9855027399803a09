import importlib
import sys
from pathlib import Path

import datasets
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Runs a program of examples/ on `tmp_path` in this process: its imports take longer than its work."""
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
    monkeypatch.chdir(cache)

    def start(program, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{program}.py", "--output_dir", str(tmp_path), *arguments])
        importlib.import_module(program).main()

    return start
