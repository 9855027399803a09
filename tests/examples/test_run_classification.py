"""Classification of a user's own rows: kinds of file and column, the models, the output folder, and fine-tuning."""

import csv
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from huggingface_hub import ModelCard

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = ("--num_train_epochs", "1", "--parameters", "20000", "--embedding_size", "16", "--disable_tqdm", "true")


@pytest.fixture
def run(start, tmp_path):
    def run(*arguments):
        start("run_classification", *arguments)
        return json.loads((tmp_path / "results.json").read_text())

    return run


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    path = tmp_path_factory.mktemp("words") / "words.csv"
    with path.open("w", newline="") as file:
        rows = [("title", "body", "topic")]
        rows += [("good", "x" * (index % 7), "warm") if index % 2 else ("bad", "y", "cold") for index in range(60)]
        csv.writer(file).writerows([row if row[1] else (row[0], "z", row[2]) for row in rows])
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory, words):
    """In a process of its own, as users run it."""
    folder = tmp_path_factory.mktemp("trained")
    command = (sys.executable, str(EXAMPLES / "run_classification.py"), "--output_dir", str(folder))
    columns = ("--text_column_names", "title, body", "--label_column_name", "topic")
    environment = os.environ | {"HF_DATASETS_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, "--train_file", str(words), *columns, *SMALL],
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads((folder / "results.json").read_text())


def test_output_folder_and_snippet(trained):
    folder, outcome = trained
    assert outcome["data"]["labels"] == ["cold", "warm"]
    assert outcome["data"]["rows"] == {"train": 54, "validation": 6}
    assert outcome["data"]["scored_split"] == "validation"
    assert outcome["parameters"] == pytest.approx(20_000, rel=0.05)
    assert (folder / "learning_curve.png").exists()
    snippet = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL).group(1)
    done = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warm" in done.stdout or "cold" in done.stdout


def test_model_card_metadata(trained):
    card = ModelCard.load(trained[0] / "README.md").data
    assert (card.library_name, card.pipeline_tag) == ("transformers", "text-classification")
    assert (card.datasets, card.metrics) == (["words"], ["accuracy", "f1"])
    assert card.eval_results[0].dataset_type == "words"


def test_goes_on_after_a_torn_checkpoint(trained, words, run, tmp_path):
    folder, outcome = trained
    (torn,) = folder.glob("checkpoint-*")
    shutil.copytree(torn, tmp_path / torn.name)
    (tmp_path / torn.name / "trainer_state.json").write_text('{"epoch": 1')
    columns = ("--text_column_names", "title,body", "--label_column_name", "topic")
    again = run("--train_file", str(words), *columns, *SMALL, "--resume_from_checkpoint", "true")
    assert again["history"] == outcome["history"]


@pytest.mark.parametrize(
    ("model", "arguments", "validated"),
    [
        ("lstm", ("--logging_strategy", "no"), True),
        ("transformer", ("--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "no"), False),
    ],
)
def test_integer_sequences_with_the_baselines(run, tmp_path, model, arguments, validated):
    rows = {
        "signal": [[index % 3] * (1 + index % 5) for index in range(40)],
        "label": [index % 3 for index in range(40)],
    }
    Dataset.from_dict(rows).to_parquet(tmp_path / "train.parquet")
    outcome = run(
        *("--train_file", str(tmp_path / "train.parquet"), "--text_column_names", "signal", "--model", model),
        *(*SMALL, *arguments),
    )
    assert outcome["parameters"] == pytest.approx(20_000, rel=0.05)
    assert outcome["data"]["labels"] == ["0", "1", "2"]
    card = (tmp_path / "README.md").read_text()
    assert ("| 1 | - |" in card) == ("learning_curve.png" in card) == validated
    assert (tmp_path / "learning_curve.png").exists() == validated


def letters(index):
    """Texts with what may be asked of them: the share of a, both counts, the letters that occur, the length."""
    text = ("ab", "a", "bb", "abb", "aab")[index % 5] * (1 + index % 3)
    counts = [text.count("a"), text.count("b")]
    return {
        "text": text,
        "share": counts[0] / len(text),
        "counts": [count / 2 for count in counts],
        "occur": sorted(set(text)),
        "length": len(text),
    }


@pytest.mark.parametrize(
    ("model", "column", "problem_type", "labels", "metrics", "best"),
    [
        ("prlstm", "share", "regression", ["share"], ["r2", "mae", "rmse"], "rmse"),
        ("lstm", "counts", "regression", ["counts_0", "counts_1"], ["r2", "mae", "rmse"], "score"),
        (
            "transformer",
            "occur",
            "multi_label_classification",
            ["a", "b"],
            ["micro_f1", "macro_f1", "exact_match"],
            "score",
        ),
    ],
)
def test_numbers_and_several_labels(run, tmp_path, model, column, problem_type, labels, metrics, best):
    Dataset.from_list([letters(index) for index in range(60)]).to_json(tmp_path / "train.jsonl")
    outcome = run(
        *("--train_file", str(tmp_path / "train.jsonl"), "--label_column_name", column, "--model", model),
        *(*SMALL, "--num_train_epochs", "4", "--metric_for_best_model", best, "--learning_rate", "1e-2"),
    )
    assert outcome["data"]["problem_type"] == outcome["config"]["problem_type"] == problem_type
    assert outcome["data"]["labels"] == labels
    assert list(outcome["metrics"]) == [*metrics, "loss"]
    assert outcome["score"] == outcome["metrics"][metrics[0]]
    if problem_type == "regression":
        assert outcome["baseline"] == pytest.approx(0, abs=1e-6)
        assert outcome["metrics"]["loss"] == pytest.approx(outcome["metrics"]["rmse"] ** 2, rel=1e-4)
    history = outcome["history"]
    kept = {name.removeprefix("eval_"): [entry[name] for entry in history] for name in history[0]}
    chosen, choose = (metrics[0], max) if best == "score" else (best, min)
    assert outcome["metrics"][chosen] == pytest.approx(choose(kept[chosen]), rel=1e-5)
    assert f"for {problem_type.replace('_', ' ')}" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("label", "arguments", "message"),
    [
        (float("nan"), (), "it must be finite"),
        ([1.0], (), "must have 2 numbers"),
        (["a", "a"], (), "names a label twice"),
        ([["a"]], (), "must hold lists of integers or strings"),
        ("warm", ("--problem_type", "regression"), "must hold numbers or lists of numbers"),
        (0.5, ("--label_smoothing_factor", "0.1"), "--label_smoothing_factor must be 0 for regression"),
    ],
)
def test_labels_that_cannot_be_used(start, tmp_path, label, arguments, message):
    other = {float: 0.25, list: [0.5, 1.5] if label == [1.0] else label, str: "cold"}[type(label)]
    other = ["a", "b"] if label == ["a", "a"] else other
    rows = [{"text": "ab", "label": other} for _ in range(20)] + [{"text": "ab", "label": label}]
    Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=message):
        start("run_classification", "--train_file", str(tmp_path / "train.parquet"), *arguments, *SMALL)


def test_fine_tunes_a_checkpoint_to_other_classes(trained, run, tmp_path):
    rows = [{"text": "ab" * (1 + index % 4), "label": index % 3} for index in range(30)]
    Dataset.from_list(rows).to_json(tmp_path / "train.jsonl")
    outcome = run(
        *("--train_file", str(tmp_path / "train.jsonl"), "--model_name_or_path", str(trained[0])),
        *("--num_train_epochs", "1", "--disable_tqdm", "true"),
    )
    assert outcome["config"]["hidden_size"] == trained[1]["config"]["hidden_size"]
    assert len(outcome["data"]["labels"]) == 3


def test_a_missing_column_is_named(words, start):
    with pytest.raises(ValueError, match=re.escape("no column 'text', only ['title', 'body', 'topic']")):
        start("run_classification", "--train_file", str(words), "--text_column_names", "text")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("run_classification")


def test_name_of_the_data(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data", "peptides").mkdir(parents=True)
    assert script.DataArguments(dataset_name="data/peptides").name == "peptides"
    assert script.DataArguments(dataset_name="org/name-1.5").name == "org/name-1.5"


@pytest.mark.parametrize(
    ("value", "message"),
    [(None, "is empty .* leave such rows out or fill them"), (7, "got 7 in .* convert the column to text")],
)
def test_texts_that_cannot_be_used(script, value, message):
    with pytest.raises(ValueError, match=f"column 'text' .*{message}"):
        script.text({"text": value}, script.DataArguments(dataset_name="data"))


@pytest.mark.parametrize("heads", [0, -1])
def test_heads_must_be_positive(script, heads):
    with pytest.raises(ValueError, match=f"--num_heads must be at least 1, got {heads}"):
        script.ModelArguments(num_heads=heads)
