"""The class of the tasks' tokenizers; apart from `tokenizer`, so that the package loads without transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerFast


class SymbolTokenizer(PreTrainedTokenizerFast):
    """The standard class, which also names unknown symbols and pads the datasets' rows as they are."""

    def _encode_plus(self, text: Any, *args: Any, **kwargs: Any) -> Any:
        known = self.get_vocab()
        for written in text if isinstance(text, list | tuple) else [text]:
            if written == "":
                raise ValueError("the text is an empty string: write at least one symbol")
            for place, symbol in enumerate(written if isinstance(written, str) else ""):
                if symbol not in known:
                    raise ValueError(f"{symbol!r} at place {place} is {self.backend_tokenizer.model.unk_token}")
        return super()._encode_plus(text, *args, **kwargs)

    def pad(self, encoded_inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Pad as the standard class does, but leave out columns of text, which cannot be tensors."""
        if isinstance(encoded_inputs, Mapping):
            encoded_inputs = _without_text(encoded_inputs)
        else:
            encoded_inputs = [_without_text(row) for row in encoded_inputs]
        return super().pad(encoded_inputs, *args, **kwargs)


# The name that is saved: AutoTokenizer is to load the standard class, with or without this package.
SymbolTokenizer.__name__ = PreTrainedTokenizerFast.__name__


def _without_text(columns: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: values
        for name, values in columns.items()
        if not isinstance(values[0] if isinstance(values, list) and values else values, str)
    }
