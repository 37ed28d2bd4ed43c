"""`pytest tests/scenarios --record` records the transcripts again, to be reviewed as prose."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help="record the scenarios' transcripts again")
