"""What a classification run leaves behind: the contents of results.json, the figure, the model card and the table."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from huggingface_hub import EvalResult, ModelCardData
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter
from reporting import aligned

MODEL_NAMES = {"prlstm": "PR-LSTM", "lstm_baseline": "LSTM", "modernbert": "Transformer encoder"}
"""How the card and the tables call a model, by its `model_type`."""


def learning_history(log: list[dict[str, float]]) -> list[dict[str, float]]:
    """Trainer's log with one entry an evaluation: epoch, eval_loss, eval_accuracy and the training loss up to it."""
    history, loss = [], None
    for entry in log:
        loss = entry.get("loss", loss)
        if "eval_accuracy" in entry:
            names = ("epoch", "eval_loss", "eval_accuracy", "eval_macro_f1")
            history.append({name: entry[name] for name in names} | {"loss": loss})
    return history


def learning_figure(outcome: dict[str, Any], folder: str) -> None:
    """Draw `learning_curve.png` into `folder`: losses and validation accuracy by epoch."""
    history = outcome["history"]
    epochs = [entry["epoch"] for entry in history]
    figure, (losses, accuracy) = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    losses.plot(epochs, [entry["loss"] for entry in history], "o-", markersize=3, color="0.5", label="training")
    losses.plot(epochs, [entry["eval_loss"] for entry in history], "o-", markersize=3, color="C0", label="validation")
    losses.set_ylabel("cross entropy")
    losses.set_ylim(bottom=0)
    split, score = outcome["data"]["scored_split"], outcome["score"]
    accuracies = [entry["eval_accuracy"] for entry in history]
    accuracy.plot(epochs, accuracies, "o-", markersize=3, color="C0", label="validation", clip_on=False)
    if split != "validation":
        accuracy.axhline(score, color="C1", linewidth=1, label=f"{split}, chosen epoch: {score:.1%}")
    chance = outcome["data"]["majority_share"]
    accuracy.axhline(chance, color="0.4", linestyle="--", linewidth=1, label=f"most frequent class, {chance:.0%}")
    accuracy.set_ylim(0, 1)
    accuracy.yaxis.set_major_formatter(PercentFormatter(1))
    accuracy.set_ylabel("accuracy")
    for axes in (losses, accuracy):
        _finish(axes)
    figure.suptitle(f"{_name(outcome)} on {outcome['data']['name']}")
    figure.savefig(Path(folder, "learning_curve.png"), dpi=200)
    plt.close(figure)


def classification_card(outcome: dict[str, Any], example: str, folder: str) -> None:
    """Write the model card, `README.md`, into `folder`; `example` is a text to try the model on."""
    data, training, metrics = outcome["data"], outcome["arguments"]["training"], outcome["metrics"]
    title = f"{_name(outcome)} on {data['name']}"
    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=[outcome["config"]["model_type"], "text-classification"],
        metrics=["accuracy", "f1"],
        model_name=title,
        eval_results=[
            EvalResult(
                task_type="text-classification",
                dataset_type=data["name"],
                dataset_name=f"{data['name']}, {data['scored_split']}",
                metric_type="accuracy",
                metric_value=round(outcome["score"], 4),
            )
        ],
    )
    base = outcome["arguments"]["model"]["model_name_or_path"]
    origin = f"fine-tuned from `{base}`" if base else "trained from scratch"
    labels = ", ".join(f"`{label}`" for label in data["labels"][:20])
    labels += f" and {len(data['labels']) - 20} more" if len(data["labels"]) > 20 else ""
    rows = "\n".join(
        f"| {entry['epoch']:g} | {entry['loss']:.3f} | {entry['eval_loss']:.3f} | {entry['eval_accuracy']:.1%} |"
        for entry in outcome["history"]
    )
    text = f"""---
{card_data.to_yaml()}
---

# {title}

A classifier with {outcome["parameters"]:,} parameters, {origin}. Classes: {labels}.

## Use

```python
from transformers import pipeline

folder = "{folder}"  # or the model's name on the Hub
classify = pipeline("text-classification", model=folder, trust_remote_code=True)
print(classify({example!r}))
```

## Result

Accuracy on {data["rows"][data["scored_split"]]:,} {data["scored_split"]} rows: **{outcome["score"]:.2%}**, macro F1
{metrics["macro_f1"]:.3f}; the most frequent class has {data["majority_share"]:.1%} of them.

![Learning curve](learning_curve.png)

| epoch | training loss | validation loss | validation accuracy |
|---|---|---|---|
{rows}

## Training

{data["rows"]["train"]:,} rows in batches of {training["per_device_train_batch_size"]}, learning rate
{training["learning_rate"]:g}, seed {training["seed"]}, {outcome["train_seconds"]:.0f} s on {outcome["hardware"]}.
`results.json` has all arguments and the versions of the packages.
"""
    Path(folder, "README.md").write_text(text)


def classification_table(outcome: dict[str, Any], folder: str) -> str:
    """The outcome in a few lines for the terminal."""
    data, best = outcome["data"], max(outcome["history"], key=lambda entry: entry["eval_accuracy"])
    return aligned(
        [
            ("data", f"{data['name']}, {data['rows']['train']:,} training rows, {len(data['labels'])} classes"),
            ("model", _name(outcome)),
            ("parameters", f"{outcome['parameters']:,}"),
            ("training", f"{outcome['train_seconds']:.0f} s"),
            ("best validation accuracy", f"{best['eval_accuracy']:.2%} after epoch {best['epoch']:g}"),
            (f"accuracy on {data['scored_split']}", f"{outcome['score']:.2%}"),
            (f"macro F1 on {data['scored_split']}", f"{outcome['metrics']['macro_f1']:.3f}"),
            ("most frequent class", f"{data['majority_share']:.2%}"),
            ("written to", folder),
        ]
    )


def _name(outcome: dict[str, Any]) -> str:
    kind = outcome["config"]["model_type"]
    return MODEL_NAMES.get(kind, kind)


def _finish(axes: Axes) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False)
