"""An optimizer, a schedule and a log writer from a folder outside of the package: trained with, saved, resumed."""

from __future__ import annotations

import pytest
import yaml

from helpers.tool_runs import command, read_metrics, run, settings

OPTIMIZER = '''
"""RMSProp: Adam without a first moment."""

from dataclasses import dataclass
from typing import Annotated

from megatron_v2pe.foreign.schema import Range
from megatron_v2pe.train.optimizers.settings import OPTIMIZERS, OptimizerSettings


@OPTIMIZERS.register("rmsprop")
@dataclass(frozen=True)
class RmsProp(OptimizerSettings):
    name: str = "rmsprop"
    alpha: Annotated[float, Range(0, 1)] = 0.99

    def megatron_settings(self):
        return {"optimizer": "adam", "adam_beta1": 0.0, "adam_beta2": self.alpha}
'''
SCHEDULE = '''
"""A learning rate that falls in the last steps only."""

from megatron_v2pe.train.optimizers.settings import SCHEDULES


@SCHEDULES.register("late")
def late(settings, train_steps):
    return {"lr_decay_style": "WSD", "wsd_decay_steps": 2, "lr_wsd_decay_style": "linear"}
'''
WRITER = '''
"""A line of text for each step."""

from megatron_v2pe.train.writers import WRITERS, MetricsWriter


@WRITERS.register("lines")
class Lines(MetricsWriter):
    def __init__(self, place):
        self.file = (place.folder / "lines.txt").open("a")

    def write(self, step):
        self.file.write(f"{step.iteration} {step.row['lr']}\\n")

    def close(self):
        self.file.close()
'''


@pytest.mark.slow
def test_what_a_folder_adds_is_trained_with_and_resumed(tiny, tmp_path, monkeypatch):
    folder, save = tmp_path / "my_training", tmp_path / "run"
    folder.mkdir()
    for name, text in {"__init__": "", "optimizer": OPTIMIZER, "schedule": SCHEDULE, "writer": WRITER}.items():
        (folder / f"{name}.py").write_text(text)
    changes = {"train__train_steps": 4, "optimizer__name": "rmsprop", "optimizer__lr_decay_style": "late"}
    changes |= {"optimizer__alpha": 0.9, "optimizer__warmup_ratio": 0.0, "logging__writers": "lines"}
    words = settings(tiny, save, **changes)
    refused = run(command("tools/train.py", *words, processes=2), tmp_path / "refused.log")
    assert refused.status == 2 and "is 'rmsprop', expected one of adamw" in refused.output

    monkeypatch.setenv("MEGATRON_V2PE_PLUGINS", str(folder))
    for more in (["train.exit_step=2"], []):
        finished = run(command("tools/train.py", *words, *more, processes=2), tmp_path / "run.log")
        assert finished.status == 0, finished.output[-4000:]
    rates = {row["iteration"]: row["lr"] for row in read_metrics(save)}
    assert list(rates) == [1, 2, 3, 4] and rates[1] == rates[2] == rates[3] > rates[4] > 0
    assert [line.split()[0] for line in (save / "logs" / "lines.txt").read_text().splitlines()] == ["1", "2", "3", "4"]
    saved = yaml.safe_load((save / "iter_0000004" / "config.yaml").read_text())
    assert saved["optimizer"]["name"] == "rmsprop" and saved["optimizer"]["alpha"] == 0.9
    assert "adam_beta1" not in saved["optimizer"]
