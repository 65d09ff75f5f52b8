"""A start that is refused leaves no folder and no file of its own, and takes nothing that was there before it."""

from __future__ import annotations

import pytest

from megatron_v2pe.errors import CommunicationError, ConfigError, InUseError
from megatron_v2pe.train.new_places import NewPlaces


def start(run, error=None, keeps=False):
    """Make what a start makes, and end it."""
    made = NewPlaces((run, run / "logs"), (run / "logs" / "train.log",))
    with made.removed_if_refused():
        (run / "logs").mkdir(parents=True, exist_ok=True)
        with (run / "logs" / "train.log").open("a") as log:
            log.write("refused")
        if keeps:
            made.keep()
        if error is not None:
            raise error


def test_a_refusal_takes_back_what_this_start_has_made(tmp_path):
    run = tmp_path / "runs" / "first"
    with pytest.raises(ConfigError):
        start(run, ConfigError("no"))
    assert not list(tmp_path.iterdir())
    (tmp_path / "runs").mkdir()
    with pytest.raises(OSError):
        start(run, OSError("full"))
    assert list(tmp_path.iterdir()) == [tmp_path / "runs"] and not list((tmp_path / "runs").iterdir())


def test_what_was_there_stays_and_so_does_all_of_a_run_that_has_begun(tmp_path):
    (tmp_path / "old" / "logs").mkdir(parents=True)
    (tmp_path / "old" / "logs" / "train.log").write_text("trained, ")
    with pytest.raises(ConfigError):
        start(tmp_path / "old", ConfigError("no"))
    assert (tmp_path / "old" / "logs" / "train.log").read_text() == "trained, refused"
    for name, error, keeps in (("begun", ConfigError("no"), True), ("broken", AssertionError("ours"), False)):
        with pytest.raises(type(error)):
            start(tmp_path / name, error, keeps)
        assert (tmp_path / name / "logs" / "train.log").read_text() == "refused"


@pytest.mark.parametrize("error", [InUseError("held"), CommunicationError("rank 1 is gone")])
def test_what_another_run_has_made_meanwhile_stays_and_what_says_why_ranks_ended(tmp_path, error):
    with pytest.raises(type(error)):
        start(tmp_path / "run", error)
    assert (tmp_path / "run" / "logs" / "train.log").read_text() == "refused"
