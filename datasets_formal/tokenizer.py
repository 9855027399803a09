"""A tokenizer for every task: one symbol, one token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .registry import get_task
from .task import EMPTY_SYMBOL

if TYPE_CHECKING:
    from .symbol_tokenizer import SymbolTokenizer


def build_tokenizer(name: str) -> SymbolTokenizer:
    """Return the tokenizer of a task.

    Its vocabulary is the task's alphabet followed by the empty token `_`, which is the padding token too:
    the attention mask tells the two apart. For tasks with one output it appends the empty token itself, so
    "0110" is a whole example; for the others the text carries one `_` for every output, as the `text`
    column does. A dataset's rows can be padded and collated as they are: `text` and `target` are left out.

    A symbol outside the alphabet raises ValueError with the symbol, its place and the alphabet; so does an
    empty string. Saved, it is a tokenizer of the standard class, whose error has the task and the alphabet,
    but cannot name the symbol, and which takes an empty string.

    Raises:
        ValueError: there is no such task.
    """
    from tokenizers import Regex, Tokenizer
    from tokenizers.decoders import Fuse
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import Split
    from tokenizers.processors import TemplateProcessing

    from .symbol_tokenizer import SymbolTokenizer

    task = get_task(name)
    vocabulary = {symbol: number for number, symbol in enumerate(task.alphabet + EMPTY_SYMBOL)}
    mend = f"no symbol of {name}: write only those of {task.alphabet}"
    if task.kind == "sequence":
        mend += f" and {EMPTY_SYMBOL} for the empty token"
    # Without merges, a token a symbol. The library's error for an unknown symbol quotes `unk_token`.
    tokenizer = Tokenizer(BPE(vocabulary, [], unk_token=mend))
    tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = Fuse()
    if task.kind == "class":
        tokenizer.post_processor = TemplateProcessing(
            single=f"$A {EMPTY_SYMBOL}", special_tokens=[(EMPTY_SYMBOL, task.input_size)]
        )
    return SymbolTokenizer(
        tokenizer_object=tokenizer,
        pad_token=EMPTY_SYMBOL,
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
