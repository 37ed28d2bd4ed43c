import subprocess
import sys

import pytest

from tests.programs import Registry

ASKED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, {hard}))
from gpu_agent.server.open_files import connections_for
print(connections_for({wanted}), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def asked(*, hard: int, wanted: int) -> tuple[int, int]:
    said = subprocess.run(
        [sys.executable, "-c", ASKED.format(hard=hard, wanted=wanted)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    room, files = said.split()
    return int(room), int(files)


def test_the_limit_is_raised_as_far_as_it_goes_and_some_files_are_kept_back() -> None:
    assert asked(hard=4096, wanted=16384) == (4096 - 512, 4096)
    assert asked(hard=4096, wanted=1000) == (1000, 4096)


def test_there_is_always_room_for_somebody() -> None:
    assert asked(hard=128, wanted=1000) == (1, 128)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such limit")
def test_a_registry_that_may_not_have_its_connections_says_so() -> None:
    with Registry(environment={"GPU_REGISTRY_MAX_CONNECTIONS": "1000000"}) as registry:
        limited = registry.await_event("connections_limited")
    assert limited["wanted"] == 1_000_000
    assert limited["max_connections"] < 1_000_000
