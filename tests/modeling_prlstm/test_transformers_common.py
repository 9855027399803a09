"""transformers' own tests of what every model must survive, from its source distribution (`make test-common`).

TRANSFORMERS_SOURCE names the unpacked source distribution; without it there is nothing to collect here.
"""

import importlib.util
import os
import sys
import types
import unittest
from pathlib import Path

import pytest
from transformers.models.auto import modeling_auto

from modeling_prlstm import (
    PRLSTMConfig,
    PRLSTMForSequenceClassification,
    PRLSTMForTokenClassification,
    PRLSTMModel,
)

SOURCE = os.environ.get("TRANSFORMERS_SOURCE")
pytestmark = pytest.mark.filterwarnings("default")  # theirs are not ours to mend


def _common_module(name):
    """A module of transformers' tests, under a package name that is not that of our own tests."""
    package = "transformers_tests"
    if package not in sys.modules:
        folder = Path(SOURCE, "tests")
        sys.modules[package] = types.ModuleType(package)
        sys.modules[package].__path__ = [str(folder)]
        # The source distribution has the top level of the tests alone. What is left out tests exporters, generation
        # and the values that a configuration shares with all others.
        for left_out, content in {
            "utils.test_configuration_utils": {"config_common_kwargs": {}},
            "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
            "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
        }.items():
            parent = f"{package}.{left_out.split('.')[0]}"
            sys.modules.setdefault(parent, types.ModuleType(parent))
            sys.modules[f"{package}.{left_out}"] = module = types.ModuleType(left_out)
            vars(module).update(content)
    return importlib.import_module(f"{package}.{name}")


if SOURCE:
    common = _common_module("test_modeling_common")
    configuration = _common_module("test_configuration_common")
    # A model inside transformers stands in these tables, by which the tests know what labels a class takes.
    for table, model_class in (
        ("MODEL_MAPPING_NAMES", PRLSTMModel),
        ("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES", PRLSTMForSequenceClassification),
        ("MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES", PRLSTMForTokenClassification),
    ):
        getattr(modeling_auto, table)["prlstm"] = model_class.__name__

    class ModelTester:
        """The sizes and inputs that the tests ask for."""

        batch_size, seq_length, hidden_size, num_hidden_layers, num_labels, is_training = 13, 7, 32, 1, 3, True
        backend = "auto"

        def get_config(self):
            sizes = {"vocab_size": 99, "hidden_size": self.hidden_size, "embedding_size": 24, "num_labels": 3}
            return PRLSTMConfig(**sizes, backend=self.backend)

        def prepare_config_and_inputs_for_common(self):
            shape = [self.batch_size, self.seq_length]
            inputs = {
                "input_ids": common.ids_tensor(shape, 99),
                "attention_mask": common.random_attention_mask(shape),
            }
            return self.get_config(), inputs

    class TestTransformersCommon(common.ModelTesterMixin, unittest.TestCase):
        """Every common test; those that don't apply say so themselves."""

        all_model_classes = (PRLSTMModel, PRLSTMForSequenceClassification, PRLSTMForTokenClassification)
        has_attentions = False

        def setUp(self):
            self.model_tester = ModelTester()

        def test_config(self):
            properties = ["hidden_size", "vocab_size"]
            tester = configuration.ConfigTester(self, config_class=PRLSTMConfig, common_properties=properties)
            tester.run_common_tests()

        def check_training_gradient_checkpointing(self, *args, **kwargs):
            """Theirs counts the calls to transformers' checkpoint function, which the plain tree alone makes.

            The fused trees recompute in a backward of their own; test_kernels.py compares them.
            """
            self.model_tester.backend = "eager"
            super().check_training_gradient_checkpointing(*args, **kwargs)

        def test_retain_grad_hidden_states_attentions(self):
            """Theirs, without padding and in the plain tree: elsewhere the leaves' states returned are copies."""
            self.model_tester.backend = "eager"
            config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
            model = PRLSTMModel(config).train()
            out = model(inputs["input_ids"], output_hidden_states=True)
            for states in out.hidden_states:
                states.retain_grad()
            out.pooler_output.sum().backward()
            assert all(states.grad is not None for states in out.hidden_states)
