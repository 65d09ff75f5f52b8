"""The learning rate of every step: equal to the schedules of transformers of the same shape."""

from __future__ import annotations

import pytest
import torch

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.recipes.registry import RECIPES
from megatron_v2pe.train import cli
from megatron_v2pe.train.config import AdamWConfig
from megatron_v2pe.train.optimizer_step import build_scheduler
from megatron_v2pe.train.optimizers.schedules import WSD_DECAY_RATIO

STEPS, PEAK = 50, 3e-4


class Groups:
    """What a scheduler asks of an optimizer."""

    def __init__(self, *groups):
        self.param_groups = [{"lr": 0.0, "weight_decay": 0.0, **group} for group in groups or ({},)]


def ours(settings, steps=STEPS):
    optimizer, found = Groups(), []
    scheduler = build_scheduler(optimizer, settings, steps)
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        scheduler.step(increment=1)
    return found


def theirs(name, warmup, steps=STEPS, **arguments):
    transformers = pytest.importorskip("transformers", reason="the hf extra is not installed")
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    made = transformers.get_scheduler(
        name, optimizer, num_warmup_steps=warmup, num_training_steps=steps, scheduler_specific_kwargs=arguments
    )
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        made.step()
    return found


@pytest.mark.parametrize(
    ("words", "name", "warmup", "arguments"),
    [
        (("cosine", "--warmup_steps", "7"), "cosine", 7, {}),
        (("linear", "--warmup_ratio", "0.11"), "linear", 6, {}),
        (("constant_with_warmup", "--warmup_steps", "4"), "constant_with_warmup", 4, {}),
        (("constant", "--warmup_steps", "4"), "constant", 0, {}),
        (("inverse_sqrt", "--warmup_steps", "5"), "inverse_sqrt", 5, {}),
        *(
            (
                ("warmup_stable_decay", "--warmup_steps", "5", "--lr_scheduler_kwargs", kwargs),
                "warmup_stable_decay",
                5,
                {"num_decay_steps": 13, "decay_type": kind},
            )
            for kind, kwargs in {
                "cosine": '{"num_decay_steps": 13}',
                "linear": '{"num_decay_steps": 13, "decay_type": "linear"}',
                "1-sqrt": '{"num_decay_steps": 13, "decay_type": "1-sqrt"}',
            }.items()
        ),
    ],
)
def test_every_step_has_the_rate_of_transformers(words, name, warmup, arguments):
    """Measured: 2e-16 relative at most (float64 in another order), 1e-20 where the rate reaches 0."""
    settings = cli.parse(["--learning_rate", str(PEAK), "--lr_scheduler_type", *words], RECIPES).optimizer
    settings.validate()
    found, expected = ours(settings), theirs(name, warmup, **arguments)
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-18)
    assert max(found) == pytest.approx(PEAK) and (name == "constant" or min(found) < 0.5 * PEAK)


def test_the_last_tenth_of_a_run_falls_by_default():
    found = ours(AdamWConfig(lr=1.0, warmup_ratio=0.0, lr_decay_style="wsd"), 100)
    begin = round(100 * (1 - WSD_DECAY_RATIO))
    assert found[: begin + 1] == [1.0] * (begin + 1) and 1 > found[begin + 1] > found[-1] > 0
    steps = AdamWConfig(lr=1.0, warmup_ratio=0.0, lr_decay_style="wsd", wsd_decay_ratio=0.5)
    assert ours(steps, 100)[50] == 1.0 > ours(steps, 100)[51]
    low = AdamWConfig(lr=1.0, min_lr=0.25, warmup_ratio=0.0, lr_decay_style="wsd", wsd_decay_style="linear")
    assert ours(low, 100)[99] == pytest.approx(0.25 + 0.75 / 10)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ("--optimizer.warmup-steps=5", "--optimizer.warmup-ratio=0.1"),
            "warmup_steps is 5 and .*warmup_ratio 0.1: give",
        ),
        (("--optimizer.wsd-decay-steps=5",), "wsd_decay_steps is 5, but optimizer.lr_decay_style is cosine.*set it to"),
        (
            ("--optimizer.lr-decay-style=wsd", "--optimizer.wsd-decay-steps=5", "--optimizer.wsd-decay-ratio=0.5"),
            "wsd_decay_steps is 5 and optimizer.wsd_decay_ratio 0.5: give one",
        ),
        (
            ("--optimizer.lr-decay-style=wsd", "--optimizer.wsd-decay-steps=5", "--train.train-steps=4"),
            "and 5 in which the rate falls are more than the 4 steps",
        ),
        (("--freeze_backbone", "--optimizer.vision-lr=1e-5"), "vision_lr is 1e-05, but nothing of vision_model learns"),
        (("--optimizer.warmup-steps=-1",), "warmup_steps is -1, expected"),
        (("--warmup_steps", "5", "--warmup_ratio", "0.1"), "--warmup_steps 5 and --warmup_ratio 0.1 both say"),
        (("--lr_scheduler_type", "polynomial"), "--lr_scheduler_type polynomial is refused: known here are cosine"),
        (("--lr_scheduler_kwargs", '{"power": 2}'), "is refused: expected a JSON object with num_decay_steps and"),
        (("--lr_scheduler_kwargs", "[1]"), "is refused: expected a JSON object"),
        (
            ("--lr_scheduler_kwargs", '{"decay_type": "square"}'),
            "decay_type is square, expected cosine, linear, 1-sqrt",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(words, says):
    with pytest.raises(ConfigError, match=says):
        cli.parse([*words, "--model.model-name-or-path=m", "--data.meta-path=d"], RECIPES).validate()


def test_a_schedule_that_does_not_fit_the_run_is_refused():
    long = AdamWConfig(lr_decay_style="wsd", warmup_steps=60, wsd_decay_steps=60)
    with pytest.raises(ConfigError, match="60 steps of warm-up and 60 in which the rate falls are more than the 100"):
        build_scheduler(Groups(), long, 100)
    with pytest.raises(ConfigError, match="inverse-square-root counts in units of the warm-up, and there is none"):
        build_scheduler(Groups(), AdamWConfig(lr_decay_style="inverse-square-root", warmup_ratio=0.0), 100)
