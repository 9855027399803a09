"""What a run leaves behind: results.json, and a formal-language run's figure, model card and table on the terminal."""

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from huggingface_hub import EvalResult, ModelCardData
from matplotlib.ticker import PercentFormatter
from provenance import provenance
from transformers import PreTrainedModel

from datasets_formal import Task

SOLVED = 0.9
"""Mean accuracy from which the benchmark calls a task solved."""


def results(
    task: Task,
    model: PreTrainedModel,
    arguments: dict[str, Any],
    accuracy_by_length: dict[int, float],
    train_loss: float,
    train_seconds: float,
    test_seconds: float,
) -> dict[str, Any]:
    """Everything that is worth knowing of a formal-language run, as plain JSON values."""
    score = sum(accuracy_by_length.values()) / len(accuracy_by_length)
    return {
        "task": {"name": task.name, "level": task.level, "chance": task.chance, "kind": task.kind},
        "score": score,
        "solved": score >= SOLVED,
        "accuracy_by_length": accuracy_by_length,
    } | run_facts(model, arguments, train_loss, train_seconds, test_seconds)


def run_facts(
    model: PreTrainedModel,
    arguments: dict[str, Any],
    train_loss: float,
    train_seconds: float,
    test_seconds: float,
) -> dict[str, Any]:
    """What results.json holds of any run, beside its scores."""
    return {
        "train_loss": train_loss,
        "train_seconds": round(train_seconds, 1),
        "test_seconds": round(test_seconds, 1),
        "parameters": model.num_parameters(),
        "config": model.config.to_diff_dict(),
        "arguments": arguments,
    } | provenance()


def write_json(outcome: dict[str, Any], folder: str) -> None:
    """Write `results.json` into `folder`."""
    Path(folder, "results.json").write_text(json.dumps(outcome, indent=2, default=str) + "\n")


def accuracy_figure(outcome: dict[str, Any], folder: str) -> None:
    """Draw `accuracy_by_length.png` into `folder`: accuracy by length, with training range and chance."""
    task, data = outcome["task"], outcome["arguments"]["data"]
    lengths, accuracies = zip(*outcome["accuracy_by_length"].items(), strict=True)
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    trained = data["train_max_length"]
    axes.axvspan(1, trained, color="0.9", label=f"training lengths, 1 to {trained}")
    axes.axhline(task["chance"], color="0.4", linestyle="--", linewidth=1, label=f"chance, {task['chance']:.0%}")
    axes.plot(
        lengths, accuracies, color="C0", linewidth=1.5, label=f"PR-LSTM, mean {outcome['score']:.1%}", clip_on=False
    )
    axes.set_xlim(1, data["test_max_length"])
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("input length (tokens)")
    axes.set_ylabel("accuracy of scored outputs")
    axes.set_title(f"{task['name'].replace('_', ' ').capitalize()}: length generalisation")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(Path(folder, "accuracy_by_length.png"), dpi=200)
    plt.close(figure)


def model_card(outcome: dict[str, Any], example: dict[str, Any], folder: str) -> None:
    """Write the model card, `README.md`, into `folder`; `example` is a row of the task to try the model on."""
    task, arguments = outcome["task"], outcome["arguments"]
    data, training = arguments["data"], arguments["training"]
    lengths, accuracies = zip(*outcome["accuracy_by_length"].items(), strict=True)
    tested = f"lengths {lengths[0]}-{lengths[-1]}"
    single = task["kind"] == "class"
    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification" if single else "token-classification",
        license="apache-2.0",
        tags=["prlstm", "formal-languages", "length-generalization"],
        datasets=["datasets_formal"],
        metrics=["accuracy"],
        model_name=f"PR-LSTM on {task['name']}",
        eval_results=[
            EvalResult(
                task_type="text-classification" if single else "token-classification",
                dataset_type="datasets_formal",
                dataset_name=f"{task['name']}, {tested}",
                metric_type="accuracy",
                metric_value=round(outcome["score"], 4),
            )
        ],
    )
    shown = range(0, len(lengths), max(1, len(lengths) // 8))
    rows = "\n".join(f"| {lengths[index]} | {accuracies[index]:.1%} |" for index in shown)
    steps, batch = training["max_steps"], training["per_device_train_batch_size"]
    text = f"""---
{card_data.to_yaml()}
---

# PR-LSTM on {task["name"]}

A Parallel Recursive LSTM ([arXiv 2605.17108](https://arxiv.org/abs/2605.17108)) with {outcome["parameters"]:,}
parameters, trained from scratch on the {task["level"]} task `{task["name"]}` of the Chomsky-hierarchy benchmark
([arXiv 2207.02098](https://arxiv.org/abs/2207.02098)) with inputs of 1 to {data["train_max_length"]} tokens.

## Use

```python
{_snippet(single, example["text"], folder)}```

The right answer is `{example["target"]}`.

## Result

Mean accuracy on {tested}: **{outcome["score"]:.2%}** ({"solved" if outcome["solved"] else "not solved"}: the
benchmark's bar is {SOLVED:.0%}; chance is {task["chance"]:.0%}), {data["test_examples_per_length"]} examples a length.

![Accuracy by input length](accuracy_by_length.png)

| length | accuracy |
|---|---|
{rows}

## Training

{steps:,} steps of {batch} rows with Adam, learning rate {training["learning_rate"]:g}, seed {training["seed"]}, in
{outcome["train_seconds"]:.0f} s on {outcome["hardware"]}. `results.json` has the accuracy at every length, all
arguments and the versions of the packages.
"""
    Path(folder, "README.md").write_text(text)


def summary_table(outcome: dict[str, Any], folder: str) -> str:
    """The outcome in a few lines for the terminal."""
    by_length = outcome["accuracy_by_length"]
    lengths = list(by_length)
    quarters = [lengths[index * (len(lengths) - 1) // 4] for index in range(5)]
    lines = [
        ("task", outcome["task"]["name"]),
        ("parameters", f"{outcome['parameters']:,}"),
        ("training", f"{outcome['train_seconds']:.0f} s"),
        *((f"accuracy at length {length}", f"{by_length[length]:.2%}") for length in dict.fromkeys(quarters)),
        (f"mean of lengths {lengths[0]}-{lengths[-1]}", f"{outcome['score']:.2%}"),
        (f"solved (at least {SOLVED:.0%})", "yes" if outcome["solved"] else "no"),
        ("written to", folder),
    ]
    return aligned(lines)


def aligned(lines: list[tuple[str, str]]) -> str:
    """Names and values in two columns, after an empty line."""
    width = max(len(name) for name, _ in lines)
    return "\n" + "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def _snippet(single: bool, text: str, folder: str) -> str:
    head = "SequenceClassification" if single else "TokenClassification"
    if single:
        answer = "answer = [logits.argmax(-1)]"
    else:
        answer = 'answer = logits.argmax(-1)[inputs["input_ids"][0] == tokenizer.pad_token_id]  # one for each "_"'
    return f"""import torch
from transformers import AutoModelFor{head}, AutoTokenizer

folder = "{folder}"  # or the model's name on the Hub
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelFor{head}.from_pretrained(folder, trust_remote_code=True).eval()
inputs = tokenizer("{text}", return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits[0]
{answer}
print("".join(model.config.id2label[int(index)] for index in answer))
"""
