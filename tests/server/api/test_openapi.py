"""The OpenAPI document of the operators' API."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gpu_agent.registry.job import Sharing
from gpu_agent.registry.tokens import CredentialKind, Role, TokenState
from gpu_agent.server.api.app import create_app
from gpu_agent.server.api.errors import STATUSES
from gpu_agent.wire.codes import SUPPORTED_SCHEMA_VERSIONS, ExclusionReason, NodeStatus, ReasonCode
from gpu_agent.wire.documents import PROBLEM_CODES
from gpu_agent.wire.inventory import Health, ModelStatus

SOURCE = Path(__file__).parents[3] / "agent" / "gpu_agent"
PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}


def described() -> dict[str, Any]:
    return create_app().openapi()


def operations() -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in described()["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


OPERATIONS = [pytest.param(name, operation, id=name) for name, operation in operations()]


@pytest.mark.parametrize(("name", "operation"), OPERATIONS)
def test_an_operation_has_a_name_a_summary_a_tag_and_a_role(name: str, operation: dict[str, Any]) -> None:
    assert operation["operationId"].replace("_", "").isalpha()
    assert operation["summary"]
    assert operation["description"]
    assert len(operation["tags"]) == 1
    public = operation["x-role"] == "public"
    assert public == name.startswith(("GET /healthz", "GET /readyz"))
    assert public == ("security" not in operation)
    assert public == ("401" not in operation["responses"])


@pytest.mark.parametrize(("name", "operation"), OPERATIONS)
def test_every_refusal_is_a_problem_document(name: str, operation: dict[str, Any]) -> None:
    refused = {status: one for status, one in operation["responses"].items() if status >= "400"}
    assert {"400", "403", "413", "431", "500", "503"} <= set(refused)
    assert ("429" in refused) == (operation["x-role"] != "public")  # the limits of one token
    assert ("415" in refused) == name.startswith("POST")
    assert all(one["content"] == PROBLEM for one in refused.values())


@pytest.mark.parametrize(("name", "operation"), OPERATIONS)
def test_a_post_has_a_json_body_that_is_required(name: str, operation: dict[str, Any]) -> None:
    assert ("requestBody" in operation) == name.startswith("POST")
    if "requestBody" in operation:
        assert operation["requestBody"]["required"]
        assert list(operation["requestBody"]["content"]) == ["application/json"]


def test_operation_ids_are_unique() -> None:
    names = [operation["operationId"] for _, operation in operations()]
    assert len(set(names)) == len(names)


def test_every_schema_is_used() -> None:
    document = described()
    shapes, text = document["components"]["schemas"], str(document)
    assert [name for name in shapes if f"'#/components/schemas/{name}'" not in text] == []


def test_the_bounds_of_a_number_are_described() -> None:
    shapes = described()["components"]["schemas"]
    count = shapes["JobRequest"]["properties"]["gpu_count"]["anyOf"][0]
    assert (count["type"], count["minimum"], count["maximum"]) == ("integer", 1, 256)
    uses = shapes["JoinTokenRequest"]["properties"]["uses"]["anyOf"][0]
    assert (uses["type"], uses["minimum"]) == ("integer", 1)


@pytest.mark.parametrize(("name", "operation"), OPERATIONS)
def test_every_answer_names_its_media_type(name: str, operation: dict[str, Any]) -> None:
    for status, answer in operation["responses"].items():
        assert all("/" in kind for kind in answer.get("content", ())), f"{name}: {status}"


def test_the_words_of_a_token_are_listed() -> None:
    shown = described()["components"]["schemas"]["TokenView"]["properties"]
    assert shown["kind"]["enum"] == list(CredentialKind)
    assert shown["state"]["enum"] == list(TokenState)
    assert shown["role"]["anyOf"][0]["enum"] == list(Role)


def shapes() -> Iterator[tuple[str, dict[str, Any]]]:
    yield from described()["components"]["schemas"].items()


def test_every_property_is_described() -> None:
    bare = [
        f"{name}.{field}"
        for name, shape in shapes()
        for field, one in shape.get("properties", {}).items()
        if not one.get("description")
    ]
    assert bare == []


UNITS = {
    "_seconds": ("second", "Seconds", "After"),
    "_mb": ("MiB",),
    "_percent": ("%", "busy", "utilization"),
    "_c": ("Celsius",),
    "_w": ("Watts",),
    "_ms": ("Of the network",),
    "_at": ("Unix time",),
    "_gb": ("GiB",),
}


def test_a_request_states_its_defaults_in_words_since_generated_clients_take_them_for_required() -> None:
    """`openapi-typescript` gives a property with a `default` a type that must be there."""
    schemas = described()["components"]["schemas"]
    requests = {name: one["properties"] for name, one in schemas.items() if name.endswith("Request")}
    assert requests["JobRequest"]["nodes"]["description"].endswith("Default: 1.")
    assert [
        f"{name}.{field}"
        for name, properties in requests.items()
        for field, one in properties.items()
        if "default" in one
    ] == []


def test_every_figure_names_its_unit() -> None:
    silent = []
    for name, shape in shapes():
        for field, one in shape.get("properties", {}).items():
            words = next((UNITS[end] for end in UNITS if field.endswith(end)), None)
            if words and not any(word in one["description"] for word in words):
                silent.append(f"{name}.{field}: {one['description']}")
    assert silent == []


def test_a_word_for_yes_or_no_in_a_query_is_a_boolean() -> None:
    parameters = {
        one["name"]: [part["type"] for part in one["schema"].get("anyOf", [one["schema"]])]
        for _, operation in operations()
        for one in operation.get("parameters", ())
        if one["name"] in {"ended", "follow", "connected"}
    }
    assert parameters == {"ended": ["boolean"], "follow": ["boolean"], "connected": ["boolean", "null"]}


def test_every_parameter_is_described() -> None:
    bare = [
        f"{name}: {one['name']}"
        for name, operation in operations()
        for one in operation.get("parameters", ())
        if not one.get("description")
    ]
    assert bare == []


def test_codes_statuses_and_reasons_are_listed() -> None:
    known = dict(shapes())
    assert known["Problem"]["properties"]["code"]["enum"] == list(PROBLEM_CODES)
    assert known["RenewalResult"]["properties"]["code"]["anyOf"][0]["enum"] == list(PROBLEM_CODES)
    assert known["NodeSummary"]["properties"]["status"]["enum"] == list(NodeStatus)
    assert known["NodeDetail"]["properties"]["reason_code"]["enum"] == list(ReasonCode)
    assert known["ExcludedNode"]["properties"]["reason"]["enum"] == list(ExclusionReason)
    assert set(STATUSES) <= set(PROBLEM_CODES)


def words_of(schema: dict[str, Any]) -> list[str]:
    """The words that a property lists, in itself or in an alternative of it."""
    listed: list[str] = schema.get("enum") or [
        word for one in schema.get("anyOf", ()) for word in words_of(one)
    ]
    return listed


@pytest.mark.parametrize(
    ("name", "field", "words"),
    [
        ("NodeDetail", "previous_status", NodeStatus),
        ("NodeDetail", "capability_schema_version", SUPPORTED_SCHEMA_VERSIONS),
        ("ClaimView", "gpu_sharing", Sharing),
        ("HealthAnswer", "status", ("ok",)),
    ],
)
def test_words_that_the_registry_chooses_are_listed(name: str, field: str, words: Iterable[str]) -> None:
    assert words_of(dict(shapes())[name]["properties"][field]) == [*words]


@pytest.mark.parametrize(
    ("name", "field", "words"),
    [
        ("GpuView", "health", Health),
        ("ModelView", "status", ModelStatus),
        ("ModelVersion", "status", ModelStatus),
        ("ModelState", "state", ("ready", "disabled", "downloading", "not_installed", "error")),
        ("ModelState", "reported", ModelStatus),
        ("NodeDetail", "platform", ("linux", "windows", "macos")),
    ],
)
def test_words_that_a_node_chooses_are_listed_and_others_are_allowed(
    name: str, field: str, words: Iterable[str]
) -> None:
    listed = dict(shapes())[name]["properties"][field]
    assert words_of(listed) == [*words]
    check = jsonschema.Draft202012Validator(listed)
    assert check.is_valid(next(iter(words)))
    assert check.is_valid("a word of a newer node")
    assert not check.is_valid(7)


def test_no_enum_has_two_words_that_a_generated_client_would_name_alike() -> None:
    for text in re.findall(r'"enum": (\[[^\]]*\])', json.dumps(dict(shapes()))):
        names = [re.sub(r"\W", "_", str(word)).upper() for word in json.loads(text)]
        assert len(names) == len({*names}), text


def test_no_description_lists_words_that_the_schema_does_not() -> None:
    silent = [
        f"{name}.{field}: {one['description']}"
        for name, shape in shapes()
        for field, one in shape.get("properties", {}).items()
        if one.get("type") == "string" or {"type": "string"} in one.get("anyOf", ())
        if len(re.findall(r"`[a-z_]+`", one["description"])) > 1 and not words_of(one) and "const" not in one
    ]
    assert silent == []


CODE = re.compile(r"(?:ApiError|Refusal|refuse|problem_response)\([^)]*?\"([A-Z_]{6,})\"")


def test_every_code_of_the_source_is_listed() -> None:
    folders = (SOURCE / "registry", SOURCE / "server")
    texts = [path.read_text(encoding="utf-8") for folder in folders for path in folder.rglob("*.py")]
    named = {code for text in texts for code in CODE.findall(text)}
    constants = {
        name
        for text in texts
        for name, code in re.findall(r"^([A-Z_]+) = \"([A-Z_]+)\"$", text, re.MULTILINE)
        if name == code
    }
    assert len(named | constants) > 20
    assert named | constants <= set(PROBLEM_CODES)
