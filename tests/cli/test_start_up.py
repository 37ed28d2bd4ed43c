"""What a command loads before it works: only what it needs, so that help and short commands stay quick."""

import subprocess
import sys

import pytest

_LIST = """\
import sys
from gpu_agent.cli.main import main
try:
    main(sys.argv[1:])
finally:
    print("LOADED", *sys.modules)
"""


def loaded(*words: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", _LIST, *words], capture_output=True, text=True, check=False, timeout=60
    )
    return set(done.stdout.rpartition("LOADED ")[2].split())


@pytest.mark.parametrize(
    "words",
    [
        "status",
        "refresh",
        "why",
        "drain",
        "resume",
        "job run",
        "job list",
        "registry nodes",
        "registry node",
        "registry why",
        "registry drain",
        "registry forget",
    ],
)
def test_a_help_page_loads_no_pydantic(words: str) -> None:
    assert "pydantic" not in loaded(*words.split(), "--help")


def test_status_loads_no_model_that_it_does_not_need() -> None:
    modules = loaded("status", "--json", "--socket", "/nowhere/agent.sock")
    assert "gpu_agent.wire.control" in modules
    unneeded = {
        "gpu_agent.wire.api",
        "gpu_agent.wire.messages",
        "gpu_agent.session.types",
        "gpu_agent.probe.snapshot",
        "rich",
    }
    assert not modules & unneeded
