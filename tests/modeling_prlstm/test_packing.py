"""Packed rows give what the separate rows give, whichever key tells where they begin."""

import pytest
import torch
from transformers import DataCollatorWithFlattening

from modeling_prlstm import PRLSTMForSequenceClassification, PRLSTMForTokenClassification, PRLSTMModel
from modeling_prlstm.cells import CELLS
from modeling_prlstm.padding import Rows

from .reference import small_config

LENGTHS = (5, 1, 17, 2, 8)
KEYS = {
    "position_ids": {},
    "seq_idx": {"return_position_ids": False, "return_seq_idx": True},
    "cu_seq_lens_q": {"return_position_ids": False, "return_flash_attn_kwargs": True},
    "all": {"return_seq_idx": True, "return_flash_attn_kwargs": True},
}


def sequences():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(5, (length,), generator=generator) for length in LENGTHS]


def build(model_class, cell_type="lstm"):
    torch.manual_seed(0)
    return model_class(small_config(cell_type)).eval()


@pytest.fixture(params=KEYS)
def packed(request):
    batch = DataCollatorWithFlattening(**KEYS[request.param])([{"input_ids": row.tolist()} for row in sequences()])
    return {name: value for name, value in batch.items() if name != "labels"}


@pytest.mark.parametrize("cell_type", CELLS)
def test_collated_rows_are_the_separate_rows(packed, cell_type):
    model = build(PRLSTMModel, cell_type)
    out = model(**packed)
    alone = [model(row[None]) for row in sequences()]
    torch.testing.assert_close(out.last_hidden_state[0], torch.cat([one.last_hidden_state[0] for one in alone]))
    torch.testing.assert_close(out.pooler_output, torch.cat([one.pooler_output for one in alone]))
    torch.testing.assert_close(model(**packed, pool_only=True).pooler_output, out.pooler_output)


def test_one_answer_a_packed_sequence(packed):
    model, labels = build(PRLSTMForSequenceClassification), torch.tensor([0, 1, 2, 1, 0])
    out = model(**packed, labels=labels)
    assert out.logits.shape == (5, 3)
    losses = [model(row[None], labels=label[None]).loss for row, label in zip(sequences(), labels, strict=True)]
    torch.testing.assert_close(out.loss, torch.stack(losses).mean())


def test_gradients_are_those_of_the_separate_rows(packed):
    model = build(PRLSTMForTokenClassification)
    model(**packed).logits.square().sum().backward()
    together = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    sum(model(row[None]).logits.square().sum() for row in sequences()).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(together[name], parameter.grad, rtol=1e-4, atol=1e-5)


def test_several_packed_rows_with_padding():
    model, rows = build(PRLSTMModel), sequences()
    ids, mask = torch.zeros(2, 30, dtype=torch.int64), torch.zeros(2, 30, dtype=torch.int64)
    positions = torch.full((2, 30), 7)
    places = [(0, 3), (0, 8), (0, 10), (1, 0), (1, 20)]  # the last two apart, with padding between
    for row, (at, start) in zip(rows, places, strict=True):
        here = slice(start, start + len(row))
        ids[at, here], mask[at, here], positions[at, here] = row, 1, torch.arange(len(row))
    out = model(ids, attention_mask=mask, position_ids=positions)
    for index, (row, (at, start)) in enumerate(zip(rows, places, strict=True)):
        alone = model(row[None])
        torch.testing.assert_close(out.last_hidden_state[at, start : start + len(row)], alone.last_hidden_state[0])
        torch.testing.assert_close(out.pooler_output[index], alone.pooler_output[0])
    assert (out.last_hidden_state[mask == 0] == 0).all()


def test_plain_position_ids_change_nothing():
    model, ids = build(PRLSTMModel), torch.randint(5, (3, 9))
    positions = torch.arange(9)
    for given in (positions, positions[None], positions.expand(3, 9), positions.int()):
        torch.testing.assert_close(model(ids, position_ids=given).pooler_output, model(ids).pooler_output)


@pytest.mark.parametrize("count_padding", [True, False])
def test_position_ids_over_padding(count_padding):
    """Those of a row with padding anywhere: of all its positions, or of its tokens alone."""
    model, ids = build(PRLSTMModel), torch.randint(5, (2, 9))
    mask = torch.tensor([[0, 1, 1, 0, 0, 1, 0, 1, 0], [1, 0, 1, 1, 1, 1, 0, 0, 1]])
    positions = torch.arange(9).expand(2, 9) if count_padding else (mask.cumsum(1) - 1).clamp(min=0)
    out, expected = model(ids, mask, position_ids=positions), model(ids, mask)
    torch.testing.assert_close(out.pooler_output, expected.pooler_output)
    torch.testing.assert_close(out.last_hidden_state, expected.last_hidden_state)


def test_sequences_with_padding_of_their_own():
    """Whose ends count the padding, as those of rows that were padded before they were packed."""
    model, ids = build(PRLSTMModel), torch.randint(5, (1, 9))
    mask = torch.tensor([[1, 1, 0, 0, 1, 0, 1, 1, 0]])
    out = model(ids, mask, cu_seq_lens_q=torch.tensor([0, 4, 9], dtype=torch.int32)).pooler_output
    for state, tokens in zip(out, (ids[:, :2], ids[:, [4, 6, 7]]), strict=True):
        torch.testing.assert_close(state, model(tokens).pooler_output[0])


@pytest.mark.parametrize(
    ("boundaries", "message"),
    [
        ({"position_ids": torch.arange(8)[None]}, r"`position_ids` must be integers of .* \(1, 9\), got .* \(1, 8\)"),
        ({"position_ids": torch.arange(9.0)}, "`position_ids` must be integers of .* got torch.float32"),
        ({"position_ids": torch.tensor(0)}, r"`position_ids` must be integers of .* of shape \(\)"),
        ({"position_ids": torch.arange(9)[None, None]}, r"`position_ids` must be integers of .* \(1, 1, 9\)"),
        ({"seq_idx": torch.zeros(2, 9).long()}, r"`seq_idx` must be integers of .* of shape \(2, 9\)"),
        ({"seq_idx": torch.zeros(9).bool()}, "`seq_idx` must be integers of .* got torch.bool"),
        ({"cu_seq_lens_q": torch.tensor([0, 4, 8])}, "must be integers that rise from 0 to the length"),
        ({"cu_seq_lens_q": torch.tensor([0, 5, 4, 9])}, "must be integers that rise from 0 to the length"),
        ({"cu_seq_lens_q": torch.tensor([1, 9])}, "must be integers that rise from 0 to the length"),
        ({"cu_seq_lens_q": torch.tensor([0.0, 9.0])}, "must be integers that rise from 0 to the length"),
        ({"cu_seq_lens_q": torch.tensor([9])}, "must be integers that rise from 0 to the length"),
        ({"cu_seq_lens_q": torch.tensor([])}, "must be integers that rise from 0 to the length"),
    ],
)
def test_boundaries_that_do_not_fit(boundaries, message):
    with pytest.raises(ValueError, match=message):
        build(PRLSTMModel)(torch.ones(1, 9, dtype=torch.int64), **boundaries)


def test_ends_of_several_rows():
    with pytest.raises(ValueError, match=r"of a batch of one row, got \[0, 9\] for a batch of shape \(2, 9\)"):
        build(PRLSTMModel)(torch.ones(2, 9, dtype=torch.int64), cu_seq_lens_q=torch.tensor([0, 9]))


def test_a_sequence_of_padding_alone():
    mask = torch.tensor([[1, 1, 0, 0, 1, 1]])
    with pytest.raises(ValueError, match=r"0 everywhere in sequence\(s\) \[1\] of `cu_seq_lens_q`"):
        build(PRLSTMModel)(torch.ones(1, 6, dtype=torch.int64), mask, cu_seq_lens_q=torch.tensor([0, 2, 4, 6]))


@pytest.mark.parametrize("key", ["position_ids", "seq_idx", "cu_seq_lens_q"])
def test_boundaries_are_not_tensors(key):
    with pytest.raises(TypeError, match=f"`{key}` must be a tensor, got list: use `torch.tensor"):
        build(PRLSTMModel)(torch.ones(1, 3, dtype=torch.int64), **{key: [0, 1, 3]})


def test_boundaries_cannot_be_exported():
    inputs = {"input_ids": torch.ones(1, 9, dtype=torch.int64), "cu_seq_lens_q": torch.tensor([0, 4, 9])}
    with pytest.raises(Exception, match="cannot be compiled, exported or captured"):
        torch.export.export(build(PRLSTMModel), (), inputs)


def test_last_states_of_a_batch_with_a_row_without_tokens():
    """As a CUDA graph may replay it, which looks at no values: the other rows are none the worse."""
    states = torch.arange(12.0).view(2, 3, 2)
    last = Rows(torch.zeros(2, 3), torch.tensor([0, 2]), None, (2, 3)).last(states)
    assert torch.equal(last[1], states[1, 1])
