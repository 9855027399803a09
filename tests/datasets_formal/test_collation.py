import pytest
from transformers import DataCollatorForTokenClassification, DataCollatorWithPadding

from datasets_formal import TASKS, build_tokenizer

from .conftest import Load

MODEL_COLUMNS = ["input_ids", "labels"]


@pytest.mark.parametrize("name", TASKS)
def test_rows_go_through_the_collators_unchanged(name: str, load: Load) -> None:
    task, tokenizer = TASKS[name], build_tokenizer(name)
    rows = load(name, split="train")
    batch = rows.select(range(8)).select_columns(MODEL_COLUMNS)
    collator = DataCollatorWithPadding if task.kind == "class" else DataCollatorForTokenClassification
    collated = collator(tokenizer)(list(batch))
    longest = max(map(len, batch["input_ids"]))
    assert collated["input_ids"].shape == collated["attention_mask"].shape == (8, longest)
    assert collated["labels"].shape == ((8,) if task.kind == "class" else (8, longest))
    assert collated["attention_mask"].sum(1).tolist() == [len(ids) for ids in batch["input_ids"]]
    assert str(rows.with_format("torch")[0]["input_ids"].dtype) == "torch.int64"
