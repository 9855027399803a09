"""A small training run that the tests start in processes of its own: `python train.py --output_dir FOLDER ...`.

It takes all of `TrainingArguments`. FOLDER then holds the model and, for each process, `rank-0.json` and so on: the
`rows` that it trained on in order, the `losses` that it logged, the modules that FSDP `wrapped`, the files that it
`wrote`.
"""

import gc
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset
from torch.distributed.fsdp import FSDPModule
from transformers import HfArgumentParser, PreTrainedModel, Trainer, TrainingArguments

from modeling_prlstm import PRLSTMConfig, PRLSTMForSequenceClassification, PRLSTMForTokenClassification

NUM_ROWS = 48
PAD = {"input_ids": 0, "attention_mask": 0, "labels": -100}
# The oldest supported transformers knows only the second name, about which the newest warns.
CHECKPOINTING = (
    "activation_checkpointing"
    if hasattr(PreTrainedModel, "activation_checkpointing_enable")
    else "gradient_checkpointing"
)


@dataclass
class ModelArguments:
    head: str = field(default="rows")
    hidden_size: int = field(default=8)
    embedding_size: int | None = field(default=None)
    classifier_dropout: float = field(default=0.0)


def build_model(head="rows", **sizes):
    """A small model, the same at every call; `head` is "rows" or "tokens"."""
    torch.manual_seed(0)
    model_class = {"rows": PRLSTMForSequenceClassification, "tokens": PRLSTMForTokenClassification}[head]
    return model_class(PRLSTMConfig(**({"vocab_size": 4, "hidden_size": 8, "num_labels": 3} | sizes)))


def build_rows(head="rows"):
    """NUM_ROWS rows of lengths 1 to 20, each with its index in "row" and its "length".

    The first six have length 1: in a batch of their own they meet no merge.
    """
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 21, (NUM_ROWS,), generator=generator).tolist()
    lengths[:6] = [1] * 6
    tokens = [torch.randint(4, (length,), generator=generator) for length in lengths]
    sums = [ids.cumsum(0) % 3 for ids in tokens]
    return Dataset.from_dict(
        {
            "row": range(NUM_ROWS),
            "length": lengths,
            "input_ids": [ids.tolist() for ids in tokens],
            "labels": [(labels if head == "tokens" else labels[-1]).tolist() for labels in sums],
        }
    )


class Collator:
    """Pads on the right, and notes in `batches` the indices of the rows of each batch."""

    def __init__(self):
        self.batches = []

    def __call__(self, rows):
        self.batches.append([row["row"] for row in rows])
        length = max(len(row["input_ids"]) for row in rows)
        columns = {
            "input_ids": [row["input_ids"] for row in rows],
            "attention_mask": [[1] * len(row["input_ids"]) for row in rows],
            "labels": [row["labels"] for row in rows],
        }
        return {
            name: torch.tensor(
                [value + [PAD[name]] * (length - len(value)) if isinstance(value, list) else value for value in values]
            )
            for name, values in columns.items()
        }


def main():
    model_args, args = HfArgumentParser((ModelArguments, TrainingArguments)).parse_args_into_dataclasses()
    written = []
    sys.addaudithook(lambda event, details: note_writes(written, event, details, args.output_dir))
    collator = Collator()
    trainer = Trainer(
        model=build_model(**vars(model_args)),
        args=args,
        data_collator=collator,
        train_dataset=build_rows(model_args.head),
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()
    report = {
        "rows": [row for batch in collator.batches for row in batch],
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "wrapped": sorted(
            type(module).__name__.removeprefix("FSDP")
            for module in trainer.model_wrapped.modules()
            if isinstance(module, FSDPModule)
        ),
        "wrote": sorted(set(written)),
    }
    (Path(args.output_dir) / f"rank-{args.process_index}.json").write_text(json.dumps(report))
    trainer.accelerator.wait_for_everyone()
    # The group's threads must end before the interpreter does: DDP's reducer and FSDP's units hold the group and go
    # first. The last to go waits for the threads, which may wait for the GIL: `group` lets go of it, the reducer not.
    group = torch.distributed.group.WORLD
    trainer.accelerator.end_training()
    del trainer
    gc.collect()
    del group


def note_writes(written, event, details, folder):
    """Audit hook: the files below `folder` that Python opens for writing."""
    if event == "open" and isinstance(details[0], str) and details[0].startswith(folder):
        mode = details[1]
        if mode is not None and set(mode) & set("wax+"):
            written.append(Path(details[0]).name)


if __name__ == "__main__":
    main()
