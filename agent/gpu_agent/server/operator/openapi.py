"""What the operator API says of itself: the routes as declared, and what holds for every one of them.

Adds the refusals that stand before every route, the credential, and one shape for every
refusal; invents no route and hides none.
"""

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from gpu_agent.server.operator.models import Problem
from gpu_agent.server.operator.routes import ROLE, refusals

_CREDENTIAL = {
    "type": "http",
    "scheme": "bearer",
    "description": "An operator token: `gpu-agent registry token create --operator ROLE`.",
}
_UNREADABLE = "422"


def describe_itself(app: FastAPI) -> None:
    """Let an application answer `/openapi.json` with all that holds for its routes."""

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _described(app)
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]  # FastAPI's own way to say it


def _described(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    components = document.setdefault("components", {})
    components["securitySchemes"] = {"operatorToken": _CREDENTIAL}
    schemas = components.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas["Problem"] = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(schemas["Problem"].pop("$defs", {}))
    for method, operation in _operations(document):
        _complete(method, operation)
    return document


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in document["paths"].values():
        yield from path.items()


def _complete(method: str, operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    general = [400, 403, 413] if operation.get(ROLE) == "public" else [400, 401, 403, 413]
    if method == "post":
        general.append(415)
        if "requestBody" in operation:
            operation["requestBody"]["required"] = True  # an empty one is forgiven, yet JSON must be said
    if _UNREADABLE in responses:
        general.append(422)
    for status, answer in refusals(*general).items():
        responses[str(status)] = answer
    operation["responses"] = dict(sorted(responses.items()))
