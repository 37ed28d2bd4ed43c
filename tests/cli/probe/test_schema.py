import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gpu_agent.cli.app import main
from gpu_agent.cli.probe.schema import schema
from tests.nvml_fake.control import FakeNvml

BROKEN_INIT: list[tuple[object, ...]] = [
    ("error", call, "*", "DRIVER_NOT_LOADED") for call in ("nvmlInit_v2", "nvmlInitWithFlags")
]
MACHINES: dict[str, tuple[int, list[tuple[object, ...]]]] = {
    "eight well": (8, []),
    "none": (0, []),
    "no kernel module": (8, BROKEN_INIT),
    "one lost": (8, [("error", "nvmlDeviceGetTemperature", 3, "GPU_IS_LOST")]),
    "all lost": (2, [("error", "nvmlDeviceGetTemperature", "*", "GPU_IS_LOST")]),
    "a driver that tells nothing": (2, [("error", "*", "0", "NOT_SUPPORTED")]),
    "in use": (2, [("process", 0, 4711, 1 << 30)]),
    "worn out": (
        2,
        [("remapped_rows", 0, "0 3 1 1"), ("retired_pages_pending", 1, 1), ("ecc_uncorrected", 1, 9)],
    ),
    "slowed": (1, [("clocks_event_reasons", 0, 0x48)]),
    "with a wrong name": (1, [("name", 0, "evil \x1b[2J \udcff card")]),
    "a library that dies": (1, [("crash", "nvmlDeviceGetCount_v2", "*")]),
    "sliced": (1, [("mig", 0, 1)]),
}


@pytest.fixture(autouse=True)
def own_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def strict(part: Any) -> Any:  # noqa: ANN401 - a schema is any JSON
    """The same schema, but what it does not name is a fault."""
    if isinstance(part, dict):
        closed = {name: strict(value) for name, value in part.items()}
        if "properties" in part:
            closed.setdefault("additionalProperties", False)
        return closed
    return [strict(one) for one in part] if isinstance(part, list) else part


def objects(document: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401 - a document is any JSON
    if isinstance(document, dict):
        yield document
        for part in document.values():
            yield from objects(part)
    if isinstance(document, list):
        for part in document:
            yield from objects(part)


@pytest.mark.parametrize("name", MACHINES)
def test_what_the_probe_prints_of_any_machine_is_what_the_schema_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpus, statements = MACHINES[name]
    fake = FakeNvml(tmp_path, gpus=gpus)
    for words in statements:
        fake.set(*words)
    for variable, value in fake.environment().items():
        monkeypatch.setenv(variable, value)
    code = main(["probe", "--json"])
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, strict(schema()))
    assert document["could_register"] is (code == 0)


def test_models_and_what_is_declared_of_them_are_in_the_schema(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configuration = tmp_path / "agent.toml"
    configuration.write_text(
        '[features]\nemotion_detection = true\n[[declared_models]]\nmodel_id = "m"\nversion = "3"\n'
    )
    assert main(["probe", "--json", "--simulate", "2xL4-24GB", "--config", str(configuration)]) == 0
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, strict(schema()))
    assert document["models"][0]["model_id"] == "m"


def test_a_machine_without_a_driver_is_in_the_schema(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    assert main(["probe", "--json"]) == 2
    jsonschema.validate(json.loads(capsys.readouterr().out), strict(schema()))


def test_the_schema_holds_a_document_to_every_field() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    with pytest.raises(jsonschema.ValidationError, match="required"):
        jsonschema.validate({"schema": "gpu-agent.probe/1"}, schema())
    for part in objects(schema()["$defs"]):
        if "properties" in part:
            assert part["required"] == list(part["properties"])
