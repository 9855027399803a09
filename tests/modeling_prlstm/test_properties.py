"""A row gives alone what it gives in any batch: over cells, R, sizes, dtypes, masks and batchings."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_prlstm import PRLSTMConfig, PRLSTMForTokenClassification, PRLSTMModel

TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 4e-3}


@st.composite
def models(draw):
    cell_type = draw(st.sampled_from(["lstm", "rnn", "gru"]))
    config = PRLSTMConfig(
        vocab_size=draw(st.integers(1, 9)),
        hidden_size=draw(st.integers(1, 20)),
        num_refinements=0 if cell_type == "gru" else draw(st.integers(0, 3)),
        cell_type=cell_type,
        embedding_size=draw(st.none() | st.integers(1, 8)),
    )
    torch.manual_seed(draw(st.integers(0, 2**16)))
    dtype = draw(st.sampled_from(list(TOLERANCES)))
    return PRLSTMForTokenClassification(config).to(dtype).eval()


@st.composite
def batches(draw):
    """Ids below 2**16 and a mask with at least one token in each row, padded anywhere."""
    batch, length = draw(st.integers(1, 5)), draw(st.integers(1, 70))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    ids = torch.randint(2**16, (batch, length), generator=generator)
    kind = draw(st.sampled_from(["none", "right", "left", "scattered"]))
    lengths = torch.randint(1, length + 1, (batch, 1), generator=generator)
    mask = torch.arange(length)[None] < lengths
    if kind == "none":
        return ids, None
    if kind == "left":
        mask = mask.flip(1)
    elif kind == "scattered":
        mask = mask.gather(1, torch.rand(batch, length, generator=generator).argsort(dim=1))
    return ids, mask.long()


@settings(max_examples=80, deadline=None)
@given(model=models(), batch=batches())
def test_a_row_alone_gives_what_it_gives_in_any_batch(model, batch):
    ids, mask = batch
    ids = ids % model.config.vocab_size
    with torch.no_grad():
        together = model(ids, mask).logits
        pooled = model.prlstm(ids, mask, pool_only=True).pooler_output
        tolerance = TOLERANCES[model.dtype]
        for index in range(len(ids)):
            here = slice(None) if mask is None else mask[index] == 1
            alone = ids[index][here][None]
            close = {"rtol": tolerance, "atol": tolerance * max(1.0, together.abs().max().item())}
            torch.testing.assert_close(model(alone).logits[0], together[index][here], **close)
            close["atol"] = tolerance * max(1.0, pooled.abs().max().item())
            torch.testing.assert_close(model.prlstm(alone, pool_only=True).pooler_output[0], pooled[index], **close)


def test_mixed_lengths_to_a_thousand_in_one_batch():
    torch.manual_seed(0)
    model = PRLSTMModel(PRLSTMConfig(hidden_size=8)).double()
    lengths = torch.tensor([1, 1000, 2, 999, 512, 511, 513, 37])
    ids = torch.randint(3, (len(lengths), 1000))
    mask = (torch.arange(1000)[None] < lengths[:, None]).long()
    for side in ("right", "left"):
        moved = (ids, mask) if side == "right" else (ids.flip(1), mask.flip(1))
        with torch.no_grad():
            out = model(*moved)
            for index, length in enumerate(lengths.tolist()):
                alone = moved[0][index][moved[1][index] == 1][None]
                assert alone.shape == (1, length)
                torch.testing.assert_close(out.pooler_output[index], model(alone).pooler_output[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("every_prefix", [True, False])
def test_no_nan_at_length_65536_under_autocast(dtype, every_prefix):
    torch.manual_seed(0)
    model = PRLSTMModel(PRLSTMConfig(hidden_size=8)).train()
    ids = torch.randint(3, (1, 65_536))
    with torch.autocast("cpu", dtype):
        out = model(ids, pool_only=not every_prefix)
    states = out.last_hidden_state if every_prefix else out.pooler_output
    states.float().square().mean().backward()
    assert states.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    with torch.no_grad():
        exact = model(ids, pool_only=True).pooler_output
    torch.testing.assert_close(out.pooler_output.float(), exact, rtol=0, atol=0.05)
