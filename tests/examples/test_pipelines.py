"""transformers' pipelines on strings and lists, with a tokenizer of the tasks and one of bytes."""

import pytest
import torch
from transformers import AutoTokenizer, ByT5Tokenizer, pipeline

from datasets_formal import build_tokenizer
from modeling_prlstm import PRLSTMConfig, PRLSTMForSequenceClassification, PRLSTMForTokenClassification

pytestmark = pytest.mark.filterwarnings("ignore:.*pipelines sequentially on GPU.*")


def classifier(task, tokenizer, **config):
    torch.manual_seed(0)
    model_class = {"text": PRLSTMForSequenceClassification, "token": PRLSTMForTokenClassification}[task]
    model = model_class(PRLSTMConfig(vocab_size=len(tokenizer), hidden_size=8, **config))
    return pipeline(f"{task}-classification", model=model, tokenizer=tokenizer)


@pytest.mark.parametrize("make_tokenizer", [lambda: build_tokenizer("parity_check"), ByT5Tokenizer])
def test_texts(make_tokenizer):
    classify = classifier("text", make_tokenizer(), id2label={0: "even", 1: "odd"})
    texts = ["0110", "1", "10101"]
    alone = [classify(text)[0] for text in texts]
    assert {answer["label"] for answer in alone} <= {"even", "odd"}
    for batched in (classify(texts), classify(texts, batch_size=2)):
        for one, other in zip(alone, batched, strict=True):
            assert one["label"] == other["label"]
            assert one["score"] == pytest.approx(other["score"], rel=1e-5)


def test_tokens():
    tag = classifier("token", ByT5Tokenizer(), embedding_size=4)
    texts = ["abc", "d"]
    alone = [tag(text) for text in texts]
    assert [[token["word"] for token in tokens] for tokens in alone] == [["a", "b", "c"], ["d"]]
    for one, other in zip(alone, tag(texts, batch_size=2), strict=True):
        assert [token["score"] for token in one] == pytest.approx([token["score"] for token in other], rel=1e-5)


def test_an_empty_string_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="the text is an empty string"):
        classifier("text", build_tokenizer("parity_check"))("")
    build_tokenizer("reverse_string").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="an empty sequence has no state"):
        classifier("text", AutoTokenizer.from_pretrained(tmp_path))("")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (torch.tensor([0.5]), 5.0),
        (torch.tensor([[1.0, 0.0]]), torch.tensor(5.0).sigmoid().item()),
        (torch.tensor([1]), 0.5),
    ],
    ids=["regression", "multi-label", "single-label"],
)
def test_scores_are_read_as_the_labels_were(labels, expected):
    """The problem type that the first labels show goes to the config, by which pipelines choose."""
    tokenizer = build_tokenizer("parity_check")
    classify = classifier("text", tokenizer, num_labels=2 if labels.dtype == torch.int64 else labels.shape[-1])
    classify.model(torch.tensor([[0, 1]]), labels=labels)
    with torch.no_grad():
        classify.model.classifier.weight.zero_()
        classify.model.classifier.bias.fill_(5)
    assert classify("01")[0]["score"] == pytest.approx(expected, rel=1e-5)
