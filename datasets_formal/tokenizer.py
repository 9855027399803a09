"""A tokenizer for every task: one symbol, one token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .registry import get_task
from .task import EMPTY_SYMBOL

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def build_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a task.

    Its vocabulary is the task's alphabet followed by the empty token `_`, which is the padding token too:
    the attention mask tells the two apart. For tasks with one output it appends the empty token itself, so
    "0110" is a whole example; for the others the text carries one `_` for every output, as the `text`
    column does. A symbol outside the alphabet raises an exception.

    Raises:
        ValueError: there is no such task.
    """
    from tokenizers import Regex, Tokenizer
    from tokenizers.decoders import Fuse
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    task = get_task(name)
    symbols = task.alphabet + EMPTY_SYMBOL
    tokenizer = Tokenizer(WordLevel({symbol: number for number, symbol in enumerate(symbols)}))
    tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = Fuse()
    if task.kind == "class":
        tokenizer.post_processor = TemplateProcessing(
            single=f"$A {EMPTY_SYMBOL}", special_tokens=[(EMPTY_SYMBOL, task.input_size)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=EMPTY_SYMBOL,
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
