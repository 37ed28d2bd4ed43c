"""The words for events: what counts as a warning is what the registry logs as one."""

import ast
from pathlib import Path

from gpu_agent.wire.api import RegistryEvent
from gpu_agent.wire.event_words import MISSED, WARNINGS, is_warning

REGISTRY = Path(__file__).parents[2] / "agent" / "gpu_agent" / "registry"
BOTH_LEVELS = {"node_checks_changed", "claim_released", "claim_expired", "claim_lost"}


def logged_as_warnings() -> set[str]:
    found = set[str]()
    for path in REGISTRY.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and "Level.WARNING" in [ast.unparse(one) for one in call.args]:
                constants = [one.value for one in call.args if isinstance(one, ast.Constant)]
                found |= {one for one in constants if isinstance(one, str)}
    return found


def test_the_warnings_are_those_that_the_registry_logs_so() -> None:
    assert WARNINGS - {MISSED, "claim_lost"} == logged_as_warnings() - BOTH_LEVELS


def test_failed_checks_are_a_warning_until_none_fails() -> None:
    event = "node_checks_changed"
    assert is_warning(RegistryEvent(1.0, event, fields={"count": 1}))
    assert not is_warning(RegistryEvent(1.0, event, fields={"count": 0}))
