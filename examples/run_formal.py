"""Train PR-LSTM on a formal-language task with Trainer and see how far beyond the training lengths it generalises.

The defaults are the benchmark's protocol (Delétang et al., arXiv 2207.02098) but for the number of steps, of which it
takes 1,000,000: batches of 128 rows of one length, lengths uniform in 1..40, fresh rows at every step, Adam with
learning rate 1e-3, gradients clipped to norm 1; then 512 rows of every length from 41 to 500.

    python examples/run_formal.py --task parity_check --output_dir runs/parity_check

Every argument of `TrainingArguments` works; `--help` lists them all. With `--resume_from_checkpoint true` the same
command takes an interrupted run up again at its last whole checkpoint, or starts it where there is none. The output
folder then holds the checkpoint with its tokenizer, results.json, accuracy_by_length.png and a model card.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import evaluate
import torch
from checkpointing import resume_point
from datasets import Dataset, IterableDataset, load_dataset
from ending import end_training
from reporting import accuracy_figure, model_card, results, summary_table, write_json
from tqdm import tqdm
from transformers import (
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    HfArgumentParser,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from datasets_formal import FORMAL_ACCURACY, Task, build_tokenizer, get_task
from modeling_prlstm import PRLSTMConfig, PRLSTMForSequenceClassification, PRLSTMForTokenClassification


@dataclass
class ModelArguments:
    """The sizes of the model."""

    hidden_size: int = field(default=256, metadata={"help": "H, the width of the states."})
    num_refinements: int = field(default=1, metadata={"help": "R, refinement cells after every merge."})
    cell_type: str = field(default="lstm", metadata={"help": "lstm, rnn or gru."})


@dataclass
class DataArguments:
    """The task and its lengths."""

    task: str = field(default="parity_check", metadata={"help": "Name of a task of datasets_formal."})
    train_max_length: int = field(default=40, metadata={"help": "Longest training input; the shortest is 1."})
    test_max_length: int = field(
        default=500, metadata={"help": "Longest test input; the shortest is one beyond training."}
    )
    test_stride: int = field(default=1, metadata={"help": "Test every so many lengths."})
    test_examples_per_length: int = field(default=512, metadata={"help": "Test rows of each length."})
    streaming: bool = field(
        default=False, metadata={"help": "Make training rows on the fly instead of caching all on disk first."}
    )

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: naming the argument and its value.
        """
        if not 1 <= self.train_max_length < self.test_max_length:
            raise ValueError(
                "--train_max_length must be at least 1 and below --test_max_length, got "
                f"{self.train_max_length} and {self.test_max_length}."
            )
        if self.test_stride < 1:
            raise ValueError(f"--test_stride must be at least 1, got {self.test_stride}.")


@dataclass
class FormalTrainingArguments(TrainingArguments):
    """Trainer's arguments with the benchmark's optimisation as defaults."""

    output_dir: str = field(default="runs/formal", metadata={"help": "Where everything is written."})
    max_steps: int = field(
        default=10_000, metadata={"help": "Number of optimiser steps; the benchmark takes 1,000,000."}
    )
    per_device_train_batch_size: int = field(default=128, metadata={"help": "Rows of one length in a batch."})
    per_device_eval_batch_size: int = field(default=512, metadata={"help": "Rows in a test batch."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Adam's learning rate."})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "The benchmark has no schedule."})
    train_sampling_strategy: str = field(
        default="sequential", metadata={"help": "Rows are random already; in order, each batch has one length."}
    )
    eval_strategy: str = field(default="steps", metadata={"help": "Validation on the training lengths."})
    eval_steps: float = field(default=0.25, metadata={"help": "Steps, or share of all steps, between validations."})
    save_steps: float = field(default=0.25, metadata={"help": "Steps, or share of all steps, between checkpoints."})
    save_total_limit: int = field(default=2, metadata={"help": "Checkpoints to keep."})
    logging_steps: float = field(default=100, metadata={"help": "Steps between log lines."})
    dataloader_pin_memory: bool = field(
        default=torch.accelerator.is_available(), metadata={"help": "Pinned memory for copies to an accelerator."}
    )
    report_to: str = field(default="none", metadata={"help": "Experiment trackers."})


def main() -> None:
    """Train, test every length, and write the output folder."""
    parser = HfArgumentParser((ModelArguments, DataArguments, FormalTrainingArguments))
    model_args, data_args, args = parser.parse_args_into_dataclasses()
    task = get_task(data_args.task)
    if data_args.streaming:  # each process reads its own rows: batches differ in length and cannot be split
        args.accelerator_config.dispatch_batches = False
    set_seed(args.seed)

    data = load_splits(data_args, args)
    tokenizer = build_tokenizer(task.name)
    config = PRLSTMConfig(
        vocab_size=task.input_size + 1,
        hidden_size=model_args.hidden_size,
        num_refinements=model_args.num_refinements,
        cell_type=model_args.cell_type,
        pad_token_id=tokenizer.pad_token_id,
        id2label=dict(enumerate(task.output_alphabet)),
        label2id={symbol: index for index, symbol in enumerate(task.output_alphabet)},
    )
    one_output = task.kind == "class"
    model_class = PRLSTMForSequenceClassification if one_output else PRLSTMForTokenClassification
    collator_class = DataCollatorWithPadding if one_output else DataCollatorForTokenClassification
    trainer = Trainer(
        model=model_class(config),
        args=args,
        data_collator=collator_class(tokenizer),
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=tokenizer,
        compute_metrics=benchmark_accuracy(task),
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(dim=-1),
    )

    with args.main_process_first():
        start = resume_point(args)
    started = time.perf_counter()
    trained = trainer.train(resume_from_checkpoint=start)
    train_seconds = time.perf_counter() - started
    trainer.save_model()
    trainer.save_state()

    started = time.perf_counter()
    by_length = accuracy_by_length(trainer, data["test"], data_args.test_examples_per_length, data_args.test_stride)
    test_seconds = time.perf_counter() - started
    end_training(trainer)
    if not trainer.is_world_process_zero():
        return
    outcome = results(
        task=task,
        model=trainer.model,
        arguments={"model": vars(model_args), "data": vars(data_args), "training": args.to_sanitized_dict()},
        accuracy_by_length=by_length,
        train_loss=trained.training_loss,
        train_seconds=train_seconds,
        test_seconds=test_seconds,
    )
    write_json(outcome, args.output_dir)
    accuracy_figure(outcome, args.output_dir)
    example = min(data["validation"], key=lambda row: abs(row["length"] - 8))  # short enough to read
    model_card(outcome, example, args.output_dir)
    print(summary_table(outcome, args.output_dir))


def load_splits(data_args: DataArguments, args: FormalTrainingArguments) -> dict[str, Dataset | IterableDataset]:
    """The task's rows: train as many as the steps read, validation, and test ordered by length."""
    batch = args.per_device_train_batch_size
    settings = {
        "seed": args.seed if args.data_seed is None else args.data_seed,
        "rows_per_length": batch,
        "train_examples": args.max_steps * batch * args.gradient_accumulation_steps * args.world_size,
        "train_lengths": (1, data_args.train_max_length),
        "test_lengths": (data_args.train_max_length + 1, data_args.test_max_length),
        "test_examples_per_length": data_args.test_examples_per_length,
    }

    def load(split: str, streaming: bool = False) -> Dataset | IterableDataset:
        return load_dataset("datasets_formal", data_args.task, split=split, streaming=streaming, **settings)

    with args.main_process_first():
        return {
            "train": load("train", data_args.streaming),
            "validation": load("validation"),
            "test": load("test"),
        }


def benchmark_accuracy(task: Task) -> Callable[[EvalPrediction], dict[str, float]]:
    """Trainer's `compute_metrics` for predicted classes: the benchmark's accuracy."""
    metric = evaluate.load(FORMAL_ACCURACY, experiment_id=str(os.getpid()))

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        return metric.compute(predictions=prediction.predictions, references=prediction.label_ids, task=task.name)

    return compute


def accuracy_by_length(trainer: Trainer, rows: Dataset, rows_each: int, stride: int) -> dict[int, float]:
    """The benchmark's accuracy for every `stride`-th length of `rows`, which hold `rows_each` of each, in order."""
    for callback in (ProgressCallback, PrinterCallback):  # one bar for all lengths instead of one for each
        trainer.remove_callback(callback)
    accuracies = {}
    starts = range(0, len(rows), stride * rows_each)
    for start in tqdm(starts, desc="Testing every length", disable=not trainer.is_world_process_zero()):
        of_length = rows.select(range(start, start + rows_each))
        metrics = trainer.predict(of_length).metrics
        accuracies[of_length[0]["length"]] = metrics["test_accuracy"]
    return accuracies


if __name__ == "__main__":
    main()
