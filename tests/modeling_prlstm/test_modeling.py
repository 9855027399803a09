"""The models as a user meets them: inputs, padding, losses, errors, saving and loading."""

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.loss.loss_utils import ForTokenClassification
from transformers.utils import logging

from modeling_prlstm import PRLSTMForSequenceClassification, PRLSTMForTokenClassification, PRLSTMModel
from modeling_prlstm.cells import CELLS

from .reference import small_config

MODELS = {
    AutoModel: PRLSTMModel,
    AutoModelForSequenceClassification: PRLSTMForSequenceClassification,
    AutoModelForTokenClassification: PRLSTMForTokenClassification,
}


def build(model_class, cell_type="lstm", **kwargs):
    torch.manual_seed(0)
    return model_class(small_config(cell_type, **kwargs)).eval()


def padded(rows, places, length):
    """A batch of `rows` of tokens, each put at its `places`, with its mask; padding holds an id out of range."""
    ids = torch.full((len(rows), length), -7)
    mask = torch.zeros_like(ids)
    for row, (tokens, place) in enumerate(zip(rows, places, strict=True)):
        ids[row, place] = tokens
        mask[row, place] = 1
    return ids, mask


@pytest.fixture(params=["right", "left", "scattered"])
def batch(request):
    generator = torch.Generator().manual_seed(0)
    lengths, length = (1, 13, 2, 20, 7, 16), 20
    rows = [torch.randint(5, (n,), generator=generator) for n in lengths]
    places = {
        "right": [torch.arange(n) for n in lengths],
        "left": [torch.arange(length - n, length) for n in lengths],
        "scattered": [torch.randperm(length, generator=generator)[:n].sort().values for n in lengths],
    }[request.param]
    return rows, places, *padded(rows, places, length)


class TestPadding:
    @pytest.mark.parametrize("cell_type", CELLS)
    @pytest.mark.parametrize("embedding_size", [None, 4])
    def test_a_row_alone_gives_what_it_gives_in_any_batch(self, batch, cell_type, embedding_size):
        rows, places, ids, mask = batch
        tokens_model = build(PRLSTMForTokenClassification, cell_type, embedding_size=embedding_size)
        rows_model = build(PRLSTMForSequenceClassification, cell_type, embedding_size=embedding_size)
        rows_model.load_state_dict(tokens_model.state_dict())
        every, pooled = tokens_model(ids, mask).logits, rows_model(ids, mask).logits
        for index, (tokens, place) in enumerate(zip(rows, places, strict=True)):
            alone = tokens_model(tokens[None]).logits[0]
            torch.testing.assert_close(every[index, place], alone)
            torch.testing.assert_close(pooled[index], alone[-1])

    def test_states_at_padding_are_zero(self, batch):
        *_, ids, mask = batch
        out = build(PRLSTMModel)(ids, mask, output_hidden_states=True)
        for states in out.hidden_states:
            assert (states[mask == 0] == 0).all()
            assert (states[mask == 1] != 0).any(dim=-1).all()

    def test_vectors_at_padding_do_not_matter(self, batch):
        *_, ids, mask = batch
        one_hot = F.one_hot(ids.clamp(min=0), 5).float()
        one_hot[mask == 0] = float("nan")
        model = build(PRLSTMModel)
        torch.testing.assert_close(
            model(inputs_embeds=one_hot, attention_mask=mask).last_hidden_state,
            model(ids, mask).last_hidden_state,
        )

    def test_gradients_do_not_depend_on_padding(self, batch):
        rows, _, ids, mask = batch
        model = build(PRLSTMForSequenceClassification)
        model(ids, mask, labels=torch.arange(6) % 3).loss.backward()
        together = {name: p.grad.clone() for name, p in model.named_parameters()}
        model.zero_grad()
        for index, tokens in enumerate(rows):
            (model(tokens[None], labels=torch.tensor([index % 3])).loss / 6).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, together[name], rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool, torch.float32])
    def test_mask_dtypes(self, batch, dtype):
        *_, ids, mask = batch
        model = build(PRLSTMModel)
        torch.testing.assert_close(model(ids, mask.to(dtype)).pooler_output, model(ids, mask).pooler_output)


class TestOutputs:
    def test_pooler_output_is_the_last_tokens_state(self):
        ids = torch.randint(5, (3, 9))
        out = build(PRLSTMModel)(ids)
        assert torch.equal(out.pooler_output, out.last_hidden_state[:, -1])
        assert out.last_hidden_state.shape == (3, 9, 6)

    def test_pool_only(self):
        model, ids = build(PRLSTMModel), torch.randint(5, (3, 9))
        out = model(ids, pool_only=True)
        assert out.last_hidden_state is None
        torch.testing.assert_close(out.pooler_output, model(ids).pooler_output)

    def test_hidden_states_on_request(self):
        model, ids = build(PRLSTMForSequenceClassification), torch.randint(5, (3, 9))
        out = model(ids, output_hidden_states=True)
        assert [tuple(states.shape) for states in out.hidden_states] == [(3, 9, 6), (3, 9, 6)]
        torch.testing.assert_close(out.logits, model(ids).logits)

    def test_tuples(self):
        model, ids, labels = (
            build(PRLSTMForSequenceClassification),
            torch.randint(5, (3, 9)),
            torch.zeros(3).long(),
        )
        out = model(ids, labels=labels)
        loss, logits = model(ids, labels=labels, return_dict=False)
        assert torch.equal(loss, out.loss)
        assert torch.equal(logits, out.logits)

    @pytest.mark.parametrize("model_class", [PRLSTMForSequenceClassification, PRLSTMForTokenClassification])
    def test_tuples_by_configuration(self, model_class):
        ids = torch.randint(5, (3, 9))
        (logits,) = build(model_class, return_dict=False)(ids)
        assert torch.equal(logits, build(model_class)(ids).logits)


class TestLosses:
    @pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
    @pytest.mark.parametrize("model_class", [PRLSTMForSequenceClassification, PRLSTMForTokenClassification])
    def test_classes_of_any_integer_dtype(self, model_class, dtype):
        model, ids = build(model_class), torch.randint(5, (3, 9))
        labels = torch.randint(3, model(ids).logits.shape[:-1])
        assert torch.equal(model(ids, labels=labels.to(dtype)).loss, model(ids, labels=labels).loss)

    def test_ignored_positions(self):
        model, ids = build(PRLSTMForTokenClassification), torch.randint(5, (3, 9))
        labels = torch.full((3, 9), -100)
        labels[:, 4:] = torch.randint(3, (3, 5))
        out = model(ids, labels=labels)
        torch.testing.assert_close(out.loss, F.cross_entropy(out.logits[:, 4:].flatten(0, 1), labels[:, 4:].flatten()))

    @pytest.mark.parametrize("options", [{}, {"num_items_in_batch": torch.tensor(7)}, {"ignore_index": 1}])
    @pytest.mark.parametrize("label", [1, 2])
    def test_loss_of_tokens_is_that_of_transformers(self, options, label):
        model, ids = build(PRLSTMForTokenClassification), torch.randint(5, (3, 9))
        labels = torch.where(ids > 3, options.get("ignore_index", -100), label)
        arguments = model(ids).logits, labels, model.config
        found, expected = (loss(*arguments, **options) for loss in (model.loss_function, ForTokenClassification))
        torch.testing.assert_close(found, expected, equal_nan=True)

    @pytest.mark.parametrize(
        ("problem_type", "num_labels", "labels", "expected"),
        [
            ("regression", 1, torch.randn(4), lambda x, y: F.mse_loss(x[:, 0], y)),
            ("regression", 3, torch.randn(4, 3), F.mse_loss),
            ("single_label_classification", 3, torch.tensor([0, 2, 1, 1]), F.cross_entropy),
            (
                "multi_label_classification",
                3,
                torch.randint(2, (4, 3)).float(),
                F.binary_cross_entropy_with_logits,
            ),
        ],
    )
    def test_problem_types(self, problem_type, num_labels, labels, expected):
        ids = torch.randint(5, (4, 9))
        for given in (problem_type, None):  # None: inferred
            model = build(PRLSTMForSequenceClassification, num_labels=num_labels, problem_type=given)
            if given is None and num_labels == 3 and problem_type == "regression":
                continue  # floats for several labels mean multi-label
            out = model(ids, labels=labels)
            torch.testing.assert_close(out.loss, expected(out.logits, labels))
            scaled = model(ids, labels=labels, num_items_in_batch=4 * labels.numel()).loss
            torch.testing.assert_close(scaled, out.loss / 4)
            assert model.config.problem_type == problem_type


class TestCheckpoints:
    @pytest.mark.parametrize("auto_class", MODELS)
    @pytest.mark.parametrize("cell_type", CELLS)
    def test_round_trip_is_bit_equal(self, auto_class, cell_type, tmp_path):
        model = build(MODELS[auto_class], cell_type, embedding_size=4)
        model.save_pretrained(tmp_path)
        assert (tmp_path / "model.safetensors").exists()
        loaded = auto_class.from_pretrained(tmp_path)
        assert type(loaded) is MODELS[auto_class]
        assert loaded.state_dict().keys() == model.state_dict().keys()
        assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
        ids = torch.randint(5, (3, 9))
        assert torch.equal(loaded(ids)[0], model(ids)[0])
        assert AutoConfig.from_pretrained(tmp_path).to_diff_dict() == model.config.to_diff_dict()

    def test_resized_embeddings_take_new_ids(self):
        model = build(PRLSTMForSequenceClassification, embedding_size=4)
        model.resize_token_embeddings(9)
        model(torch.arange(9)[None])
        model(torch.arange(9).repeat(3, 1))


@pytest.mark.parametrize("model_class", [PRLSTMForSequenceClassification, PRLSTMForTokenClassification])
def test_gradients_of_each_row_by_vmap(model_class):
    model = build(model_class, backend="eager")
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    ids = torch.randint(5, (3, 11), generator=torch.Generator().manual_seed(0))
    labels = ids % 3 if model_class is PRLSTMForTokenClassification else ids[:, 0] % 3

    def loss(parameters, ids, labels):
        batch = {"input_ids": ids[None], "labels": labels[None]}
        return torch.func.functional_call(model, parameters, kwargs=batch).loss

    gradient = torch.func.grad(loss)
    of_each = torch.func.vmap(gradient, in_dims=(None, 0, 0))(parameters, ids, labels)
    for row in range(3):
        expected = gradient(parameters, ids[row], labels[row])
        torch.testing.assert_close({name: part[row] for name, part in of_each.items()}, expected)


def test_one_hot_tokens_need_no_embeddings_for_checkpointing(caplog):
    """Which calls this."""
    logger = logging.get_logger("transformers")
    logger.addHandler(caplog.handler)
    build(PRLSTMForSequenceClassification).enable_input_require_grads()
    logger.removeHandler(caplog.handler)
    assert "embeddings" not in caplog.text


class TestInitialisation:
    @pytest.mark.parametrize("cell_type", CELLS)
    def test_weights_are_truncated_normal_by_fan_in_and_biases_zero(self, cell_type):
        model = build(PRLSTMForSequenceClassification, cell_type, hidden_size=128, vocab_size=64)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                assert (parameter == 0).all(), name
                continue
            fan_in = parameter.shape[1]
            if cell_type == "gru" and "binary" in name:
                fan_in //= 2  # two maps side by side
            std = fan_in**-0.5
            assert parameter.abs().max() <= 2 * std, name
            # a normal of sd 1 cut at 2 has the sd 0.8796
            assert parameter.std().item() == pytest.approx(0.8796 * std, rel=0.1), name

    def test_layers_without_bias_of_a_derived_class(self):
        class WithProjection(PRLSTMModel):
            def __init__(self, config):
                super().__init__(config)
                self.projection = torch.nn.Linear(6, 6, bias=False)
                self.post_init()

        assert build(WithProjection).projection.weight.abs().max() <= 2 * 6**-0.5
