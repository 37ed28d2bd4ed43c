"""A setting's value as TOML writes it, and as JSON holds it. A secret is masked in both."""

import json
from collections.abc import Mapping

from pydantic import BaseModel, SecretStr

from gpu_agent.runtime.redaction import REDACTED, without_secrets

_BARE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


def plain(value: object) -> object:
    """The value in JSON's kinds; what has none is written down."""
    match value:
        case None | bool() | int() | float():
            return value
        case SecretStr():
            return REDACTED
        case BaseModel():
            return plain(value.model_dump(exclude_none=True, exclude_defaults=True))
        case Mapping():
            return {str(name): plain(one) for name, one in value.items()}
        case tuple() | list() | frozenset():
            return [plain(one) for one in value]
        case _:
            return without_secrets(str(value))


def toml(value: object) -> str:
    """The value as it may stand behind `key = `; TOML has no word for none, so it is called so."""
    return "none" if value is None else _toml(plain(value))


def _toml(value: object) -> str:
    match value:
        case Mapping():
            inside = ", ".join(f"{_key(name)} = {_toml(one)}" for name, one in value.items())
            return f"{{ {inside} }}" if inside else "{}"
        case list():
            return f"[{', '.join(map(_toml, value))}]"
        case float():
            return f"{value:g}" if value.is_integer() else repr(value)
        case _:
            return json.dumps(value, ensure_ascii=False)


def _key(name: str) -> str:
    return name if name and set(name) <= _BARE else json.dumps(name, ensure_ascii=False)
