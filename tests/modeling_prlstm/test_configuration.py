import pytest
from huggingface_hub.errors import StrictDataclassError

from modeling_prlstm import PRLSTMConfig, PRLSTMForSequenceClassification


def test_defaults_are_the_headline_model():
    assert PRLSTMForSequenceClassification(PRLSTMConfig()).num_parameters() == 923_394


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vocab_size": 0}, "`vocab_size` must be at least 1, got 0"),
        ({"hidden_size": -4}, "`hidden_size` must be at least 1, got -4"),
        ({"hidden_size": "64"}, "'hidden_size' expected int, got str"),
        ({"embedding_size": 0}, "`embedding_size` must be at least 1, got 0"),
        ({"num_refinements": -1}, "`num_refinements` must be 0 or more, got -1"),
        ({"num_refinements": 1.5}, "'num_refinements' expected int, got float"),
        ({"cell_type": "tree"}, "cell_type"),
        ({"cell_type": "gru"}, "`num_refinements` must be 0 with `cell_type='gru'`"),
        ({"classifier_dropout": 1.0}, r"`classifier_dropout` must be in \[0, 1\), got 1.0"),
        ({"problem_type": "ranking"}, "problem_type"),
        ({"num_labels": 0}, "`num_labels` .* must be at least 1, got 0"),
        ({"id2label": {}}, "`num_labels` .* must be at least 1, got 0"),
        ({"backend": "cuda"}, "backend"),
    ],
)
def test_invalid_values_raise_at_construction(arguments, message):
    with pytest.raises(StrictDataclassError, match=message):
        PRLSTMConfig(**arguments)


def test_round_trip(tmp_path):
    config = PRLSTMConfig(vocab_size=11, hidden_size=32, cell_type="rnn", num_refinements=2, num_labels=5)
    config.save_pretrained(tmp_path)
    assert PRLSTMConfig.from_pretrained(tmp_path).to_diff_dict() == config.to_diff_dict()
