import subprocess
from pathlib import Path

import datasets
import pytest
from huggingface_hub import DatasetCard

import datasets_formal
from datasets_formal import TASKS
from datasets_formal.__main__ import main
from datasets_formal.card import table
from datasets_formal.export import export

from .conftest import Load

SMALL = {"train_examples": 300, "validation_examples": 20, "test_examples_per_length": 2, "test_lengths": (41, 50)}


def test_exported_rows_are_the_loaded_rows(load: Load, tmp_path: Path) -> None:
    names = ["parity_check", "s5_word_problem_states", "binary_addition"]
    export(tmp_path / "out", names, progress=False, **SMALL)
    for name in names:
        exported = datasets.load_dataset(str(tmp_path / "out"), name, cache_dir=str(tmp_path / "cache"))
        loaded = load(name)
        assert {split: list(rows) for split, rows in exported.items()} == {
            split: list(rows) for split, rows in loaded.items()
        }
        assert exported["train"].features == loaded["train"].features
    assert subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=tmp_path / "out").returncode == 0


def test_the_command_exports_all_tasks_with_a_card(tmp_path: Path) -> None:
    sizes = "--train-examples 20 --validation-examples 5 --test-examples-per-length 1 --test-lengths 41 42"
    main(["export", str(tmp_path / "out"), *sizes.split(), "--seed", "3"])
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    assert [config["config_name"] for config in card.data.to_dict()["configs"]] == list(TASKS)
    assert datasets.get_dataset_config_names(str(tmp_path / "out")) == list(TASKS)
    assert table(TASKS.values()) in card.text
    assert "seed=3" in card.text


def test_tasks_may_be_named_in_any_way(tmp_path: Path) -> None:
    sizes = "--train-examples 2 --validation-examples 2 --test-examples-per-length 1 --test-lengths 41 41"
    named = "--task first majority first --task odds_first"
    main(["export", str(tmp_path / "out"), *sizes.split(), *named.split()])
    assert datasets.get_dataset_config_names(str(tmp_path / "out")) == ["first", "majority", "odds_first"]


def test_large_splits_are_cut_into_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets_formal.export._TOKENS_PER_FILE", 4000)
    export(tmp_path / "out", ["parity_check"], progress=False, **SMALL)
    names = [file.name for file in sorted((tmp_path / "out" / "parity_check").glob("train*"))]
    assert names == [f"train-{number:05d}-of-00004.parquet" for number in range(4)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "parity"], "Did you mean 'parity_check'"),
        (["show", "first", "--length", "0"], "length must be an integer of at least 1, got 0"),
        (["show", "first", "--count", "0"], "count must be an integer of at least 1, got 0"),
        (["show", "first", "--seed", "-1"], "seed must be an integer of at least 0, got -1"),
        (["export", "full"], "full is not an empty folder"),
        (["export", "full/file"], "full/file is not an empty folder"),
        (["export", "new", "--task", "firts"], "Did you mean 'first'"),
        (["export", "new", "--train-lengths", "4", "1"], "train_lengths must rise"),
    ],
)
def test_commands_say_what_is_wrong(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_list_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    main(["list"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(TASKS)
    main(["show", "reverse_string", "--length", "12", "--count", "3"])
    shown = capsys.readouterr().out
    assert TASKS["reverse_string"].description in shown
    rows = shown.splitlines()[-3:]
    for row in rows:
        given, answer = row.split("  ->  ")
        assert len(given) == 12
        assert answer == given[::-1]


def test_the_packages_card_has_every_task() -> None:
    card = Path(datasets_formal.__file__).parent / "README.md"
    assert table(TASKS.values()) in card.read_text(encoding="utf-8"), (
        "put the table printed by: python -c "
        "'from datasets_formal import TASKS, card; print(card.table(TASKS.values()))'"
    )
