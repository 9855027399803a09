"""PR-LSTM beside nn.LSTM and a Transformer encoder on three real data sets: all runs, and the table of them.

    python examples/run_real_data.py [--data digits peptides movies] [--runs_dir runs/real] [--data_dir data]

Each model has the same number of parameters, epochs and rows of a batch. With seed 0 it is trained at each learning
rate; the one with the best validation accuracy then goes with the other seeds. The test split is never chosen by.
Runs that are done are not run again: a stopped command goes on where it was. The outcome is a JSON file a data set
and README.md in examples/results.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from prepare_real_data import DATA_SETS

HERE = Path(__file__).parent
MODELS = {"prlstm": "PR-LSTM", "lstm": "nn.LSTM", "transformer": "Transformer encoder"}
SEEDS = (0, 1, 2)
LEARNING_RATES = ("1e-3", "3e-3")
SETTINGS = {
    "digits": "--text_column_names pixels --parameters 100000 --num_train_epochs 15",
    "peptides": "--text_column_names sequence --parameters 100000 --num_train_epochs 8",
    "movies": "--text_column_names text --tokenizer_vocab_size 1000 --parameters 150000 --num_train_epochs 5",
}
"""The arguments of run_classification.py; a tokenizer of 1,000 tokens has an embedding table of 64,000 parameters."""


def run(data: str, model: str, rate: str, seed: int, folders: argparse.Namespace) -> dict[str, Any]:
    """The results of one run, which is made unless its results.json says that this very command made it."""
    output_dir = folders.runs_dir / f"{data}-{model}-lr{rate}-seed{seed}"
    arguments = [
        os.path.relpath(HERE / "run_classification.py"),
        *("--dataset_name", str(folders.data_dir / data), *SETTINGS[data].split(), "--model", model),
        *("--learning_rate", rate, "--seed", str(seed), "--disable_tqdm", "true", "--output_dir", str(output_dir)),
    ]
    path = output_dir / "results.json"
    if not path.exists() or json.loads(path.read_text())["command"] != shlex.join(["python", *arguments]):
        print(shlex.join(["python", *arguments]), flush=True)
        threads = {"OMP_NUM_THREADS": str(folders.threads)}
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=os.environ | threads)
    return json.loads(path.read_text())


def best_validation(outcome: dict[str, Any]) -> float:
    """The validation accuracy of the epoch that was kept."""
    return max(entry["eval_accuracy"] for entry in outcome["history"])


def all_runs(data: str, folders: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """For each model its runs: one a learning rate with the first seed, the best first, then the other seeds."""
    runs = {}
    for model in MODELS:
        tried = {rate: run(data, model, rate, SEEDS[0], folders) for rate in LEARNING_RATES}
        rate = max(tried, key=lambda rate: best_validation(tried[rate]))
        others = [run(data, model, rate, seed, folders) for seed in SEEDS[1:]]
        runs[model] = [tried.pop(rate), *others, *tried.values()]
    return runs


def summary(data: str, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """What is kept of a data set's runs."""
    shared = next(iter(runs.values()))[0]
    return {
        "data": shared["data"] | {"majority_share": shared["baseline"]},
        "versions": shared["versions"],
        "hardware": shared["hardware"],
        "models": {
            model: {
                "parameters": outcomes[0]["parameters"],
                "learning_rate": outcomes[0]["arguments"]["training"]["learning_rate"],
                "test_accuracy": spread([outcome["score"] for outcome in outcomes[: len(SEEDS)]]),
                "test_macro_f1": spread([outcome["metrics"]["macro_f1"] for outcome in outcomes[: len(SEEDS)]]),
                "validation_accuracy": spread([best_validation(outcome) for outcome in outcomes[: len(SEEDS)]]),
                "train_seconds": spread([outcome["train_seconds"] for outcome in outcomes[: len(SEEDS)]]),
                "config": outcomes[0]["config"],
            }
            for model, outcomes in runs.items()
        },
        "runs": [
            {
                "model": model,
                "seed": outcome["arguments"]["training"]["seed"],
                "learning_rate": outcome["arguments"]["training"]["learning_rate"],
                "in_the_table": index < len(SEEDS),
                **{name: outcome[name] for name in ("score", "metrics", "history", "train_seconds")},
                **{name: outcome[name] for name in ("command", "commit")},
            }
            for model, outcomes in runs.items()
            for index, outcome in enumerate(outcomes)
        ],
    }


def spread(values: list[float]) -> dict[str, Any]:
    """Mean and sample standard deviation over the seeds, and the values."""
    return {"mean": statistics.mean(values), "std": statistics.stdev(values), "values": values}


def table(results_dir: Path) -> str:
    """The README of the results: what was run, and a table of every data set whose JSON file is there."""
    files = (results_dir / f"{name}.json" for name in DATA_SETS)
    found = {path.stem: json.loads(path.read_text()) for path in files if path.exists()}
    first = next(iter(found.values()))
    commits = sorted({str(outcome["commit"]) for kept in found.values() for outcome in kept["runs"]})
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    rows = []
    for name, kept in found.items():
        for model, figures in kept["models"].items():
            accuracy, f1 = figures["test_accuracy"], figures["test_macro_f1"]
            rows.append(
                f"| {name} | {MODELS[model]} | {figures['parameters']:,} | {figures['learning_rate']:g} "
                f"| {accuracy['mean']:.1%} ± {accuracy['std']:.1%} | {min(accuracy['values']):.1%} to "
                f"{max(accuracy['values']):.1%} | {f1['mean']:.3f} | {figures['train_seconds']['mean']:.0f} s |"
            )
    sizes = "\n".join(
        f"- {name}: {kept['data']['rows']['train']:,} training, {kept['data']['rows']['validation']:,} validation and "
        f"{kept['data']['rows']['test']:,} test rows; the most frequent class has "
        f"{kept['data']['majority_share']:.1%} of the test rows; arguments `{SETTINGS[name]}`"
        for name, kept in found.items()
    )
    return f"""# Real data: three models, one loop

Written by

```bash
python examples/prepare_real_data.py
python examples/run_real_data.py
```

from seeds {", ".join(map(str, SEEDS))}: test accuracy is the mean ± the sample standard deviation over them, beside
the lowest and the highest. The JSON files have every run with its command and its learning curve.

| data | model | parameters | learning rate | test accuracy | seeds | macro F1 | training |
|---|---|---|---|---|---|---|---|
{chr(10).join(rows)}

The data ([`prepare_real_data.py`](../prepare_real_data.py) says where they come from):

{sizes}

What is the same for all models: rows, batches of 32 of like lengths, epochs, AdamW with 10% warm-up and linear decay,
clipping to norm 1, dropout 0.1 before the head, the embedding table (width 64), and the number of parameters: the
hidden size of the recurrent models and the feed-forward width of the Transformer (3 layers of width 64, 4 heads,
rotary positions, mean pooling, dropout 0.1 in every layer) are those that come nearest to the budget. What is each
model's own: the learning rate, of {" and ".join(LEARNING_RATES)} the one with the better validation accuracy at seed
{SEEDS[0]}. The epoch kept is the one with the best validation accuracy. Exploratory runs with one seed came before:
they set the numbers of epochs, the movies' vocabulary and that 3e-3 is among the learning rates, for all models alike.

Training times are of one CPU thread on a machine that did other work too: they show the order of magnitude only.

Commit {", ".join(commits)}; {first["hardware"]}; {versions}.
"""


def main() -> None:
    """Make the runs that are missing, then write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=list(DATA_SETS), choices=list(DATA_SETS), help="default: all")
    parser.add_argument("--data_dir", type=Path, default=Path("data"), help="default: %(default)s")
    parser.add_argument("--runs_dir", type=Path, default=Path("runs/real"), help="default: %(default)s")
    parser.add_argument("--results_dir", type=Path, default=HERE / "results", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of a run (default: %(default)s)")
    chosen = parser.parse_args()
    for data in chosen.data:
        if not (chosen.data_dir / data).exists():
            parser.error(f"{chosen.data_dir / data} is not there: run prepare_real_data.py first, or give --data_dir")
    chosen.results_dir.mkdir(parents=True, exist_ok=True)
    for data in chosen.data:
        outcome = summary(data, all_runs(data, chosen))
        (chosen.results_dir / f"{data}.json").write_text(json.dumps(outcome, indent=1) + "\n")
        (chosen.results_dir / "README.md").write_text(table(chosen.results_dir))


if __name__ == "__main__":
    main()
