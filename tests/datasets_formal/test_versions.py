"""The same rows from other versions of datasets, each in an environment of its own (built once, about 20 s each)."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import datasets
import pytest

import datasets_formal
from datasets_formal.export import export

pytestmark = pytest.mark.pinned  # the environments are the same wherever they are made

PACKAGE = Path(datasets_formal.__file__).parent
TASKS = ["parity_check", "s5_word_problem", "stack_manipulation", "listops", "associative_recall"]
SETTINGS = {
    "seed": 3,
    "train_examples": 100,
    "validation_examples": 10,
    "test_examples_per_length": 1,
    "test_lengths": [41, 44],
}
# The last version that runs loading scripts, with an old numpy, and the oldest and the newest that are supported.
VERSIONS = {"3.6.0": ["numpy==1.26.4", "pandas==2.2.3", "pyarrow==18.1.0"], "4.8.0": [], "5.2.0": []}

READ = """
import hashlib, json, sys
import datasets
path, options, tasks, imported = json.loads(sys.argv[1])
if imported:
    import datasets_formal
digests = {}
for task in tasks:
    splits = datasets.load_dataset(path, task, **options)
    rows = json.dumps([[name, list(rows)] for name, rows in splits.items()], sort_keys=True)
    digests[task] = hashlib.sha256(rows.encode()).hexdigest()
    if imported or "trust_remote_code" in options:
        stream = datasets.load_dataset(path, task, split="train", streaming=True, **options)
        assert list(stream) == list(splits["train"])
print(json.dumps(digests))
"""


@pytest.fixture(scope="module", params=[version for version in VERSIONS if version != datasets.__version__])
def python(request: pytest.FixtureRequest) -> tuple[str, Path]:
    """The interpreter of an environment with that version of datasets; kept in pytest's cache folder."""
    folder = request.config.cache.mkdir(f"datasets-{request.param}-python{sys.version_info.minor}")
    interpreter, finished = folder / "bin" / "python", folder / "finished"
    wanted = [f"datasets=={request.param}", *VERSIONS[request.param]]
    if not finished.exists() or finished.read_text().split() != wanted:
        venv.create(folder, clear=True)  # with this environment's pip, and no bytecode but of what is imported: faster
        install = [sys.executable, "-m", "pip", "--python", interpreter, "install", "--quiet", "--no-compile"]
        subprocess.run([*install, *wanted], check=True, capture_output=True)
        finished.write_text("\n".join(wanted))
    return request.param, interpreter


def read(interpreter: Path, folder: Path, path: str, imported: bool = False, **options: object) -> dict[str, str]:
    environment = {**os.environ, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
    if imported:
        environment["PYTHONPATH"] = str(PACKAGE.parent)
    arguments = json.dumps([path, options, TASKS, imported])
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [interpreter, "-c", READ, arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    digests: dict[str, str] = json.loads(done.stdout)
    return digests


def test_script_import_and_export_give_the_same_rows(python: tuple[str, Path], tmp_path: Path) -> None:
    version, interpreter = python
    here = read(Path(sys.executable), tmp_path / "here", "datasets_formal", imported=True, **SETTINGS)
    assert read(interpreter, tmp_path / "imported", "datasets_formal", imported=True, **SETTINGS) == here
    export(tmp_path / "exported", TASKS, progress=False, **SETTINGS)
    assert read(interpreter, tmp_path / "files", str(tmp_path / "exported")) == here
    assert read(Path(sys.executable), tmp_path / "files here", str(tmp_path / "exported")) == here
    if version.startswith("3."):
        script = read(interpreter, tmp_path / "script", str(PACKAGE), trust_remote_code=True, **SETTINGS)
        assert script == here
