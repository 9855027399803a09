"""The main job, small: what it writes, that it resumes, and that the model card's snippet runs as pasted."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from matplotlib import image
from safetensors.torch import load_file
from transformers import AutoTokenizer, pipeline

import modeling_prlstm  # noqa: F401 (registers the model type)

SCRIPT = Path(__file__).parents[2] / "examples" / "run_formal.py"
SMALL = (
    *("--hidden_size", "8", "--per_device_train_batch_size", "8", "--disable_tqdm", "true"),
    *("--train_max_length", "8", "--test_max_length", "13", "--test_examples_per_length", "4"),
)


def run(folder, cache, *arguments):
    command = [sys.executable, str(SCRIPT), "--output_dir", str(folder), *SMALL, *arguments]
    environment = os.environ | {"HF_DATASETS_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cache, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def parity(tmp_path_factory, cache):
    folder = tmp_path_factory.mktemp("parity")
    return folder, run(folder, cache, "--task", "parity_check", "--max_steps", "8", "--save_steps", "4")


def test_output_folder(parity):
    folder, printed = parity
    written = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "results.json", "README.md"} <= written
    assert image.imread(folder / "accuracy_by_length.png").shape[1] > 1000
    outcome = json.loads((folder / "results.json").read_text())
    assert [int(length) for length in outcome["accuracy_by_length"]] == [9, 10, 11, 12, 13]
    accuracies = outcome["accuracy_by_length"].values()
    assert outcome["score"] == pytest.approx(sum(accuracies) / 5)
    assert outcome["solved"] == (outcome["score"] >= 0.9)
    assert outcome["arguments"]["training"]["seed"] == 42
    assert outcome["config"]["hidden_size"] == 8
    assert outcome["versions"]["torch"]
    assert "mean of lengths 9-13" in printed


def test_model_card_metadata(parity):
    card = ModelCard.load(parity[0] / "README.md").data
    assert (card.library_name, card.pipeline_tag) == ("transformers", "text-classification")
    assert (card.datasets, card.metrics) == (["datasets_formal"], ["accuracy"])


def test_model_card_snippet_runs_as_pasted(parity):
    folder, _ = parity
    card = (folder / "README.md").read_text()
    snippet = re.search(r"```python\n(.*?)```", card, re.DOTALL).group(1)
    done = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in {"0", "1"}


def test_pipeline_takes_strings(parity):
    folder, _ = parity
    classify = pipeline("text-classification", model=str(folder))
    single, several = classify("0110"), classify(["0110", "1"])
    assert single[0]["label"] in {"0", "1"}
    assert several[0]["score"] == pytest.approx(single[0]["score"])
    assert AutoTokenizer.from_pretrained(folder)("0110")["input_ids"] == [0, 1, 1, 0, 2]


def test_resumes_to_the_same_weights(parity, cache, tmp_path):
    folder, _ = parity
    checkpoint = folder / "checkpoint-4"
    arguments = ("--task", "parity_check", "--max_steps", "8", "--save_steps", "4")
    run(tmp_path, cache, *arguments, "--resume_from_checkpoint", str(checkpoint))
    whole, resumed = (load_file(path / "model.safetensors") for path in (folder, tmp_path))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_tasks_with_many_outputs(start, tmp_path):
    start("run_formal", *SMALL, "--task", "binary_addition", "--max_steps", "2", "--streaming", "true")
    snippet = re.search(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), re.DOTALL).group(1)
    done = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_wrong_task_names_the_right_ones(start):
    with pytest.raises(ValueError, match="parity_check"):
        start("run_formal", "--task", "parity")
