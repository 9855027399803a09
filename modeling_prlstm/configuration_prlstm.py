"""Configuration of the PR-LSTM models."""

from typing import ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class PRLSTMConfig(PreTrainedConfig):
    r"""Configuration of a Parallel Recursive LSTM (arXiv 2605.17108).

    The defaults are the paper's headline model: one-hot tokens, H = 256, one refinement.

    Args:
        vocab_size (`int`, *optional*, defaults to 3):
            Number of token ids. With one-hot tokens also the width of `inputs_embeds`.
        hidden_size (`int`, *optional*, defaults to 256):
            H, the width of the hidden and of the cell state.
        num_refinements (`int`, *optional*, defaults to 1):
            R, the number of refinement cells after the binary cell of every merge. 0 for `cell_type="gru"`.
        cell_type (`"lstm"`, `"rnn"` or `"gru"`, *optional*, defaults to `"lstm"`):
            The cell of every node: PR-LSTM, or PR-RNN and PR-GRU of the paper's ablation.
        embedding_size (`int`, *optional*):
            Width of an embedding table before the leaf. None: tokens are one-hot, as in the paper.
        classifier_dropout (`float`, *optional*, defaults to 0.0):
            Dropout probability of the states that enter a classification head, in [0, 1).
        backend (`"auto"`, `"eager"`, `"fused"` or `"triton"`, *optional*, defaults to `"auto"`):
            What computes the tree. `eager`: plain PyTorch, the reference; any device and cell. `fused`: the whole tree
            as one function in plain PyTorch, LSTM cells. `triton`: the same in Triton kernels, on a GPU. `auto`:
            `triton` on a GPU and `fused` on a CPU where they can run, else `eager`.
        pad_token_id (`int`, *optional*):
            Id that pads a batch. The models go by `attention_mask` alone: this one is for collators and pipelines.

    Raises:
        huggingface_hub.errors.StrictDataclassError: for a value of the wrong type or out of its range; the message
            names the argument, the value and the range.

    Example:
    ```python
    >>> from modeling_prlstm import PRLSTMConfig, PRLSTMForSequenceClassification

    >>> model = PRLSTMForSequenceClassification(PRLSTMConfig())
    >>> model.num_parameters()
    923394
    ```
    """

    model_type = "prlstm"
    num_hidden_layers: ClassVar[int] = 1

    vocab_size: int = 3
    hidden_size: int = 256
    num_refinements: int = 1
    cell_type: Literal["lstm", "rnn", "gru"] = "lstm"
    embedding_size: int | None = None
    classifier_dropout: float | int = 0.0
    backend: Literal["auto", "eager", "fused", "triton"] = "auto"
    pad_token_id: int | None = None

    def validate_architecture(self) -> None:
        """Check the ranges that the types don't; called at construction.

        Raises:
            ValueError: naming the argument, its value and the mend.
        """
        for name in ("vocab_size", "hidden_size", "embedding_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        if self.num_labels < 1:
            raise ValueError(f"`num_labels` (or the length of `id2label`) must be at least 1, got {self.num_labels}.")
        if self.num_refinements < 0:
            raise ValueError(f"`num_refinements` must be 0 or more, got {self.num_refinements}.")
        if self.cell_type == "gru" and self.num_refinements:
            raise ValueError(
                f"`num_refinements` must be 0 with `cell_type='gru'`, got {self.num_refinements}: "
                "the paper defines no refinement cell for the GRU."
            )
        problem_types = ("regression", "single_label_classification", "multi_label_classification")
        if self.problem_type not in (None, *problem_types):
            raise ValueError(f"`problem_type` must be None or one of {problem_types}, got {self.problem_type!r}.")
        if not 0 <= self.classifier_dropout < 1:
            raise ValueError(f"`classifier_dropout` must be in [0, 1), got {self.classifier_dropout}.")


__all__ = ["PRLSTMConfig"]
