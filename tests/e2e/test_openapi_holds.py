"""Random requests against a real registry find no answer that its OpenAPI document does not promise."""

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.programs import COMMAND, Agent, Registry
from tests.waiting import patience

pytestmark = pytest.mark.e2e

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
ENDLESS = "/v1/events"
"""A stream that never ends; its tests are its own."""

CONFIGURATION = """
[[operations]]
include-path-regex = "^/v1/(claims|dispatch/select|dispatch/explain)$"
[operations.checks.positive_data_acceptance]
expected-statuses = ["2xx", 401, 403, 404, 409, 422, "5xx"]
"""
"""All names of a job together have a limit in bytes, which JSON Schema cannot state: 422 is right there."""


@pytest.mark.timeout(300)
def test_schemathesis_finds_nothing_with_all_its_checks(tmp_path: Path) -> None:
    state = tmp_path / "registry"
    with ExitStack() as running:
        registry = running.enter_context(
            Registry(
                *("--state-dir", str(state), "--store", f"sqlite://{tmp_path}/registry.db"),
                "--allow-simulated",
                auth="on",
            )
        )
        token = (state / "operator.token").read_text().strip()
        join = tmp_path / "join.token"
        making = [*COMMAND, "registry", "token", "create", "--server", registry.api, "--out", str(join)]
        subprocess.run(
            [*making, "--token-file", str(state / "operator.token")], check=True, timeout=patience(20)
        )
        running.enter_context(Agent(registry.node_url, tmp_path / "agent", "--join-token-file", str(join)))
        registry.await_event("node_registered")
        (tmp_path / "schemathesis.toml").write_text(CONFIGURATION, encoding="utf-8")
        command = [
            *(str(SCHEMATHESIS), "run", f"{registry.api}/openapi.json", "--checks", "all"),
            *("--header", f"Authorization: Bearer {token}", "--exclude-path", ENDLESS),
            *("--phases", "examples,coverage,fuzzing,stateful", "--max-examples", "10"),
            *("--seed", "20261124", "--no-color", "--max-time", "40"),
        ]
        found = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=240, cwd=tmp_path
        )
        assert found.returncode == 0, found.stdout[:3000] + found.stdout[-4000:]
        assert registry.ended is False
        assert [line for line in registry.lines if line["level"] == "error"] == []
