"""Weightings of the loss: the formulas, and one from a plugin folder with a new name and no line of ours."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import pytest
import torch

from megatron_v2pe.data.batch import loss_weights
from megatron_v2pe.data.config import DataConfig
from megatron_v2pe.data.loss_weights import LOSS_REDUCTIONS, DocumentNumbers
from megatron_v2pe.errors import ConfigError

PLUGIN = '''"""Documents count by the logarithm of their length."""
import math

from megatron_v2pe.data.loss_weights import LOSS_REDUCTIONS, DocumentNumbers


@LOSS_REDUCTIONS.register("log")
def by_logarithm(document: DocumentNumbers) -> float:
    """Return log(1 + tokens) / x."""
    return math.log1p(document.tokens) / document.supervised
'''


@pytest.fixture
def logarithm(tmp_path, monkeypatch):
    """A plugin folder with one weighting; gone afterwards."""
    folder = tmp_path / "plugin_of_weights"
    folder.mkdir()
    (folder / "__init__.py").write_text('"""A weighting of the loss."""\n')
    (folder / "loss_weights.py").write_text(PLUGIN)
    monkeypatch.setenv("MEGATRON_V2PE_PLUGINS", str(folder))
    monkeypatch.setattr(LOSS_REDUCTIONS, "_members", dict(LOSS_REDUCTIONS._members))
    monkeypatch.setattr(LOSS_REDUCTIONS, "_loaded", None)
    yield
    for name in [name for name in sys.modules if name.startswith("plugin_of_weights")]:
        del sys.modules[name]


@pytest.mark.parametrize(("name", "power"), [("token", 1.0), ("sample", 0.0), ("square", 0.5)])
@pytest.mark.parametrize("supervised", [1, 2, 3, 1000, 99_991])
def test_a_document_of_x_tokens_weighs_a_power_of_x(name, power, supervised):
    weight = LOSS_REDUCTIONS.get(name)(DocumentNumbers(supervised, 2 * supervised))
    assert supervised * weight == pytest.approx(supervised**power, rel=1e-15)


def test_a_plugin_adds_a_value_of_the_setting(logarithm):
    settings = replace(DataConfig(meta_path="list.json"), loss_reduction="log")
    settings.validate()
    labels = torch.tensor([-100, -100, 7, 8])
    assert loss_weights(labels, "log").tolist() == pytest.approx([0, 0, math.log(5) / 2, math.log(5) / 2], rel=1e-6)


def test_an_unknown_value_names_those_there_are():
    with pytest.raises(ConfigError, match="data.loss_reduction is 'log', expected one of token, sample, square"):
        replace(DataConfig(meta_path="list.json"), loss_reduction="log").validate()
