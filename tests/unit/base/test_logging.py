"""What other libraries log and ask nothing of a user is not shown; everything else they log is."""

from __future__ import annotations

import logging

import pytest

from megatron_v2pe.base.logging import EXPECTED_MESSAGES, quiet_expected_warnings


@pytest.mark.parametrize(("name", "beginning"), EXPECTED_MESSAGES)
def test_expected_messages_alone_are_left_out(name, beginning, caplog):
    logger = logging.getLogger(name)
    before = list(logger.filters)
    try:
        quiet_expected_warnings()
        logger.warning("%s and more", beginning)
        logger.warning("something else: %s", beginning)
        logger.error("an error")
        logging.getLogger("megatron.core").warning("%s elsewhere", beginning)
    finally:
        logger.filters[:] = before
    shown = [record.getMessage() for record in caplog.records]
    assert shown == [f"something else: {beginning}", "an error", f"{beginning} elsewhere"]
