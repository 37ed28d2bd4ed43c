"""Complete documents of the registry's API and of the agent's socket, out of what a test says of them."""

import dataclasses
import re
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from gpu_agent.cli.client.answers import Answer, parse_answer
from gpu_agent.wire import api, notification

Model = TypeVar("Model", bound=BaseModel)
_ID = r"/v1/nodes/[^/?]+"
ROUTES: Mapping[str, type[BaseModel]] = {
    r"GET /v1/nodes(\?.*)?": api.NodeList,
    rf"GET {_ID}": api.NodeDetail,
    rf"GET {_ID}/events(\?.*)?": api.EventList,
    rf"GET {_ID}/explain(\?.*)?": api.NodeExplanation,
    rf"POST {_ID}/gpus/[^/]+/(cordon|uncordon)": api.NodeDetail,
    rf"POST {_ID}/(drain|resume|cordon|uncordon|refresh|reregister|check|rotate)": api.NodeDetail,
    rf"POST {_ID}/reclaim": api.NewToken,
    r"GET /v1/claims(\?.*)?": api.ClaimList,
    r"GET /v1/claims/[^/]+": api.ClaimDetail,
    r"GET /v1/queue": api.QueueView,
    r"POST /v1/claims(/[^/]+/renew)?": api.ClaimView,
    r"POST /v1/dispatch/explain": api.ExplanationView,
    r"POST /v1/dispatch/select": api.Selection,
    r"GET /v1/exclusions": api.ExclusionsList,
    r"GET /v1/tokens(\?.*)?": api.TokenList,
    r"POST /v1/tokens": api.NewToken,
    r"GET /v1/members": api.MemberList,
    r"GET /v1/receivers": notification.ReceiverList,
    r"POST /v1/receivers/[^/]+/test": notification.ReceiverTest,
    r"GET /v1/thresholds": api.ThresholdList,
}


def document_of(request: str, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a registry answers to a request, such as `GET /v1/nodes`."""
    for route, model in ROUTES.items():
        if re.fullmatch(route, request):
            return complete(model, given)
    return given


def model_of(model: type[Model], given: Mapping[str, Any]) -> Model:
    """Return a model, complete."""
    return answer_of(model, given).model


def answer_of(model: type[Model], given: Mapping[str, Any]) -> Answer[Model]:
    """Return an answer, complete."""
    return parse_answer(complete(model, given), model)


def complete(model: type[BaseModel], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document in which every field of the model is there; fields that are unknown stay."""
    made = dict(given)
    for name, field in model.model_fields.items():
        key = field.alias or name
        if key in made:
            made[key] = _completed(field.annotation, made[key])
        elif field.is_required():
            made[key] = _blank(field.annotation)
    return made


def _completed(kind: object, value: object) -> object:
    if isinstance(value, Mapping):
        for one in _alternatives(kind):
            if isinstance(one, type) and issubclass(one, BaseModel):
                return complete(one, value)
            if get_origin(one) is dict:
                return {name: _completed(get_args(one)[1], member) for name, member in value.items()}
            if dataclasses.is_dataclass(one) and isinstance(one, type):
                return _complete_dataclass(one, value)
    if isinstance(value, list | tuple):
        for one in _alternatives(kind):
            if get_origin(one) is tuple:
                return [_completed(get_args(one)[0], member) for member in value]
    return value


def _complete_dataclass(kind: type, given: Mapping[str, Any]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    missing = {
        field.name: _blank(hints[field.name])
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    return {**missing, **given}


def _alternatives(kind: object) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _blank(kind: object) -> object:
    one = _alternatives(kind)
    if type(None) in one:
        return None
    origin = get_origin(one[0]) or one[0]
    if origin is Literal:
        return get_args(one[0])[0]
    if isinstance(origin, type) and issubclass(origin, BaseModel):
        return complete(origin, {})
    blanks: dict[Any, Any] = {str: "", bool: False, int: 0, float: 0.0, tuple: [], dict: {}, Mapping: {}}
    return blanks.get(origin, {} if origin.__name__ == "Mapping" else None)
