import json

import pytest

from gpu_agent.cli.main import main
from tests.cli.stand_in import standing_in

LISTED = {
    "thresholds": [
        {
            "name": "claim_ttl_seconds",
            "value": 600.0,
            "unit": "seconds",
            "default": 60.0,
            "meaning": "how long a claim lives",
        },
        {
            "name": "max_offline_bytes",
            "value": 268435456.0,
            "unit": "bytes",
            "default": 268435456.0,
            "meaning": "what records take",
        },
        {
            "name": "queue_limit",
            "value": 1234567.0,
            "unit": "jobs",
            "default": 1234567.0,
            "meaning": "may wait",
        },
        {"name": "required_models", "value": [], "unit": "models", "default": [], "meaning": "must be ready"},
    ]
}


def test_what_is_in_force_is_shown_and_what_is_not_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    with standing_in({"GET /v1/thresholds": LISTED}) as registry:
        assert main(["registry", "settings", "--server", registry.api]) == 0
        assert capsys.readouterr().out == (
            "THRESHOLD            VALUE  UNIT     MEANING\n"
            "claim_ttl_seconds      600  seconds  how long a claim lives (default 60)\n"
            "max_offline_bytes      256  MiB      what records take\n"
            "queue_limit        1234567  jobs     may wait\n"
            "required_models       none  models   must be ready\n"
        )
        assert main(["registry", "settings", "--json", "--server", registry.api]) == 0
        assert json.loads(capsys.readouterr().out) == LISTED
