import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gpu_agent.wire.schema import NAMES, schema_of

ROOT = Path(__file__).parent.parent.parent
GOLDEN = ROOT / "tests" / "golden"


@pytest.mark.parametrize("name", NAMES)
def test_the_published_schema_is_the_models_schema(name: str) -> None:
    published = json.loads((ROOT / "docs" / "reference" / "schema" / f"{name}.json").read_text())
    assert published == schema_of(name), "run `make schema` and review the difference"


@pytest.mark.parametrize("name", NAMES)
def test_each_schema_is_a_schema(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schema_of(name))


@pytest.mark.parametrize(
    ("golden", "name"),
    [
        ("node_register_1_0", "node_register"),
        ("node_register_1_1", "from_node"),
        ("node_heartbeat", "node_heartbeat"),
        ("node_register_ack", "from_registry"),
        ("older_node_register", "node_register"),
        ("older_node_heartbeat", "node_heartbeat"),
        ("older_scheduler_conflict", "node_error"),
    ],
)
def test_released_messages_fit_the_schema(golden: str, name: str) -> None:
    jsonschema.validate(json.loads((GOLDEN / f"{golden}.json").read_bytes()), schema_of(name))


@pytest.mark.parametrize("wrong", [{}, {"type": "node_register"}, {"type": "node_register", "version": 1}])
def test_malformed_messages_do_not_fit(wrong: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema_of("node_register"))
