r"""Train a classifier on your own data with Trainer: PR-LSTM, nn.LSTM or a Transformer encoder, one loop for all.

From local CSV, JSON lines or Parquet files, or from a data set on the Hub or in a folder:

    python examples/run_classification.py --train_file train.csv --validation_file dev.csv --test_file test.csv \
        --text_column_names title,body --label_column_name topic --output_dir runs/topics
    python examples/run_classification.py --dataset_name data/peptides --text_column_names sequence \
        --model lstm --parameters 100000 --output_dir runs/peptides-lstm

Text columns go through any tokenizer (default: ByT5's bytes, which need no files; `--tokenizer_vocab_size` trains
one); a column of lists of integers is taken as it is, each distinct integer a token. Labels are classes (integers or
strings), lists of them where a row has several, or numbers to regress on. `--parameters` gives all three models the
same size. `--model_name_or_path` fine-tunes a checkpoint, with its own tokenizer, instead of training from scratch.

Every argument of `TrainingArguments` works; `--help` lists them all. The epoch that validates best is kept and scored
on the test split. With `--resume_from_checkpoint true` the same command takes an interrupted run up again at its last
whole checkpoint, or starts it where there is none. The output folder then holds the checkpoint with its tokenizer,
results.json, a model card and, if it validated, learning_curve.png.
"""

import bisect
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import torch
from checkpointing import resume_point
from classification_reporting import classification_card, classification_table, learning_figure, learning_history
from datasets import Dataset, DatasetDict, load_dataset
from ending import end_training
from lstm_baseline import LSTMConfig
from problems import LOWER_IS_BETTER, PROBLEMS, Problem, Regression, named, problem_of
from reporting import run_facts, write_json
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, WhitespaceSplit
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ByT5Tokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    HfArgumentParser,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from modeling_prlstm import PRLSTMConfig

METRICS = str(Path(__file__).parent / "classification_metrics")
FILE_FORMATS = {"csv": "csv", "json": "json", "jsonl": "json", "parquet": "parquet"}
LARGEST_WIDTH = 2**13


@dataclass
class ModelArguments:
    """The model: which, of what size, or a checkpoint."""

    model: str | None = field(
        default=None, metadata={"help": "prlstm (default), lstm or transformer, trained from scratch."}
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Checkpoint to fine-tune instead, a folder or a name on the Hub."}
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Tokenizer for text; default: the checkpoint's, or ByT5's bytes."}
    )
    tokenizer_vocab_size: int | None = field(
        default=None, metadata={"help": "Train a byte-level BPE tokenizer with so many tokens on the training texts."}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run code that comes with a checkpoint or a tokenizer."}
    )
    parameters: int = field(
        default=200_000,
        metadata={
            "help": "Size of a model from scratch: sets the width of a recurrent state, or of the Transformer's "
            "feed-forward layers, to the one that comes nearest."
        },
    )
    embedding_size: int = field(
        default=64, metadata={"help": "Width of the token embeddings, and of the Transformer's layers."}
    )
    num_refinements: int = field(default=1, metadata={"help": "PR-LSTM: refinement cells after every merge."})
    num_layers: int = field(default=3, metadata={"help": "Transformer: number of layers."})
    num_heads: int = field(default=4, metadata={"help": "Transformer: number of attention heads."})
    dropout: float = field(
        default=0.1, metadata={"help": "Dropout before the head; in the Transformer also in every layer."}
    )

    def __post_init__(self) -> None:
        """Check what does not go together.

        Raises:
            ValueError: naming the argument and its value.
        """
        if self.model is not None and self.model_name_or_path is not None:
            raise ValueError(
                f"--model {self.model} trains from scratch and --model_name_or_path {self.model_name_or_path} "
                "fine-tunes a checkpoint: give one of them."
            )
        if self.tokenizer_vocab_size is not None:
            for name in ("tokenizer_name", "model_name_or_path"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"--tokenizer_vocab_size {self.tokenizer_vocab_size} trains a tokenizer and --{name} "
                        f"{getattr(self, name)} brings one: give one of them."
                    )
            if self.tokenizer_vocab_size <= 256:
                raise ValueError(
                    f"--tokenizer_vocab_size must be above 256, the single bytes, got {self.tokenizer_vocab_size}."
                )
        if self.model not in (None, "prlstm", "lstm", "transformer"):
            raise ValueError(f"--model must be prlstm, lstm or transformer, got {self.model!r}.")
        if self.num_heads < 1:
            raise ValueError(f"--num_heads must be at least 1, got {self.num_heads}.")
        if self.embedding_size % (2 * self.num_heads):
            raise ValueError(
                f"--embedding_size must be a multiple of twice --num_heads, got {self.embedding_size} and "
                f"{self.num_heads}."
            )


@dataclass
class DataArguments:
    """The rows and their columns."""

    dataset_name: str | None = field(
        default=None, metadata={"help": "Data set on the Hub, or a folder of files named after their splits."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of --dataset_name."})
    train_file: str | None = field(default=None, metadata={"help": "CSV, JSON lines or Parquet file."})
    validation_file: str | None = field(
        default=None, metadata={"help": "The same; without it --validation_fraction of the training rows."}
    )
    test_file: str | None = field(default=None, metadata={"help": "The same; without it validation rows are scored."})
    train_split_name: str = field(default="train", metadata={"help": "Split to train on."})
    validation_split_name: str = field(default="validation", metadata={"help": "Split that chooses the epoch."})
    test_split_name: str = field(
        default="test", metadata={"help": "Split that is scored; validation if there is no such split."}
    )
    validation_fraction: float = field(
        default=0.1, metadata={"help": "Share of the training rows, where there is no validation split."}
    )
    text_column_names: str = field(
        default="text", metadata={"help": "Column of texts or of lists of integers; several texts as a,b are joined."}
    )
    text_column_delimiter: str = field(default=" ", metadata={"help": "What joins several columns."})
    label_column_name: str = field(
        default="label", metadata={"help": "Column of classes, lists of classes, or numbers to regress on."}
    )
    problem_type: str | None = field(
        default=None,
        metadata={
            "help": f"{', '.join(PROBLEMS)}; default: what the column holds. Regression on integers must be asked for."
        },
    )
    max_length: int | None = field(default=None, metadata={"help": "Tokens to cut a row to; default: all are kept."})

    def __post_init__(self) -> None:
        """Check the sources and ranges.

        Raises:
            ValueError: naming the argument and its value.
        """
        if (self.dataset_name is None) == (self.train_file is None):
            raise ValueError(
                f"Give either --dataset_name or --train_file, got {self.dataset_name!r} and {self.train_file!r}."
            )
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"--validation_fraction must be between 0 and 1, got {self.validation_fraction}.")
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"--max_length must be at least 1, got {self.max_length}.")
        if self.problem_type not in (None, *PROBLEMS):
            raise ValueError(f"--problem_type must be one of {', '.join(PROBLEMS)}, got {self.problem_type!r}.")
        suffixes = {name: Path(file).suffix[1:] for name, file in self.files.items()}
        for name, suffix in suffixes.items():
            if suffix not in FILE_FORMATS:
                raise ValueError(
                    f"--{name}_file must end in one of {', '.join(FILE_FORMATS)}, got {self.files[name]!r}."
                )
        if len({FILE_FORMATS[suffix] for suffix in suffixes.values()}) > 1:
            raise ValueError(f"The files must have one format, got {', '.join(self.files.values())}.")

    @property
    def files(self) -> dict[str, str]:
        """The files that were given, by split."""
        given = {"train": self.train_file, "validation": self.validation_file, "test": self.test_file}
        return {name: file for name, file in given.items() if file is not None}

    @property
    def columns(self) -> list[str]:
        """The names of the input columns."""
        return [name.strip() for name in self.text_column_names.split(",")]

    @property
    def name(self) -> str:
        """What the model card calls the data: its whole name on the Hub, or that of the folder or file."""
        if self.dataset_name is not None and not Path(self.dataset_name).exists():
            return self.dataset_name
        return Path(self.dataset_name or self.train_file).stem


@dataclass
class ClassificationTrainingArguments(TrainingArguments):
    """Trainer's arguments with defaults for small classifiers trained from scratch."""

    output_dir: str = field(default="runs/classification", metadata={"help": "Where everything is written."})
    num_train_epochs: float = field(default=10, metadata={"help": "Number of passes over the training rows."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Rows in a batch."})
    per_device_eval_batch_size: int = field(default=128, metadata={"help": "Rows in a batch of evaluation."})
    learning_rate: float = field(default=1e-3, metadata={"help": "AdamW's peak learning rate."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Steps, or share of all steps, of linear warm-up."})
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW's weight decay."})
    train_sampling_strategy: str = field(
        default="group_by_length", metadata={"help": "Rows of like lengths share a batch, which saves padding."}
    )
    eval_strategy: str = field(default="epoch", metadata={"help": "When to validate."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save; as often as validation."})
    logging_strategy: str = field(default="epoch", metadata={"help": "When to log the training loss."})
    save_total_limit: int = field(default=1, metadata={"help": "Checkpoints to keep beside the best."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "Keep the best epoch, not the last."})
    metric_for_best_model: str = field(
        default="score",
        metadata={
            "help": "score (accuracy, micro F1 or R², by the problem), loss, or by name: accuracy and macro_f1 of "
            "single labels; micro_f1, macro_f1 and exact_match of several; r2, mae and rmse of numbers."
        },
    )
    dataloader_pin_memory: bool = field(
        default=torch.accelerator.is_available(), metadata={"help": "Pinned memory for copies to an accelerator."}
    )
    report_to: str = field(default="none", metadata={"help": "Experiment trackers."})

    def __post_init__(self) -> None:
        """Say of which metrics the least is the best."""
        if self.greater_is_better is None and self.metric_for_best_model.removeprefix("eval_") in LOWER_IS_BETTER:
            self.greater_is_better = False
        super().__post_init__()


def main() -> None:
    """Train, score the best epoch, and write the output folder."""
    parser = HfArgumentParser((ModelArguments, DataArguments, ClassificationTrainingArguments))
    model_args, data_args, args = parser.parse_args_into_dataclasses()
    with args.main_process_first():
        raw = load_splits(data_args)
    problem = problem_of(raw["train"], data_args.label_column_name, data_args.problem_type)
    if args.label_smoothing_factor and isinstance(problem, Regression):
        raise ValueError(f"--label_smoothing_factor must be 0 for regression, got {args.label_smoothing_factor}.")
    if args.metric_for_best_model == "score":
        args.metric_for_best_model = problem.metrics[0]
    tokenizer = load_tokenizer(model_args, raw["train"], data_args)
    with args.main_process_first():
        rows = encode(raw, problem, tokenizer, data_args)
    set_seed(args.seed)
    trainer = Trainer(
        model=build_model(model_args, tokenizer, problem),
        args=args,
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        processing_class=tokenizer,
        compute_metrics=metrics_of(problem),
        compute_loss_func=loss_of(problem, args.label_smoothing_factor),
        preprocess_logits_for_metrics=lambda logits, labels: problem.predictions(logits),
    )

    with args.main_process_first():
        start = resume_point(args)
    started = time.perf_counter()
    trained = trainer.train(resume_from_checkpoint=start)
    train_seconds = time.perf_counter() - started
    trainer.save_model()
    trainer.save_state()

    scored_split = "test" if "test" in rows else "validation"
    started = time.perf_counter()
    scored = trainer.predict(rows[scored_split], metric_key_prefix="scored")
    test_seconds = time.perf_counter() - started
    end_training(trainer)
    if not trainer.is_world_process_zero():
        return
    metrics = {name: scored.metrics[f"scored_{name}"] for name in (*problem.metrics, "loss")}
    targets = np.asarray(rows[scored_split]["labels"][:])
    constant = EvalPrediction(problem.baseline(targets), targets)
    outcome = {
        "data": {
            "name": data_args.name,
            "rows": {split: len(part) for split, part in rows.items()},
            "problem_type": problem.problem_type,
            "labels": problem.names,
            "scored_split": scored_split,
        },
        "score": metrics[problem.metrics[0]],
        "baseline": metrics_of(problem)(constant)[problem.metrics[0]],
        "metrics": metrics,
        "history": learning_history(trainer.state.log_history, problem.metrics),
    } | run_facts(
        model=trainer.model,
        arguments={"model": vars(model_args), "data": vars(data_args), "training": args.to_sanitized_dict()},
        train_loss=trained.training_loss,
        train_seconds=train_seconds,
        test_seconds=test_seconds,
    )
    write_json(outcome, args.output_dir)
    learning_figure(outcome, args.output_dir)
    example = min((text(row, data_args) for row in raw["validation"]), key=lambda text: abs(len(text) - 60))
    classification_card(outcome, example, args.output_dir)
    print(classification_table(outcome, args.output_dir))


def load_splits(data_args: DataArguments) -> DatasetDict:
    """The rows as they are: `train`, `validation` and, where there is one, `test`.

    Raises:
        ValueError: for a split or a column that is not there.
    """
    if data_args.dataset_name is not None:
        data = load_dataset(data_args.dataset_name, data_args.dataset_config_name)
    else:
        suffix = Path(data_args.train_file).suffix[1:]
        data = load_dataset(FILE_FORMATS[suffix], data_files=data_args.files)
    if data_args.train_split_name not in data:
        raise ValueError(f"--train_split_name must be among {list(data)}, got {data_args.train_split_name!r}.")
    wanted = {
        "train": data_args.train_split_name,
        "validation": data_args.validation_split_name,
        "test": data_args.test_split_name,
    }
    splits = DatasetDict({split: data[name] for split, name in wanted.items() if name in data})
    if "validation" not in splits:
        parts = splits["train"].train_test_split(data_args.validation_fraction, seed=0)
        splits["train"], splits["validation"] = parts["train"], parts["test"]
    for split, rows in splits.items():
        for argument, column in (
            *(("text_column_names", name) for name in data_args.columns),
            ("label_column_name", data_args.label_column_name),
        ):
            if column not in rows.column_names:
                raise ValueError(f"--{argument}: split {split!r} has no column {column!r}, only {rows.column_names}.")
    return splits


def load_tokenizer(model_args: ModelArguments, rows: Dataset, data_args: DataArguments) -> PreTrainedTokenizerBase:
    """The tokenizer asked for, else the checkpoint's, else one for the integers of the training `rows` or for bytes.

    Raises:
        ValueError: it cannot pad.
    """
    source = model_args.tokenizer_name or model_args.model_name_or_path
    if source is not None:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=model_args.trust_remote_code)
        if tokenizer.pad_token is None:
            raise ValueError(f"The tokenizer of {source!r} has no padding token: choose --tokenizer_name with one.")
        return tokenizer
    if model_args.tokenizer_vocab_size is not None:
        return trained_tokenizer((text(row, data_args) for row in rows), model_args.tokenizer_vocab_size)
    if isinstance(rows[0][data_args.columns[0]], list):
        return integer_tokenizer(rows, data_args.columns[0])
    return ByT5Tokenizer(extra_ids=0)


def integer_tokenizer(rows: Dataset, column: str) -> PreTrainedTokenizerFast:
    """A tokenizer of texts like "3 0 16" with the integers in `column`; any other is `<unk>`.

    Integers take the way of a text so that the checkpoint has a tokenizer, which pipelines need.
    """
    values = sorted(set().union(*rows[column]))
    words = ["<pad>", "<unk>", *map(str, values)]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return _for_models(tokenizer, unk_token="<unk>")


def trained_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with at most `vocab_size` tokens, trained on `texts`."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>"],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _for_models(tokenizer)


def _for_models(tokenizer: Tokenizer, **special_tokens: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        **special_tokens,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def text(row: dict[str, Any], data_args: DataArguments) -> str:
    """A row's input as one text.

    Raises:
        ValueError: for a value that is empty, or neither a text nor a list of integers.
    """
    parts = []
    for column in data_args.columns:
        value = row[column]
        if value is None:
            raise ValueError(
                f"--text_column_names: column {column!r} is empty (None) in {row}: leave such rows out or fill them."
            )
        if isinstance(value, list) and all(isinstance(item, int) for item in value):
            value = " ".join(map(str, value))
        if not isinstance(value, str):
            raise ValueError(
                f"--text_column_names: column {column!r} must hold texts or lists of integers, got {value!r} in {row}"
                ": convert the column to text."
            )
        parts.append(value)
    return data_args.text_column_delimiter.join(parts)


def encode(
    splits: DatasetDict, problem: Problem, tokenizer: PreTrainedTokenizerBase, data_args: DataArguments
) -> DatasetDict:
    """The rows as Trainer takes them: `input_ids`, `attention_mask` and `labels`.

    Raises:
        ValueError: for a label that the `problem` does not have, or a row without tokens.
    """
    truncation = {"truncation": True, "max_length": data_args.max_length} if data_args.max_length else {}

    def encode_row(row: dict[str, Any], split: str) -> dict[str, Any]:
        label = named(row[data_args.label_column_name], splits[split].features[data_args.label_column_name])
        try:
            target = problem.target(label)
        except ValueError as error:
            raise ValueError(
                f"--label_column_name: the label {label!r} of split {split!r} cannot be used: {error}. If the split "
                f"has no labels, choose another with --{split}_split_name."
            ) from None
        encoded = tokenizer(text(row, data_args), return_token_type_ids=False, **truncation)
        if not encoded["input_ids"]:
            raise ValueError(f"Split {split!r} has a row without tokens: {row}. Leave such rows out.")
        return {**encoded, "labels": target}

    return DatasetDict(
        {
            split: rows.map(encode_row, fn_kwargs={"split": split}, remove_columns=rows.column_names)
            for split, rows in splits.items()
        }
    )


def build_model(model_args: ModelArguments, tokenizer: PreTrainedTokenizerBase, problem: Problem) -> PreTrainedModel:
    """The checkpoint with a head for the `problem`, or a new model of the size asked for.

    Raises:
        ValueError: the tokenizer has ids that the checkpoint does not know, or no model is as small as asked for.
    """
    head = {
        "problem_type": problem.problem_type,
        "id2label": dict(enumerate(problem.names)),
        "label2id": {name: index for index, name in enumerate(problem.names)},
    }
    path = model_args.model_name_or_path
    if path is not None:
        remote = {"trust_remote_code": model_args.trust_remote_code}
        config = AutoConfig.from_pretrained(path, **head, **remote)
        if len(tokenizer) > config.vocab_size:
            raise ValueError(
                f"The tokenizer has {len(tokenizer)} tokens, the checkpoint {path!r} knows {config.vocab_size}: "
                "leave out --tokenizer_name to take the checkpoint's own."
            )
        return AutoModelForSequenceClassification.from_pretrained(
            path, config=config, ignore_mismatched_sizes=True, **remote
        )

    def count(width: int) -> int:
        with torch.device("meta"):
            config = scratch_config(model_args, width, tokenizer, head)
            return AutoModelForSequenceClassification.from_config(config).num_parameters()

    widths = range(1, LARGEST_WIDTH)
    if count(widths[0]) > model_args.parameters:
        raise ValueError(
            f"--parameters {model_args.parameters}: the smallest model with these embeddings and layers has "
            f"{count(widths[0])}. Raise it, or lower --embedding_size."
        )
    above = min(bisect.bisect_left(widths, model_args.parameters, key=count), len(widths) - 1)
    width = min(widths[above - 1 : above + 1], key=lambda width: abs(count(width) - model_args.parameters))
    return AutoModelForSequenceClassification.from_config(scratch_config(model_args, width, tokenizer, head))


def scratch_config(
    model_args: ModelArguments, width: int, tokenizer: PreTrainedTokenizerBase, head: dict[str, Any]
) -> PreTrainedConfig:
    """The configuration of a model from scratch whose one free size is `width`."""
    common = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "classifier_dropout": model_args.dropout,
        **head,
    }
    if model_args.model == "transformer":
        return ModernBertConfig(
            hidden_size=model_args.embedding_size,
            intermediate_size=width,
            num_hidden_layers=model_args.num_layers,
            num_attention_heads=model_args.num_heads,
            layer_types=["full_attention"] * model_args.num_layers,
            classifier_pooling="mean",
            embedding_dropout=model_args.dropout,
            attention_dropout=model_args.dropout,
            mlp_dropout=model_args.dropout,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            cls_token_id=tokenizer.cls_token_id,
            sep_token_id=tokenizer.sep_token_id,
            **common,
        )
    if model_args.model == "lstm":
        return LSTMConfig(hidden_size=width, embedding_size=model_args.embedding_size, **common)
    return PRLSTMConfig(
        hidden_size=width,
        embedding_size=model_args.embedding_size,
        num_refinements=model_args.num_refinements,
        **common,
    )


def metrics_of(problem: Problem) -> Callable[[EvalPrediction], dict[str, float]]:
    """Trainer's `compute_metrics`: the metrics of the problem."""
    metric = evaluate.load(METRICS, problem.problem_type, experiment_id=str(os.getpid()))

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        return metric.compute(predictions=prediction.predictions, references=prediction.label_ids)

    return compute


def loss_of(problem: Problem, label_smoothing: float) -> Callable[..., Tensor]:
    """Trainer's `compute_loss_func`, one for all models: not all divide by `num_items_in_batch` on their own."""

    def compute(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        reduction = "mean" if num_items_in_batch is None else "sum"
        loss = problem.loss(outputs.logits, labels, reduction, label_smoothing)
        return loss if num_items_in_batch is None else loss / num_items_in_batch

    return compute


if __name__ == "__main__":
    main()
