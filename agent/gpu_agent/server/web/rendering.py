"""Renders templates: the one door to Jinja2, what templates may call, and the static files.

Everything is escaped unless a template of ours made it. Control and bidi characters are replaced: nodes and
clients choose names. Static files are named with a part of their digest, so that a browser may keep them for
good.
"""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from gpu_agent.registry.quoting import clip_quote, one_line
from gpu_agent.version import __version__

__all__ = [
    "Markup",
    "StaticFile",
    "age",
    "clock_time",
    "duration",
    "gpu_url",
    "node_url",
    "render",
    "static_file",
    "static_url",
]

_MEDIA_TYPES: Mapping[str, str] = {
    "fleet.css": "text/css; charset=utf-8",
    "fleet.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
UNKNOWN = "\N{EN DASH}"
"""Stands for a figure that is not known."""
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


@dataclass(frozen=True, slots=True)
class StaticFile:
    """One file that browsers get as it is."""

    content: bytes
    media_type: str
    mark: str
    """A part of its digest."""


def render(template: str, **values: object) -> str:
    """Render a template."""
    return _environment().get_template(template).render(values)


@cache
def static_file(name: str) -> StaticFile | None:
    """Return a static file; None where there is none of this name."""
    media_type = _MEDIA_TYPES.get(name)
    if media_type is None:
        return None
    content = files("gpu_agent.server.web").joinpath("static", name).read_bytes()
    return StaticFile(content, media_type, hashlib.sha256(content).hexdigest()[:12])


@cache
def static_url(name: str) -> str:
    """Return the address of a static file, which changes with its content."""
    file = static_file(name)
    if file is None:
        raise LookupError(f"there is no static file {name}")
    return f"/web/static/{name}?v={file.mark}"


def node_url(node_id: str, action: str = "") -> str:
    """Return the address of a node's page, or of the page of an action on it."""
    path = f"/nodes/{quote(node_id, safe='')}"
    return f"{path}/{action}" if action else path


def gpu_url(node_id: str, uuid: str, action: str) -> str:
    """Return the address of the page of an action on one GPU."""
    return f"{node_url(node_id)}/gpus/{quote(uuid, safe='')}/{action}"


def duration(seconds: float | None) -> str:
    """Say how long something takes, in at most two units; a dash where it is unknown."""
    if seconds is None:
        return UNKNOWN
    whole = max(0, int(seconds))
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        minutes, rest = divmod(whole, _MINUTE)
        return f"{minutes} min {rest:02} s" if minutes < 10 and rest else f"{minutes} min"  # noqa: PLR2004
    if whole < _DAY:
        hours, rest = divmod(whole // _MINUTE, _MINUTE)
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    days, hours = divmod(whole // _HOUR, 24)
    return f"{days} d {hours} h" if hours and days < 10 else f"{days} d"  # noqa: PLR2004


def age(seconds: float | None) -> str:
    """Say how old something is, in one unit; a dash where it is unknown."""
    if seconds is None:
        return UNKNOWN
    whole = max(0, int(seconds))
    for size, unit in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min")):
        if whole >= size:
            return f"{whole // size} {unit}"
    return f"{whole} s"


def clock_time(at: float) -> str:
    """Say a moment of Unix time as a time of day in UTC."""
    return time.strftime("%H:%M:%S", time.gmtime(at))


def _short_time(at: float) -> str:
    return time.strftime("%H:%M", time.gmtime(at))


def _moment(at: float) -> str:
    """Say a moment of Unix time as a machine reads it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def _figure(value: float | None, unit: str = "") -> str:
    """Write a figure without decimals; a dash where it is unknown."""
    return UNKNOWN if value is None else f"{value:,.0f}{unit}"


def _gib(megabytes: float | None) -> str:
    return UNKNOWN if megabytes is None else f"{megabytes / 1024:,.0f}"


def _milliseconds(value: float | None) -> str:
    """Write a short time of the last minute; a dash where it is unknown."""
    if value is None:
        return UNKNOWN
    return f"{value:,.{0 if value >= 10 else 1}f} ms in the last minute"  # noqa: PLR2004


def _coded(text: str) -> Markup:
    """Show what stands between backquotes as code."""
    parts = one_line(text).split("`")
    shown = (
        Markup("<code>{}</code>").format(part) if place % 2 else escape(part)
        for place, part in enumerate(parts)
    )
    return Markup("").join(shown)


def _shown(value: object) -> object:
    """Reduce a text to what shows as it is; what a template made stays."""
    return one_line(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("gpu_agent.server.web"),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters |= {
        "age": age,
        "clipped": clip_quote,
        "clock_time": clock_time,
        "coded": _coded,
        "duration": duration,
        "figure": _figure,
        "gib": _gib,
        "milliseconds": _milliseconds,
        "moment": _moment,
        "short_time": _short_time,
    }
    environment.globals |= {
        "gpu_url": gpu_url,
        "node_url": node_url,
        "static": static_url,
        "version": __version__,
    }
    return environment
