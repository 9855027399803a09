"""What a classification run leaves behind: the contents of results.json, the figure, the model card and the table."""

import math
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from huggingface_hub import EvalResult, ModelCardData
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter
from problems import PROBLEMS, Problem, SingleLabel
from reporting import aligned

MODEL_NAMES = {"prlstm": "PR-LSTM", "lstm_baseline": "LSTM", "modernbert": "Transformer encoder"}
"""How the card and the tables call a model, by its `model_type`."""


def learning_history(log: list[dict[str, float]], metrics: tuple[str, ...]) -> list[dict[str, float]]:
    """Trainer's log with one entry an evaluation: epoch, eval_loss, the metrics and the training loss up to it.

    The training loss is None before the first that is logged; the history of a run without validation is empty.
    """
    history, loss = [], None
    names = ("epoch", "eval_loss", *(f"eval_{metric}" for metric in metrics))
    for entry in log:
        loss = entry.get("loss", loss)
        if "eval_loss" in entry:
            history.append({name: entry[name] for name in names} | {"loss": loss})
    return history


def learning_figure(outcome: dict[str, Any], folder: str) -> None:
    """Draw `learning_curve.png` into `folder`, if the run validated: losses and the validation score by epoch."""
    history, problem = outcome["history"], _problem(outcome)
    if not history:
        return
    epochs = [entry["epoch"] for entry in history]
    figure, (losses, scores) = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    training = [math.nan if entry["loss"] is None else entry["loss"] for entry in history]
    losses.plot(epochs, training, "o-", markersize=3, color="0.5", label="training")
    losses.plot(epochs, [entry["eval_loss"] for entry in history], "o-", markersize=3, color="C0", label="validation")
    losses.set_ylabel(problem.loss_name)
    losses.set_ylim(bottom=0)
    split, score, baseline = outcome["data"]["scored_split"], outcome["score"], outcome["baseline"]
    validation = [_score(entry, problem) for entry in history]
    scores.plot(epochs, validation, "o-", markersize=3, color="C0", label="validation", clip_on=False)
    if split != "validation":
        label = f"{split}, chosen epoch: {problem.format(score)}"
        scores.axhline(score, color="C1", linewidth=1, label=label)
    label = f"{problem.baseline_name}: {problem.format(baseline)}"
    scores.axhline(baseline, color="0.4", linestyle="--", linewidth=1, label=label)
    scores.set_ylim(min(0, score, *validation), 1)
    if isinstance(problem, SingleLabel):
        scores.yaxis.set_major_formatter(PercentFormatter(1))
    scores.set_ylabel(problem.score_name)
    for axes in (losses, scores):
        _finish(axes)
    figure.suptitle(f"{_name(outcome)} on {outcome['data']['name']}")
    figure.savefig(Path(folder, "learning_curve.png"), dpi=200)
    plt.close(figure)


def classification_card(outcome: dict[str, Any], example: str, folder: str) -> None:
    """Write the model card, `README.md`, into `folder`; `example` is a text to try the model on."""
    data, training, problem = outcome["data"], outcome["arguments"]["training"], _problem(outcome)
    title = f"{_name(outcome)} on {data['name']}"
    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=[outcome["config"]["model_type"], "text-classification"],
        datasets=[data["name"]],
        metrics=list(problem.hub_metrics),
        model_name=title,
        eval_results=[
            EvalResult(
                task_type="text-classification",
                dataset_type=data["name"],
                dataset_name=f"{data['name']}, {data['scored_split']}",
                metric_type=problem.hub_metrics[0],
                metric_name=problem.score_name,
                metric_value=round(outcome["score"], 4),
            )
        ],
    )
    base = outcome["arguments"]["model"]["model_name_or_path"]
    origin = f"fine-tuned from `{base}`" if base else "trained from scratch"
    labels = ", ".join(f"`{label}`" for label in data["labels"][:20])
    labels += f" and {len(data['labels']) - 20} more" if len(data["labels"]) > 20 else ""
    curve = _curve(outcome["history"], problem) if outcome["history"] else ""
    score, baseline = problem.format(outcome["score"]), problem.format(outcome["baseline"])
    others = ", ".join(f"{name} {outcome['metrics'][name]:.3f}" for name in problem.metrics[1:])
    text = f"""---
{card_data.to_yaml()}
---

# {title}

A model of {outcome["parameters"]:,} parameters for {data["problem_type"].replace("_", " ")}, {origin}. Its outputs:
{labels}.

## Use

```python
from transformers import pipeline

folder = "{folder}"  # or the model's name on the Hub
classify = pipeline("text-classification", model=folder, trust_remote_code=True)
print(classify({example!r}{"" if isinstance(problem, SingleLabel) else ", top_k=None"}))
```

## Result

On {data["rows"][data["scored_split"]]:,} {data["scored_split"]} rows:
{problem.score_name} **{score}** ({problem.baseline_name}: {baseline}), {others}.
{curve}
## Training

{data["rows"]["train"]:,} rows in batches of {training["per_device_train_batch_size"]}, learning rate
{training["learning_rate"]:g}, seed {training["seed"]}, {outcome["train_seconds"]:.0f} s on {outcome["hardware"]}.
`results.json` has all arguments and the versions of the packages.
"""
    Path(folder, "README.md").write_text(text)


def classification_table(outcome: dict[str, Any], folder: str) -> str:
    """The outcome in a few lines for the terminal."""
    data, problem = outcome["data"], _problem(outcome)
    history = sorted(outcome["history"], key=lambda entry: _score(entry, problem), reverse=True)
    return aligned(
        [
            ("data", f"{data['name']}, {data['rows']['train']:,} training rows"),
            ("outputs", f"{len(data['labels'])}, {data['problem_type'].replace('_', ' ')}"),
            ("model", _name(outcome)),
            ("parameters", f"{outcome['parameters']:,}"),
            ("training", f"{outcome['train_seconds']:.0f} s"),
            *(
                (
                    f"best validation {problem.score_name}",
                    f"{problem.format(_score(best, problem))} after epoch {best['epoch']:g}",
                )
                for best in history[:1]  # none without validation
            ),
            (f"{problem.score_name} on {data['scored_split']}", problem.format(outcome["score"])),
            *(
                (f"{name} on {data['scored_split']}", f"{outcome['metrics'][name]:.3f}")
                for name in problem.metrics[1:]
            ),
            (problem.baseline_name, problem.format(outcome["baseline"])),
            ("written to", folder),
        ]
    )


def _curve(history: list[dict[str, float]], problem: Problem) -> str:
    rows = "\n".join(
        f"| {entry['epoch']:g} | {'-' if entry['loss'] is None else format(entry['loss'], '.3f')} | "
        f"{entry['eval_loss']:.3f} | {problem.format(_score(entry, problem))} |"
        for entry in history
    )
    return f"""
![Learning curve](learning_curve.png)

| epoch | training loss | validation loss | validation {problem.score_name} |
|---|---|---|---|
{rows}
"""


def _problem(outcome: dict[str, Any]) -> Problem:
    return PROBLEMS[outcome["data"]["problem_type"]](outcome["data"]["labels"])


def _score(entry: dict[str, float], problem: Problem) -> float:
    return entry[f"eval_{problem.metrics[0]}"]


def _name(outcome: dict[str, Any]) -> str:
    kind = outcome["config"]["model_type"]
    return MODEL_NAMES.get(kind, kind)


def _finish(axes: Axes) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False)
