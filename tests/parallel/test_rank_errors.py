"""An error of one rank is raised on all, and stays of its class."""

from __future__ import annotations

import pytest

from helpers import rank_problems

KINDS = ("ConfigError", "DataError", "CheckpointError", "SpaceError", "LayoutError", "MemoryShortageError")


def seen(pools, kind, failing, how="raise_on_all_ranks"):
    return pools[2].run(rank_problems.seen, kind=kind, failing=failing, how=how)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_keeps_its_class_on_every_rank(pools, kind):
    assert seen(pools, kind, [1]) == [(kind, "of rank 1")] * 2
    assert seen(pools, kind, [0, 1]) == [(kind, "of rank 0")] * 2


@pytest.mark.parametrize("how", ["run_on_first_rank", "share_from_first_rank"])
def test_what_the_first_rank_meets_is_raised_on_every_rank(pools, how):
    assert seen(pools, "DataError", [0], how) == [("DataError", "of rank 0")] * 2


def test_a_full_disk_is_told_with_its_file_on_every_rank(pools):
    for kind, text in seen(pools, "OSError", [1]):
        assert kind == "SpaceError" and text.startswith("/here/file: No space left on device; ")


def test_results(pools):
    assert seen(pools, "DataError", []) == [("result", "0"), ("result", "1")]
    assert seen(pools, "DataError", [], "run_on_first_rank") == [("result", "0"), ("result", "None")]
    assert seen(pools, "DataError", [], "share_from_first_rank") == [("result", "0")] * 2
