"""`pytest tests/scenarios --record` writes the transcripts anew, to be reviewed as prose."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help="write the scenarios' transcripts anew")
