"""The tables of `docs/` say what the program does: names, order and defaults are held to the source."""

import ast
import json
import re
import shlex
from collections.abc import Callable
from configparser import ConfigParser
from dataclasses import fields
from pathlib import Path

import pytest
from pydantic import ValidationError

from gpu_agent.cli.schema import schema_of
from gpu_agent.node import settings as agent_settings
from gpu_agent.node.settings import AgentSettings, DeclaredModel
from gpu_agent.probe.models import declared
from gpu_agent.probe.models.all_sources import SOURCES
from gpu_agent.probe.models.kinds import KINDS
from gpu_agent.probe.simulation import spec as simulation
from gpu_agent.probe.simulation.gpu_models import GPU_MODELS
from gpu_agent.probe.simulation.spec import FAULTS, MODEL_STATES
from gpu_agent.runtime.config.fields import reloadable_names, setting_of
from gpu_agent.server.limits import Limits
from gpu_agent.server.message_handler import MALFORMED_IN_A_ROW, REFUSED_IN_A_ROW
from gpu_agent.server.settings import RegistrySettings
from gpu_agent.wire.codec import MAX_FRAME_BYTES, MAX_REPORTED_ERRORS
from gpu_agent.wire.codes import ExclusionReason
from gpu_agent.wire.inventory import Gpu, ModelStatus
from gpu_agent.wire.messages import NodeHeartbeat, NodeRegister
from tests.documents import DOCS, page, quoted, rows

ROOT = DOCS.parent


def test_the_settings_that_a_reload_leaves_to_a_restart_are_named() -> None:
    written = page("settings.md")
    paragraph = written.split("A reload takes up all of them but ", 1)[1].split(". ", 1)[0]
    taken_up = reloadable_names(AgentSettings)
    assert quoted(paragraph) == [key for key in AgentSettings.model_fields if key not in taken_up]


@pytest.mark.parametrize("document", sorted(DOCS.rglob("*.md")), ids=lambda path: path.name)
def test_a_setting_without_an_option_is_named_by_its_key(document: Path) -> None:
    settings = [*AgentSettings.model_fields.items(), *RegistrySettings.model_fields.items()]
    options = {setting_of(field).option for _, field in settings}
    without = {f"--{name.replace('_', '-')}" for name, _ in settings} - options
    named = set(re.findall(r"(?<![\w-])--[a-z]+(?:-[a-z]+)+", document.read_text(encoding="utf-8")))
    assert named & without == set()


def test_the_example_of_the_agents_settings_can_be_used(tmp_path: Path) -> None:
    written = page("settings.md")
    example = tmp_path / "agent.toml"
    example.write_text(written.split("```toml\n")[1].split("```")[0], encoding="utf-8")
    settings = agent_settings.load({}, config=example)
    assert settings.labels == {"zone": "a"}
    assert [model.model_id for model in settings.declared_models] == ["my/model", "my/experiment"]


def test_every_field_of_a_declared_model_is_named() -> None:
    written = page("settings.md")
    paragraph = written.split("A `[[declared_models]]` table names", 1)[1].split("\n\n", 1)[0]
    assert set(quoted(paragraph)) == {*DeclaredModel.model_fields, *(status.value for status in ModelStatus)}


def test_the_exclusion_reasons_are_listed_in_the_order_of_the_filters() -> None:
    table = rows("statuses.md", "Why a node did not get a job")
    listed = [quoted(row[0])[0] for row in table]
    assert listed == [reason.value for reason in ExclusionReason]


def frame(**more: object) -> dict[str, object]:
    """Return a registration that holds all that is required, and what a test adds."""
    return {"version": "1.0.0", "hardware": {"cpu_cores": 1, "memory_gb": 1, "gpus": []}, **more}


def bound(name: str) -> int:
    """Read a bound from the protocol's table of limits."""
    found = [row[1] for row in rows("protocol.md", "Limits") if name in quoted(row[0])]
    return int(found[0].split()[0])


MODEL = {"model_id": "m", "version": "1"}
BOUNDED_LISTS = [
    ("installed_models", lambda length: [MODEL] * length),
    ("labels", lambda length: {str(number): "x" for number in range(length)}),
    ("features_supported", lambda length: {str(number): True for number in range(length)}),
    ("running_jobs", lambda length: [str(number) for number in range(length)]),
    ("endpoint", lambda length: "x" * length),
]


@pytest.mark.parametrize(("name", "of_length"), BOUNDED_LISTS)
def test_the_bounds_of_the_protocol_page_hold(name: str, of_length: Callable[[int], object]) -> None:
    longest = bound(name)
    NodeRegister.model_validate_json(json.dumps(frame(**{name: of_length(longest)})))
    with pytest.raises(ValidationError) as refused:
        NodeRegister.model_validate_json(json.dumps(frame(**{name: of_length(longest + 1)})))
    assert refused.value.errors()[0]["loc"][0] == name


@pytest.mark.parametrize(("name", "listed"), [("gpus", {"uuid": "GPU-1"}), ("reasons", "too hot")])
def test_the_gpus_of_a_heartbeat_are_bounded_as_stated(name: str, listed: object) -> None:
    def heartbeat(length: int) -> str:
        gpus = [listed] * length if name == "gpus" else [{"uuid": "GPU-1", "reasons": [listed] * length}]
        usage = {"cpu_percent": 1, "mem_percent": 1}
        return json.dumps({"node_id": "n", "timestamp": 1, "resource_usage": usage, "gpus": gpus})

    NodeHeartbeat.model_validate_json(heartbeat(bound(name)))
    with pytest.raises(ValidationError):
        NodeHeartbeat.model_validate_json(heartbeat(bound(name) + 1))


def test_the_close_codes_are_listed_with_the_true_limits() -> None:
    why = {row[0]: row[1] for row in rows("protocol.md", "Limits", table=1)}
    assert list(why) == ["1001", "1003", "1002, 1007", "1008", "1009", "1011", "1012", "1013"]
    assert f"within {Limits().registration_timeout_seconds:g} s" in why["1008"]
    assert f"{MALFORMED_IN_A_ROW} unreadable frames in a row" in why["1008"]
    assert f"over {Limits().frames_per_second:g} frames a second" in why["1008"]
    assert f"{REFUSED_IN_A_ROW} messages in a row in spite of `RATE_LIMITED`" in why["1008"]
    assert f"over {MAX_FRAME_BYTES // 2**20} MiB" in why["1009"]


def test_every_limit_is_listed_with_its_value() -> None:
    table = {quoted(row[0])[0]: row[1] for row in rows("limits.md", "What an unknown peer may cost")}
    assert set(table) == {one.name for one in fields(Limits)}
    for name, written in table.items():
        assert written.split()[0] == f"{getattr(Limits(), name)}".removesuffix(".0"), name


@pytest.mark.parametrize("name", ["probe", "doctor", "status", "explain", "notification"])
def test_the_published_schema_of_a_document_is_the_programs(name: str) -> None:
    published = json.loads((DOCS / "reference" / "schema" / f"{name}.json").read_text(encoding="utf-8"))
    assert published == schema_of(name), "run `make schema` and review the difference"


def test_a_refusal_names_as_many_faults_as_stated() -> None:
    written = page("protocol.md")
    assert f"lists the faults, up to {MAX_REPORTED_ERRORS}," in written


def test_every_part_of_a_simulation_is_named() -> None:
    written = page("simulation.md")
    named = set(quoted(written.split("- **model**", 1)[1].split("- **mig**", 1)[0]))
    assert named >= {product.label for product in GPU_MODELS}
    listed = {word for row in rows("simulation.md", "Faults") for word in quoted(row[0])}
    assert listed == {*FAULTS, "xid48", "xid79"}
    states = {word for row in rows("simulation.md", "Faults", table=1) for word in quoted(row[0])}
    assert states == set(MODEL_STATES)
    assert set(KINDS) <= set(quoted(written.split("- **models**", 1)[1].split("\n\n", 1)[0]))


def test_every_line_of_a_simulation_that_is_shown_can_be_read() -> None:
    written = page("simulation.md")
    shown = [shlex.split(line)[-1] for line in written.splitlines() if " --simulate " in line]
    assert len(shown) == 5
    for line in shown:
        simulation.parse_spec(line)


def test_each_recipe_for_an_addition_is_listed_where_contributors_begin() -> None:
    package = ROOT / "agent" / "gpu_agent"
    recipes = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if "\nTo add a" in (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "")
    }
    written = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = written.split("## Where to add what", 1)[1].split("## ", 1)[0]
    assert sorted(re.findall(r"\| `(\S+\.py)` \|", section)) == sorted(recipes)


def test_contributors_find_every_floor_of_the_imports_contract() -> None:
    contracts = ConfigParser()
    contracts.read(ROOT / ".importlinter")
    floors = re.findall(r"[a-z]+", contracts["importlinter:contract:floors"]["layers"])
    written = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("```")[1]
    listed = [name for line in written.splitlines() for name in re.findall(r"[a-z]+", line[:27])]
    assert sorted(listed) == sorted(floors)


def test_every_reading_of_a_gpu_is_explained() -> None:
    listed = [quoted(row[0])[0] for row in rows("gpus.md", "The readings")]
    assert sorted(listed) == sorted(one.name for one in fields(Gpu))


def test_the_page_on_models_names_every_source_and_every_state() -> None:
    listed = rows("models.md", "Where")
    assert [quoted(row[0]) for row in listed] == [[source] for source in (*SOURCES, declared.SOURCE)]
    for row, source in zip(listed, SOURCES.values(), strict=False):
        assert (row[1], quoted(row[2])) == (source.places_in_words or "none", [source.setting])
    assert sorted(quoted(row[0])[0] for row in rows("models.md", "States")) == sorted(ModelStatus)
    for row in rows("models.md", "Where"):
        assert quoted(row[2])[0] in AgentSettings.model_fields
