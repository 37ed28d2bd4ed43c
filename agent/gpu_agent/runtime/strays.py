"""Variables that are named like a setting and are none: mistyped ones, which would be ignored in silence.

It knows names only, and shows no value. What Kubernetes sets for a service of our name is no mistake, nor
is what the program's own commands read besides the settings.
"""

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import get_origin

from pydantic import BaseModel
from pydantic_settings import BaseSettings, NoDecode

from gpu_agent.runtime.logs import EventLog
from gpu_agent.runtime.origins import NESTED, variable_of

BESIDES = frozenset(
    {
        "GPU_AGENT_DEBUG",
        "GPU_REGISTRY_API",
        "GPU_REGISTRY_TOKEN",
        "GPU_REGISTRY_CA_FILE",
        "GPU_REGISTRY_CERT_FILE",
        "GPU_REGISTRY_KEY_FILE",
    }
)
"""What the commands read that is no setting of either half."""

_OF_SERVICES = re.compile(r"(?:^|_)(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT(?:_\d+_(?:TCP|UDP|SCTP)\w*)?)$")
"""How Kubernetes ends the variables that tell of a service."""
_LOG = EventLog("runtime")


@dataclass(frozen=True, slots=True)
class Stray:
    """A variable that no setting is named after."""

    variable: str
    nearest: str | None = None
    """The one that was probably meant."""

    def __str__(self) -> str:
        """Say it as a sentence."""
        hint = f"; did you mean {self.nearest}?" if self.nearest else ""
        return f"variable {self.variable} is ignored: no setting has that name{hint}"


def strays(kind: type[BaseSettings], environ: Iterable[str]) -> list[Stray]:
    """Find them among the names of all variables, in alphabetical order."""
    prefix = str(kind.model_config.get("env_prefix", "")).upper()
    known = frozenset(_variables(kind, prefix))
    free = tuple(_of_free_tables(kind, prefix))
    return [
        Stray(name, _nearest(name.upper(), prefix, known))
        for name in sorted(environ)
        if name.upper().startswith(prefix)
        and not name.upper().startswith(free)
        and not _is_known(name.upper(), prefix, known)
    ]


def tell(kind: type[BaseSettings], environ: Iterable[str]) -> None:
    """Log each of them."""
    for stray in strays(kind, environ):
        _LOG.warning("variable_unknown", variable=stray.variable, nearest=stray.nearest)


def _variables(kind: type[BaseModel], prefix: str, above: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the variable of each setting, and of each key in a table that stands once."""
    for name, field in kind.model_fields.items():
        yield variable_of(prefix, (*above, name))
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _variables(field.annotation, prefix, (*above, name))


def _of_free_tables(kind: type[BaseModel], prefix: str) -> Iterator[str]:
    """Yield how the variables begin that state a key of a table whose keys are the owner's own."""
    for name, field in kind.model_fields.items():
        if get_origin(field.annotation) is dict and NoDecode not in field.metadata:
            yield variable_of(prefix, (name,)) + NESTED


def _is_known(name: str, prefix: str, known: frozenset[str]) -> bool:
    return name in known or name in BESIDES or bool(_OF_SERVICES.search(name.removeprefix(prefix)))


def _nearest(name: str, prefix: str, known: frozenset[str]) -> str | None:
    """What stands before a key that the setting has no place for, else what looks most like it."""
    whole = name.partition(NESTED)[0]
    if whole in known and whole != name and not any(one.startswith(f"{whole}{NESTED}") for one in known):
        return whole
    telling = {one.removeprefix(prefix): one for one in sorted(known)}  # all begin alike
    found = difflib.get_close_matches(name.removeprefix(prefix), telling, 1)
    return telling[found[0]] if found else None
