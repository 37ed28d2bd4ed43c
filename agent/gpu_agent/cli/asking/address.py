"""Which registry a command speaks to: the one of `--api`, of the environment, else this machine's own.

A registry on this machine leaves its address where its operator token lies; of several it is the first
that is served. Opens no connection.
"""

import argparse
import ipaddress
import os
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gpu_agent.cli.asking.own_registry import is_served
from gpu_agent.cli.outcome import ExitCode, Failure
from gpu_agent.runtime.left_address import FILE, found_in
from gpu_agent.runtime.state_dir import UNIT_FOLDER, default_state_dir

DEFAULT_API = "http://127.0.0.1:8081"
API_VARIABLE = "GPU_REGISTRY_API"
STATE_DIR_VARIABLE = "GPU_REGISTRY_STATE_DIR"


@dataclass(frozen=True, slots=True)
class Place:
    """A registry's operator API, and what a registry on this machine has left of it."""

    url: str
    left_in: Path | None = None
    """The state directory of this machine's registry that said so; None where the URL was named."""
    pin: str | None = None
    """Of the key that it has."""

    @property
    def left_file(self) -> Path | None:
        """The file that said so."""
        return None if self.left_in is None else self.left_in / FILE


def place_of(arguments: argparse.Namespace) -> Place:
    """Find the registry that a command's arguments lead to; raises `Failure`."""
    named = arguments.api if arguments.api is not None else os.environ.get(API_VARIABLE) or None
    url = None if named is None else checked(named)
    places = [one for one in _left_here() if url in (None, one.url)]
    if not places:
        return Place(DEFAULT_API if url is None else url)
    return next((one for one in places if len(places) > 1 and _is_served(one)), places[0])


def _left_here() -> Iterator[Place]:
    """The places that registries on this machine have left; one that was killed has left its, too."""
    for folder in state_folders():
        left = found_in(folder)
        if left is not None and _is_address(left.api):
            yield Place(checked(left.api), folder, left.pin)


def _is_served(place: Place) -> bool:
    try:
        return place.left_file is not None and is_served(place.url, user=place.left_file.stat().st_uid)
    except OSError:
        return False  # taken back meanwhile


def _is_address(url: str) -> bool:
    """Say whether a URL has an address for its host, as one that a registry left has: a name may move."""
    try:
        ipaddress.ip_address(urllib.parse.urlsplit(url).hostname or "")
    except ValueError:
        return False
    return True


def state_folders() -> list[Path]:
    """Where a registry on this machine may keep its state."""
    stated = os.environ.get(STATE_DIR_VARIABLE)
    return [Path(stated).expanduser()] if stated else [default_state_dir(), UNIT_FOLDER]


def checked(url: str) -> str:
    """Refuse what no registry can be reached at, before anything is asked of it."""
    try:
        parts = urllib.parse.urlsplit(url)
        fault = _fault(parts)
        _ = parts.port  # raises ValueError for what is no port
        (parts.hostname or "").encode("idna")
    except ValueError as error:
        fault = str(error)
    if any(letter.isspace() or not letter.isprintable() for letter in url):
        fault = "it holds spaces or control characters"
    if fault is None:
        return url.rstrip("/")
    raise Failure(
        f"{url!r}, of --api or ${API_VARIABLE}, is no URL of a registry ({fault}); "
        f"write it like {DEFAULT_API}",
        code=ExitCode.CONFIGURATION,
    )


def _fault(parts: urllib.parse.SplitResult) -> str | None:
    if parts.scheme not in ("http", "https"):
        return "it does not begin with http:// or https://"
    if not parts.hostname:
        return "it names no host"
    if parts.username is not None or parts.password is not None:
        return "no credentials go into a URL"
    if parts.query or parts.fragment:
        return "it has a query or a fragment"
    return None
