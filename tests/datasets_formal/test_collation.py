import re
from pathlib import Path
from typing import Any

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


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("readme", ["README.md", "datasets_formal/README.md"])
def test_the_readme_gets_to_a_batch_in_five_lines(readme: str, name: str, load: Load, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / readme).read_text(encoding="utf-8")
    snippet = next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if '"parity_check"' in block)
    assert len([line for line in snippet.splitlines() if line]) <= 5
    settings = f'cache_dir={str(tmp_path)!r}, train_examples=300, test_lengths=(41, 41), split="train"'
    variables: dict[str, Any] = {}
    exec(snippet.replace("parity_check", name).replace('split="train"', settings), variables)
    batch = variables["batch"]
    assert batch["input_ids"].shape[0] == batch["labels"].shape[0] == 128
