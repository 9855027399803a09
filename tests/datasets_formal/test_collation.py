import pytest
import torch
from transformers import DataCollatorForTokenClassification, DataCollatorWithPadding

from datasets_formal import TASKS, build_tokenizer

from .conftest import Load


@pytest.mark.parametrize("name", TASKS)
def test_rows_go_through_the_collators_unchanged(name: str, load: Load) -> None:
    task, tokenizer = TASKS[name], build_tokenizer(name)
    rows = load(name, split="train")
    stream = load(name, split="train", streaming=True)
    collator = (DataCollatorWithPadding if task.kind == "class" else DataCollatorForTokenClassification)(tokenizer)
    longest = max(map(len, rows[:8]["input_ids"]))
    for batch in (rows.select(range(8)), rows.with_format("torch").select(range(8)), stream.take(8)):
        collated = collator(list(batch))
        assert set(collated) == {"input_ids", "attention_mask", "labels", "length"}
        assert collated["input_ids"].shape == collated["attention_mask"].shape == (8, longest)
        assert collated["labels"].shape == ((8,) if task.kind == "class" else (8, longest))
        assert collated["attention_mask"].sum(1).tolist() == [len(ids) for ids in rows[:8]["input_ids"]]
        for padded, ids in zip(collated["input_ids"].tolist(), rows[:8]["input_ids"], strict=True):
            assert padded[: len(ids)] == ids


@pytest.mark.parametrize("name", TASKS)
def test_a_batch_of_one_length_needs_no_collator(name: str, load: Load) -> None:
    rows = load(name, split="train", rows_per_length=128).with_format("torch")
    batch = rows[:128]
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64
    assert batch["input_ids"].shape[0] == 128
    assert batch["labels"].shape == ((128,) if TASKS[name].kind == "class" else batch["input_ids"].shape)
