"""The tables `[[notify]]` of the registry's settings: one receiver of alarms each, and which events it wants.

No secret stands here: what is one is in a file of its own, which is read at each message.
"""

import difflib
import json
from fnmatch import fnmatchcase
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from gpu_agent.runtime.address import Address
from gpu_agent.runtime.config.fields import ConfigPath
from gpu_agent.runtime.proxy import Proxy
from gpu_agent.runtime.schedule import Hours, TimeZone
from gpu_agent.wire.event_words import MISSED, SENTENCES
from gpu_agent.wire.settings import Setting

MOST_RECEIVERS = 16
DEFAULT_EVENTS = (
    "node_status_changed:degraded",
    "node_status_changed:offline:heartbeat_timeout",
    "mass_disconnect_suspected",
    "node_fault_reported",
    "claim_lost",
    "claim_gpu_unusable",
    "document_unreadable",
)
"""What wakes an operator. A node that leaves because somebody drained or stopped it is no such thing."""
_STATUS_CHANGED = "node_status_changed"
_KNOWN = frozenset({*SENTENCES, _STATUS_CHANGED}) - {MISSED}
_MOST_GROUP_SECONDS = 86_400
_SCHEMES = ("http", "https")
_OF_WEBHOOKS = ("secret_file", "ca_file", "proxy", "proxy_file")


def check_url(url: str) -> str:
    """Check where a webhook is; the value is never in the error, since it may be a secret."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("it is no URL; write https://HOST/PATH") from None
    if parts.scheme not in _SCHEMES or not parts.hostname or port == 0:
        raise ValueError("it is no URL of a webhook; write https://HOST/PATH")
    if parts.username is not None or parts.fragment:
        raise ValueError("a webhook's URL has no user, no password and no fragment (#…)")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("a URL holds printable characters of ASCII and no spaces: percent-encode the others")
    return url


def is_plaintext(url: str) -> bool:
    """Whether others on the network path can read what is sent to a URL."""
    parts = urlsplit(url)
    return parts.scheme == "http" and not Address(parts.hostname or "", parts.port or 0).is_loopback


def _check_proxy(written: str) -> str:
    if Proxy.parse(written).user is not None:
        raise ValueError("it holds a user and a password: put it into a file, and name that as proxy_file")
    return written


def _check_pattern(pattern: str) -> str:
    name = pattern.partition(":")[0]
    if not any(fnmatchcase(known, name) for known in _KNOWN):
        near = difflib.get_close_matches(name, sorted(_KNOWN), 1)
        hint = f"did you mean {near[0]}?" if near else "*Log events* in the documentation lists them"
        raise ValueError(f"{pattern!r} is no event of the registry; {hint}")
    if ":" in pattern and not fnmatchcase(_STATUS_CHANGED, name):
        raise ValueError(f"{pattern!r}: only {_STATUS_CHANGED} has a status and a reason behind colons")
    return pattern


class ReceiverSettings(BaseModel):
    """A table `[[notify]]`."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: Annotated[
        str,
        Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"),
        Setting(
            "what the receiver is called: letters, digits, `-`, `_` and `.`. How far it is in the event log "
            "is stored under this name: under another one it gets what happens from then on",
            kind="name",
        ),
    ]
    url: Annotated[
        Annotated[str, AfterValidator(check_url)] | None,
        Setting("the webhook; write a URL that is a secret into `url_file` instead", kind="URL"),
    ] = None
    url_file: Annotated[
        ConfigPath | None,
        Setting(
            "a file with the webhook's URL, which other users may not read; those of Slack and Teams are "
            "secrets"
        ),
    ] = None
    command: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...],
        Setting(
            "a command and its arguments, in place of a webhook: it reads the message as JSON from its "
            "standard input, and has taken it by exit status 0. No shell runs it",
            kind="list of words",
        ),
    ] = ()
    format: Annotated[
        Literal["json", "slack", "teams"],
        Setting("how the webhook's body is written: as the documented JSON, for Slack, or for Teams"),
    ] = "json"
    secret_file: Annotated[
        ConfigPath | None,
        Setting(
            "a file with the secret that signs each message to a webhook (HMAC-SHA256), of at least 16 "
            "characters; other users may not read it"
        ),
    ] = None
    ca_file: Annotated[
        ConfigPath | None,
        Setting("authorities that issued the webhook's certificate; else the machine's own"),
    ] = None
    proxy: Annotated[
        Annotated[str, AfterValidator(_check_proxy)] | None,
        Setting(
            "an HTTP proxy between the registry and an `https://` webhook: `http://HOST:PORT`; one with a "
            "user and a password stands in `proxy_file`. Without it the registry connects directly, whatever "
            "`HTTPS_PROXY` and similar variables say",
            kind="URL",
        ),
    ] = None
    proxy_file: Annotated[
        ConfigPath | None,
        Setting("a file with `http://USER:PASSWORD@HOST:PORT`, which other users may not read"),
    ] = None
    events: Annotated[
        tuple[Annotated[str, AfterValidator(_check_pattern)], ...],
        Field(min_length=1),
        Setting(
            "which events: names with `*` for any characters (`claim_*`), for a change of status also "
            "`node_status_changed:STATUS` or `node_status_changed:STATUS:REASON`",
            kind="list of names",
        ),
    ] = DEFAULT_EVENTS
    hostnames: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...],
        Setting(
            "only events of nodes with one of these hostnames, with `*` for any characters: `rack1-*`",
            kind="list of names",
        ),
    ] = ()
    labels: Annotated[
        dict[str, str],
        Setting("only events of nodes with all of these labels", kind="table of texts"),
    ] = Field(default_factory=dict)
    quiet_hours: Annotated[
        Hours,
        Setting(
            'when nothing is sent: `"22:00-07:00"`, `"sat-sun"`. What happens then is one message afterwards',
            kind="list of hours",
        ),
    ] = ()
    time_zone: Annotated[
        TimeZone | None,
        Setting("the time zone of these hours, such as `Europe/Berlin`; else the machine's", kind="name"),
    ] = None
    group_seconds: Annotated[
        float,
        Field(ge=0, le=_MOST_GROUP_SECONDS, allow_inf_nan=False),
        Setting(
            "at most one message in this time: it stands for all that happened. With 0 each event is a "
            "message of its own"
        ),
    ] = 30.0

    @model_validator(mode="after")
    def _agree(self) -> Self:
        ways = [name for name in ("url", "url_file", "command") if getattr(self, name)]
        if len(ways) != 1:
            found = " and ".join(ways) or "none of them"
            raise ValueError(
                f"the receiver {self.name} needs one of url, url_file and command, and has {found}"
            )
        if self.proxy is not None and self.proxy_file is not None:
            raise ValueError(f"the receiver {self.name} has proxy and proxy_file: leave one of them out")
        if self.command:
            beside = [name for name in _OF_WEBHOOKS if getattr(self, name) is not None]
            beside += [] if self.format == "json" else ["format"]
            if beside:
                raise ValueError(f"{beside[0]} is for webhooks, and {self.name} is a command: leave it out")
        elif self.format != "json" and self.url:
            raise ValueError(
                f"who knows a URL of Slack or Teams can post there: put that of {self.name} into a file, and "
                "name it as url_file"
            )
        elif self.format != "json" and self.secret_file is not None:
            raise ValueError(f"Slack and Teams check no signature: leave secret_file of {self.name} out")
        return self


def _tables(value: object) -> object:
    """Accept JSON: a variable has no tables."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"write the receivers as a JSON list of tables: {error}") from None


def _check_receivers(receivers: tuple[ReceiverSettings, ...]) -> tuple[ReceiverSettings, ...]:
    names = [one.name for one in receivers]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"two receivers are called {twice}: name one of them otherwise")
    return receivers


Receivers = Annotated[
    tuple[ReceiverSettings, ...],
    Field(max_length=MOST_RECEIVERS),
    AfterValidator(_check_receivers),
    BeforeValidator(_tables),
]
"""All tables `[[notify]]`."""
