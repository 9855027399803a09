"""PR-LSTM, the Parallel Recursive LSTM (arXiv 2605.17108), as transformers models.

Importing this package makes `AutoConfig` and the `AutoModel` classes know the model type "prlstm", and
`save_pretrained` write the model's code beside its weights.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from .configuration_prlstm import PRLSTMConfig
from .modeling_prlstm import (
    PRLSTMForSequenceClassification,
    PRLSTMForTokenClassification,
    PRLSTMModel,
    PRLSTMPreTrainedModel,
)
from .training_step import TrainingStep

AutoConfig.register(PRLSTMConfig.model_type, PRLSTMConfig)
PRLSTMConfig.register_for_auto_class()
for auto_class, model_class in (
    (AutoModel, PRLSTMModel),
    (AutoModelForSequenceClassification, PRLSTMForSequenceClassification),
    (AutoModelForTokenClassification, PRLSTMForTokenClassification),
):
    auto_class.register(PRLSTMConfig, model_class)
    model_class.register_for_auto_class(auto_class.__name__)

__all__ = [
    "PRLSTMConfig",
    "PRLSTMForSequenceClassification",
    "PRLSTMForTokenClassification",
    "PRLSTMModel",
    "PRLSTMPreTrainedModel",
    "TrainingStep",
]
