import json

import pytest

from gpu_agent.cli.child import CALLER_VARIABLES, caller_environment


def test_without_a_launcher_everything_stays() -> None:
    environ = {"PATH": "/bin", "PYTHONPATH": "/srv/mine"}
    assert caller_environment(environ) == environ


def test_what_the_launcher_set_goes_and_what_it_stored_comes_back() -> None:
    changed = {
        "PATH": "/bin",
        "PYTHONPATH": "/usr/lib/gpu-agent/lib",
        "PYTHONSAFEPATH": "1",
        CALLER_VARIABLES: json.dumps({"PYTHONPATH": "/srv/mine", "PYTHONUNBUFFERED": "1"}),
    }
    own = {"PATH": "/bin", "PYTHONPATH": "/srv/mine", "PYTHONUNBUFFERED": "1"}
    assert caller_environment(changed) == own


@pytest.mark.parametrize("stored", ["", "[]", "{", '{"PATH": "/x"}', '{"PYTHONPATH": 1}', "[" * 100_000])
def test_what_the_launcher_cannot_have_stored_does_not_count(stored: str) -> None:
    assert caller_environment({"PATH": "/bin", "PYTHONSAFEPATH": "1", CALLER_VARIABLES: stored}) == {
        "PATH": "/bin"
    }
