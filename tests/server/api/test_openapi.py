"""The OpenAPI document of the operators' API."""

from collections.abc import Iterator
from typing import Any

import pytest

from gpu_agent.registry.tokens import CredentialKind, Role, TokenState
from gpu_agent.server.api.app import create_app

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
    assert {"400", "403", "413"} <= set(refused)
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
