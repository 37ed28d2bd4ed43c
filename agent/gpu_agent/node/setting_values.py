"""The types of the agent's settings: how each kind of value is written, and why a value is refused."""

import json
import os
import re
import shlex
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    StringConstraints,
    ValidationInfo,
)
from pydantic_core import CoreSchema
from pydantic_core.core_schema import no_info_after_validator_function
from pydantic_settings import NoDecode

from gpu_agent.records import dataclass
from gpu_agent.runtime.config.fields import ConfigPath
from gpu_agent.runtime.logs import contains_token
from gpu_agent.runtime.tls.certificate import parse_pin
from gpu_agent.wire.codes import MAX_LABELS
from gpu_agent.wire.messages import Name, Text

NODE_PATH = "/ws/node"
DEFAULT_PORT = 8080
OLDEST_READING_SECONDS = 60.0
"""A heartbeat whose `probe_age_seconds` exceeds this counts as unhealthy (§4)."""
_JOIN_PREFIX = "gpuj_"
_SECRETS = re.compile(r"(?i)[?&#][^=&#?]*(?:token|key|secret|passw|auth)[^=&#?]*=")
"""Parts of a URL that are named as only secrets are."""
_NEXT_URL = re.compile(r",(?=\s*\w+://)")
"""A comma elsewhere may be a part of a path."""
_GROUP = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,255}\$?")
NO_CREDENTIALS = "no credentials go into a URL"
"""The beginning of a fault whose value must not be shown: it may hold the secret."""


def check_registry_url(value: str) -> str:
    """Check where the registry is; the path may be left out."""
    _refuse_credentials(value)  # first: no other fault may show it
    corrected = _corrected(value)
    parts = urlsplit(value)
    if parts.scheme not in ("ws", "wss"):
        raise ValueError(f"the registry is reached at ws:// or wss://; write {corrected}")
    if not parts.hostname:
        raise ValueError("it names no host; write wss://HOST:8080/ws/node")
    if "," in parts.netloc:
        raise ValueError(
            f"write each of several addresses whole, as in {parts.scheme}://A,{parts.scheme}://B"
        )
    if parts.fragment:
        raise ValueError(f"a registry's URL has no fragment (#…); write {value.partition('#')[0]}")
    _ = parts.port  # raises ValueError for what is no port
    return corrected if parts.path in ("", "/") else value


def _check_registry(value: object) -> str | tuple[str, ...]:
    """Check the registry's address, or all of them: a list, or with commas between them."""
    if isinstance(value, str):
        urls = [part.strip() for part in _NEXT_URL.split(value)]
    elif isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
        urls = [*value]
    else:
        raise ValueError("write the registry's address, or a list of its addresses")
    for url in urls:
        _refuse_credentials(url)
    checked = tuple(map(check_registry_url, urls))
    if not checked:
        raise ValueError("the list is empty; write the registry's address into it")
    twice = [url for url in checked if checked.count(url) > 1]
    if twice:
        raise ValueError(f"{twice[0]} is there twice; leave one out")
    if len({urlsplit(url).scheme for url in checked}) > 1:
        raise ValueError(
            "some addresses begin with wss:// and others with ws://, which is not encrypted: write wss:// in "
            "all of them, since an attacker who blocks those would get the tokens over ws://"
        )
    return checked[0] if len(checked) == 1 else checked


def _corrected(value: str) -> str:
    """Guess the URL that was meant: `host`, `host:port` or `http://host:port` are common slips."""
    scheme, separator, rest = value.partition("://")
    rest = rest if separator else value
    host, slash, path = rest.partition("/")
    secure = scheme in ("wss", "https") and bool(separator)
    has_port = bool(re.search(r":\d+$", host))
    port = "" if has_port or separator else f":{DEFAULT_PORT}"
    written = f"/{path}" if slash and path else NODE_PATH
    return f"{'wss' if secure else 'ws'}://{host or 'HOST'}{port}{written}"


def _refuse_credentials(url: str) -> None:
    if "@" in url or _SECRETS.search(url):
        raise ValueError(f"{NO_CREDENTIALS}; put the join token into a file and name it")


def check_simulation(value: str | None) -> str | None:
    """Refuse a machine that cannot be simulated; the value stays as it was written."""
    if value is not None:
        from gpu_agent.probe.simulation.gpu_models import SimulationError  # noqa: PLC0415 - most machines are real
        from gpu_agent.probe.simulation.spec import parse_spec  # noqa: PLC0415 - as above

        try:
            parse_spec(value)
        except SimulationError as error:
            raise ValueError(str(error)) from None
    return value


def _paths(value: object) -> object:
    """Accept `a:b` where a list of folders is meant: environment and flags have no lists."""
    return tuple(part for part in value.split(os.pathsep) if part) if isinstance(value, str) else value


def _names(value: object) -> object:
    """Accept `a,b` where a list of names is meant."""
    if not isinstance(value, str):
        return value
    return tuple(name.strip() for name in value.split(",") if name.strip())


def _labels(value: object) -> object:
    """Accept `a=1,b=2` where labels are meant."""
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in value.split(",") if part.strip()]
    wrong = [name for name, sign, _ in pairs if not sign or not name.strip()]
    if wrong:
        raise ValueError(f"{wrong[0]!r} is no label; write name=value,name=value")
    return {name.strip(): text.strip() for name, _, text in pairs}


def token_file(path: Path) -> Path:
    """Refuse a token instead of its file: other users could read it there."""
    if path.name.startswith(_JOIN_PREFIX):
        raise ValueError("this is a token and no file: put it into one that the agent alone may read")
    return path


def textfile(path: Path) -> Path:
    """Check the name of a file of metrics: node_exporter reads no other."""
    if path.suffix != ".prom":
        raise ValueError(f"{str(path)!r}: node_exporter reads only files whose names end in .prom")
    return path


def _pins(value: object) -> object:
    """Accept one pin, or several between semicolons, as curl does, where a list of them is meant."""
    if not isinstance(value, str):
        return value
    return tuple(part.strip() for part in value.split(";") if part.strip())


def _refuse_token(text: str) -> str:
    """Refuse a token in a value that every operator and scheduler receives."""
    if contains_token(text):
        raise ValueError("this holds a token, and the registry shows it to all its users: take it out")
    return text


def _split_words(value: object) -> object:
    """Accept a command as a shell would read it, or as JSON: a variable has no lists."""
    if isinstance(value, list | tuple):
        return value
    if not isinstance(value, str):
        raise ValueError("write the command as a list of words")  # noqa: TRY004 - pydantic's own faults
    try:
        return tuple(json.loads(value) if value.lstrip().startswith("[") else shlex.split(value))
    except ValueError as error:
        raise ValueError(f"{error}: write the command as a list of words") from None


def _check_group(value: str) -> str:
    if not _GROUP.fullmatch(value):
        raise ValueError("a group is a name or a number")
    return value


def _check_number(value: object, info: ValidationInfo) -> object:
    """Refuse a truth value, and a number in quotes."""
    if isinstance(value, bool):
        raise ValueError("write a number")  # noqa: TRY004 - pydantic makes a fault of it
    if isinstance(value, str) and not _is_of_variable(info):
        raise ValueError("write a number, without quotes")
    return value


def _check_truth(value: object, info: ValidationInfo) -> object:
    """Refuse what only means a truth value."""
    if not isinstance(value, bool) and not _is_of_variable(info):
        raise ValueError("write true or false")
    return value


def _is_of_variable(info: ValidationInfo) -> bool:
    """Whether a value of `[checks]` is a variable's, and so always a text."""
    variable = f"GPU_AGENT_CHECKS__{info.field_name}".upper()
    return any(name.upper() == variable for name in os.environ)


def _check_lanes(lanes: int) -> int:
    if lanes not in _LINK_LANES:
        *most, last = _LINK_LANES
        raise ValueError(f"a PCIe link has {', '.join(map(str, most))} or {last} lanes")
    return lanes


EXACT_NUMBER, EXACT_TRUTH = BeforeValidator(_check_number), BeforeValidator(_check_truth)
"""Of a key in `[checks]`: no other type of value passes for one of its own."""
_LINK_LANES = (1, 2, 4, 8, 12, 16, 32)
"""The widths that PCIe defines, as `enum pcie_link_width` of Linux lists them."""
Lanes = Annotated[int, AfterValidator(_check_lanes)]
RegistryUrl = Annotated[str | tuple[str, ...], BeforeValidator(_check_registry), NoDecode]
Folders = Annotated[tuple[ConfigPath, ...], BeforeValidator(_paths), NoDecode]
Names = Annotated[tuple[Name, ...], BeforeValidator(_names), NoDecode]
Pins = Annotated[tuple[Annotated[str, AfterValidator(parse_pin)], ...], BeforeValidator(_pins), NoDecode]
Printable = StringConstraints(min_length=1, pattern=r"^[^\x00-\x1f\x7f]*$")
"""Labels are compared and printed: nothing that steers a terminal."""
Labels = Annotated[
    dict[
        Annotated[Name, Printable, AfterValidator(_refuse_token)],
        Annotated[Name, Printable, AfterValidator(_refuse_token)],
    ],
    Field(max_length=MAX_LABELS),
    BeforeValidator(_labels),
    NoDecode,
]
Endpoint = Annotated[Text, AfterValidator(_refuse_token)]
Span = Annotated[float, Field(gt=0, allow_inf_nan=False)]
CommandWords = Annotated[
    tuple[Annotated[Text, StringConstraints(min_length=1)], ...], BeforeValidator(_split_words), NoDecode
]
Group = Annotated[str, AfterValidator(_check_group)]
"""A group of the system's, by name or number; looked up only when the socket is created."""


@dataclass(frozen=True, slots=True)
class FreshReading:
    """A bound that keeps a healthy node's last reading below the registry's limit, on a slow host too."""

    most_seconds: float

    def __get_pydantic_core_schema__(self, source: type[float], handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_after_validator_function(self._check, handler(source))

    def _check(self, seconds: float) -> float:
        if seconds > self.most_seconds:
            raise ValueError(
                f"at most {self.most_seconds:g} s: a registry takes a GPU reading older than "
                f"{OLDEST_READING_SECONDS:g} s for a sick node"
            )
        return seconds
