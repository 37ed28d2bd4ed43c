"""`docs/reference/logs.md` explains every event that the source can log, and none besides."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "agent" / "gpu_agent"
PAGE = ROOT / "docs" / "reference" / "logs.md"
COMPONENTS = {"The registry": ("registry", "server"), "The agent": ("node", "session"), "Both": ("runtime",)}
LEVELS = ("debug", "info", "warning", "error", "crash")


def constants() -> dict[str, set[str]]:
    """The texts that modules give names to."""
    found: dict[str, set[str]] = {}
    for path in SOURCE.rglob("*.py"):
        for one in ast.parse(path.read_text(encoding="utf-8")).body:
            match one:
                case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str(text))):
                    found.setdefault(name, set()).add(text)
                case _:
                    pass
    return found


CONSTANTS = constants()


def named(argument: ast.expr, function: ast.AST) -> set[str]:
    """The identifiers that an argument may be: a text, a choice of texts, or a name that holds one."""
    match argument:
        case ast.Constant(value=str(text)):
            return {text}
        case ast.IfExp(body=body, orelse=orelse):
            return named(body, function) | named(orelse, function)
        case ast.Name(id=name):
            values = [
                one.value
                for one in ast.walk(function)
                if isinstance(one, ast.Assign) and any(ast.unparse(target) == name for target in one.targets)
            ]
            return set().union(*(named(value, function) for value in values)) or CONSTANTS.get(name, set())
        case _:
            return set()


def emitted(path: Path) -> dict[str, set[str]]:
    """The events that a module logs or asks to be logged, each with the levels that stand in the call."""
    found: dict[str, set[str]] = {}
    for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for call in ast.walk(function):
            if isinstance(call, ast.Call) and call.args and _logs(call.func):
                for event in named(call.args[0], function):
                    found.setdefault(event, set()).update(_levels(call))
    return found


def emitted_by(heading: str) -> dict[str, set[str]]:
    """The events of a component."""
    found: dict[str, set[str]] = {}
    for path in (path for floor in COMPONENTS[heading] for path in (SOURCE / floor).rglob("*.py")):
        for event, levels in emitted(path).items():
            found.setdefault(event, set()).update(levels)
    return found


def _levels(call: ast.Call) -> set[str]:
    method = ast.unparse(call.func).rpartition(".")[2]
    if method in LEVELS:
        return {"error" if method == "crash" else method}
    return {found.lower() for found in re.findall(r"\bLevel\.([A-Z]+)", ast.unparse(call))}


def _logs(called: ast.expr) -> bool:
    match called:
        case ast.Attribute(value=ast.Name(id=name), attr=attribute) if name.endswith("_LOG"):
            return attribute in LEVELS
        case ast.Attribute(attr=attribute):
            return attribute in ("log", "note", "log_violation", "violation", "_emit")
        case ast.Name(id="LogEvent"):
            return True
        case _:
            return False


def explained(heading: str) -> dict[str, str]:
    """The rows under a heading of the page: what stands for each event."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return {
        match[1]: match[2] for match in re.finditer(r"^\| `([a-z0-9_]+)` \|(.*)\|$", section, re.MULTILINE)
    }


@pytest.mark.parametrize("heading", COMPONENTS)
def test_every_event_of_the_source_is_explained_and_no_other(heading: str) -> None:
    assert set(explained(heading)) == set(emitted_by(heading))


@pytest.mark.parametrize("heading", COMPONENTS)
def test_the_level_of_every_event_is_one_that_the_source_logs_it_at(heading: str) -> None:
    levels = emitted_by(heading)
    for event, row in explained(heading).items():
        level = row.split("|")[0].strip()
        assert level in (levels[event] or {level}), event


@pytest.mark.parametrize("heading", COMPONENTS)
def test_every_explanation_says_level_fields_and_meaning(heading: str) -> None:
    for event, row in explained(heading).items():
        cells = [cell.strip() for cell in row.split("|")]
        assert len(cells) == 3, event
        assert cells[0] in ("debug", "info", "warning", "error"), event
        assert len(cells[2]) > 15, event


def test_the_events_of_the_protocol_are_all_there() -> None:
    protocol = (
        "node_register_received node_registered node_register_refused health_check node_status_changed "
        "heartbeat_timeout dispatch_candidate_excluded job_assigned dispatch_failed claim_lost performance"
    )
    assert set(protocol.split()) <= set(explained("The registry"))
