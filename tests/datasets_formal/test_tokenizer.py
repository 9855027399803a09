import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from datasets_formal import TASKS, build_tokenizer


@pytest.mark.parametrize("name", TASKS)
def test_vocabulary_and_round_trip_through_files(name: str, tmp_path: Path) -> None:
    task = TASKS[name]
    build_tokenizer(name).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == task.input_size + 1
    assert tokenizer.pad_token_id == task.input_size
    appended = [task.input_size] if task.kind == "class" else []
    encoded = tokenizer(task.alphabet)
    assert encoded["input_ids"] == [*range(task.input_size), *appended]
    assert set(encoded) == {"input_ids", "attention_mask"}
    assert tokenizer.decode(encoded["input_ids"], skip_special_tokens=True) == task.alphabet


def test_padding_is_masked() -> None:
    batch = build_tokenizer("parity_check")(["0", "011"], padding=True)
    assert batch["input_ids"] == [[0, 2, 2, 2], [0, 1, 1, 2]]
    assert batch["attention_mask"] == [[1, 1, 0, 0], [1, 1, 1, 1]]


def test_sequence_tasks_read_the_empty_symbols_from_the_text() -> None:
    assert build_tokenizer("reverse_string")("01__")["input_ids"] == [0, 1, 2, 2]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("01a0", "'a' at place 2"),
        ("0 1", "' ' at place 1"),
        (["01", "0\n1"], r"'\\n' at place 1"),
        ("2" * 100_000, "'2' at place 0"),
    ],
)
def test_unknown_symbols_are_named(text: str | list[str], named: str) -> None:
    with pytest.raises(ValueError, match=f"{named} is no symbol of parity_check: write only those of 01$"):
        build_tokenizer("parity_check")(text)


def test_saved_tokenizers_are_of_the_standard_class_and_name_the_alphabet(tmp_path: Path) -> None:
    build_tokenizer("reverse_string").save_pretrained(tmp_path)
    program = """
import sys
from transformers import AutoTokenizer, PreTrainedTokenizerFast
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
assert type(tokenizer) is PreTrainedTokenizerFast
assert "datasets_formal" not in sys.modules
try:
    tokenizer("012")
except Exception as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert "no symbol of reverse_string: write only those of 01 and _ for the empty token" in done.stdout


def test_an_empty_string_is_refused() -> None:
    for text in ("", ["01", ""]):
        with pytest.raises(ValueError, match="the text is an empty string"):
            build_tokenizer("parity_check")(text)


def test_unknown_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match="Did you mean 'parity_check'"):
        build_tokenizer("parity")
