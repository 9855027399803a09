"""The authors' weights, states and gradients (tests/fixtures), and the plainest possible recursion to compare with."""

import importlib.util
import json
from pathlib import Path

import torch
from safetensors import safe_open

from modeling_prlstm import PRLSTMConfig, PRLSTMForSequenceClassification, PRLSTMForTokenClassification
from modeling_prlstm.cells import CELLS

HAS_TRITON = importlib.util.find_spec("triton") is not None

FIXTURE = Path(__file__).parent.parent / "fixtures" / "reference_model.safetensors"

VARIANTS = ("lstm.r0", "lstm.r1", "lstm.r2", "rnn.r0", "rnn.r1", "rnn.r2", "gru.r0")


class Reference:
    """One model of the fixture: `tensors` by their names without the variant, `meta` with sizes and losses."""

    def __init__(self, variant):
        with safe_open(FIXTURE, "pt") as file:
            self.meta = json.loads(file.metadata()["meta"])[variant]
            prefix = variant + "."
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 (not a mapping)
            self.tensors = {name.removeprefix(prefix): file.get_tensor(name) for name in names}
        cell_type, refinements = variant.split(".r")
        self.config = PRLSTMConfig(
            vocab_size=self.meta["vocab"],
            hidden_size=self.meta["hidden_size"],
            num_labels=self.meta["num_labels"],
            cell_type=cell_type,
            num_refinements=int(refinements),
        )

    def named(self, kind):
        """The fixture's tensors of one kind ("param", "grad_all" or "grad_last") under our parameters' names."""
        tensors = {name.removeprefix(kind + "."): t for name, t in self.tensors.items() if name.startswith(kind + ".")}
        if "binary.w_i" in tensors:
            tensors["binary.weight"] = torch.cat((tensors.pop("binary.w_i"), tensors.pop("binary.w_h")), dim=1)
        return {_our_name(name): tensor for name, tensor in tensors.items()}

    def load(self, model_class):
        model = model_class(self.config)
        model.load_state_dict(self.named("param"))
        return model

    def token_classifier(self):
        return self.load(PRLSTMForTokenClassification)

    def sequence_classifier(self):
        return self.load(PRLSTMForSequenceClassification)


def _our_name(name):
    part, rest = name.split(".", 1)
    return {
        "leaf": f"prlstm.composer.leaf.{rest}",
        "binary": f"prlstm.composer.merge.binary.{rest}",
        "refine": f"prlstm.composer.merge.refine.{rest}",
        "head": f"classifier.{rest}",
    }[part]


def fold_by_recursion(composer, leaves, length):
    """The state of the first `length` leaves of one row, merged one pair at a time: blocks, then folds."""

    def merge(left, right):
        return composer.merge(*(torch.stack(pair) for pair in zip(left, right, strict=True)))

    def block(start, size):
        if size == 1:
            return tuple(part[start] for part in leaves)
        half = size // 2
        return merge(block(start, half), block(start + half, half))

    state, start = None, 0
    while start < length:
        size = 1 << ((length - start).bit_length() - 1)
        here = block(start, size)
        state = here if state is None else merge(state, here)
        start += size
    return state


def small_config(cell_type="lstm", **kwargs):
    """A config of odd sizes, small enough to loop over."""
    refinements = 0 if CELLS[cell_type].refine is None else 1
    return PRLSTMConfig(
        **{
            "vocab_size": 5,
            "hidden_size": 6,
            "num_labels": 3,
            "cell_type": cell_type,
            "num_refinements": refinements,
        }
        | kwargs
    )


def relative_error(actual, expected):
    """Largest difference over the largest expected value."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()
