from typing import Any

import jsonschema
import pytest

from gpu_agent.cli.doctor.schema import schema
from gpu_agent.cli.doctor.shown import document
from gpu_agent.runtime.findings import fail, ok, skipped, warn

ALL = document([ok("DNS", "a"), warn("clock", "b", "c"), fail("TCP", "d", "e"), skipped("TLS", "f")])


def test_every_verdict_is_in_the_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(ALL, schema())


@pytest.mark.parametrize(
    "wrong",
    [
        {"schema": "gpu-agent.doctor/2"},
        {"ok": None},
        {"checks": [{"check": "DNS", "verdict": "maybe", "detail": "", "mend": None}]},
        {"checks": [{"check": "DNS"}]},
    ],
)
def test_another_document_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**ALL, **wrong}, schema())
