"""The recurrent baseline: `nn.LSTM` as a transformers model, with PR-LSTM's embedding and head.

One file with no imports of ours, so that `save_pretrained` can write it beside the weights.
"""

from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import can_return_tuple


@strict
class LSTMConfig(PreTrainedConfig):
    """Configuration of `LSTMForSequenceClassification`.

    Args:
        vocab_size: number of token ids.
        embedding_size: width of the embedding table.
        hidden_size: H, the width of the hidden and of the cell state.
        classifier_dropout: dropout probability of the state that enters the head.
        pad_token_id: id that pads a batch; the model goes by `attention_mask`.
    """

    model_type = "lstm_baseline"

    vocab_size: int = 3
    embedding_size: int = 64
    hidden_size: int = 256
    classifier_dropout: float | int = 0.0
    pad_token_id: int | None = None


class LSTMForSequenceClassification(PreTrainedModel):
    """One layer of `nn.LSTM`, read at each row's last token through `W relu(h) + b`.

    Args:
        config: the sizes.
    """

    config: LSTMConfig
    config_class = LSTMConfig
    base_model_prefix = "lstm"

    def __init__(self, config: LSTMConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size)
        self.lstm = nn.LSTM(config.embedding_size, config.hidden_size, batch_first=True)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As `nn.LSTM` itself does, with a forget bias of 1; embeddings from N(0, 1), as `nn.Embedding` does."""
        if isinstance(module, nn.LSTM):
            bound = module.hidden_size**-0.5
            for weight in module.parameters():
                init.uniform_(weight, -bound, bound)
            bias = torch.zeros(4, module.hidden_size)
            bias[1] = 1  # the gates' order is input, forget, cell, output
            init.copy_(module.bias_ih_l0, bias.flatten())
            init.zeros_(module.bias_hh_l0)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        else:
            super()._init_weights(module)

    @can_return_tuple
    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any
    ) -> SequenceClassifierOutput:
        """Classify each row.

        Args:
            input_ids: token ids [B, T].
            attention_mask: [B, T], 1 at tokens and 0 at padding.
            labels: classes [B], int64.
            **kwargs: `num_items_in_batch` goes to the loss.

        Returns:
            `loss` (with labels) and `logits` [B, num_labels].
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        tokens_first = attention_mask.argsort(dim=1, descending=True, stable=True)
        embedded = self.embed_tokens(input_ids.gather(1, tokens_first))
        lengths = attention_mask.sum(1).cpu()
        packed = pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
        _, (hidden, _) = self.lstm(packed)
        logits = self.classifier(self.dropout(hidden[-1].relu()))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config, **kwargs)
        return SequenceClassifierOutput(loss=loss, logits=logits)


AutoConfig.register(LSTMConfig.model_type, LSTMConfig)
AutoModelForSequenceClassification.register(LSTMConfig, LSTMForSequenceClassification)
LSTMConfig.register_for_auto_class()
LSTMForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
