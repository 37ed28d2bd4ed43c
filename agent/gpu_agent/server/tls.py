"""A registry's own certificate as it is at this moment: read when it starts, and again when it changes.

A renewed one counts from the next handshake on; whoever is connected stays. One that cannot be used
changes nothing: the one before it serves on, and the log says why. Opens no port and no connection.
"""

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from gpu_agent.runtime.certificate import read_file
from gpu_agent.runtime.logs import EventLog
from gpu_agent.runtime.pins import pin_of
from gpu_agent.runtime.tasks import in_thread
from gpu_agent.runtime.tls_contexts import OwnCertificate, TlsFileError, for_server

LOOK_SECONDS = 30.0
"""How often the files are looked at."""
READ_SECONDS = 10.0
WARN_DAYS = 14
"""A certificate that ends sooner is told of, once a day."""

_DAY_SECONDS = 86400.0
_LOG = EventLog("server.tls")

_Stamp = tuple[tuple[int, int, int] | None, ...]
"""What tells one state of the files from another: of each its inode, size and time of change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """What a registry's ports are encrypted with, and whom they let in."""

    own: OwnCertificate
    client_ca_file: Path | None = None
    """Vouches for clients; None asks none for a certificate."""
    client_required: bool = True
    """Whether a client without a certificate is turned away."""

    @property
    def files(self) -> tuple[Path, ...]:
        """All that are read."""
        return (*self.own.files, *([self.client_ca_file] if self.client_ca_file else []))


@dataclass(frozen=True, slots=True)
class _Read:
    context: ssl.SSLContext
    ends_at: float
    pin: str
    stamp: _Stamp


class Encryption:
    """The TLS of one registry's ports."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises `TlsFileError`."""
        self._files = files
        self._read = _read(files)
        self._refused: _Stamp | None = None
        """Those that are under way, or hang."""
        self._warned_at: float | None = None
        self.renewed: Callable[[], Awaitable[None]] = _nobody_waits
        """Hears that another certificate is in use."""

    @property
    def pin(self) -> str:
        """By which the key in use is known, whoever has vouched for it."""
        return self._read.pin

    @property
    def context(self) -> ssl.SSLContext:
        """What the next handshake is set up with."""
        return self._read.context

    @property
    def ends_at(self) -> float:
        """When the certificate ends, in seconds since 1970."""
        return self._read.ends_at

    async def reload(self, *, asked: bool = True) -> bool:
        """Read the files again, and say whether they can be used; unless `asked`, only where they changed."""
        try:
            stamp = await in_thread("tls-files", lambda: _stamp(self._files), deadline_seconds=READ_SECONDS)
            if not asked and stamp in (self._read.stamp, self._refused):
                return True
            self._refused = stamp
            read = await in_thread("tls-files", lambda: _read(self._files), deadline_seconds=READ_SECONDS)
        except TimeoutError:
            return self._keep("the disk with the certificate does not answer")
        except TlsFileError as error:
            return self._keep(str(error))
        if read.ends_at <= time.time():
            return self._keep(f"the certificate in {self._files.own.cert_file} has expired: have it renewed")
        self._read, self._refused, self._warned_at = read, None, None
        file = str(self._files.own.cert_file)
        _LOG.info("certificate_loaded", file=file, days=self._days_left(), pin=self.pin)
        await self.renewed()
        return True

    async def watch(self) -> None:
        """Look after the files, and at how long the certificate lasts, until cancelled."""
        while True:
            self._warn()
            await asyncio.sleep(LOOK_SECONDS)
            await self.reload(asked=False)

    def _keep(self, problem: str) -> bool:
        _LOG.error("certificate_unusable", problem=problem, days=self._days_left())
        return False

    def _warn(self) -> None:
        """Tell once a day that the end is near, or past."""
        now, days = time.monotonic(), self._days_left()
        if days < WARN_DAYS and (self._warned_at is None or now - self._warned_at > _DAY_SECONDS):
            self._warned_at = now
            _LOG.warning("certificate_ends", file=str(self._files.own.cert_file), days=days)

    def _days_left(self) -> int:
        """How many days the certificate in use lasts; below 0, it has ended."""
        return int((self.ends_at - time.time()) // _DAY_SECONDS)


def _read(files: TlsFiles) -> _Read:
    """Raises `TlsFileError`."""
    stamp = _stamp(files)
    context = for_server(
        files.own, client_ca_file=files.client_ca_file, client_required=files.client_required
    )
    path = files.own.cert_file
    try:
        certificate = read_file(path)
    except (OSError, ValueError) as error:
        raise TlsFileError(f"the certificate in {path} cannot be read ({error}): name another") from None
    return _Read(context, certificate.ends_at, pin_of(certificate), stamp)


async def _nobody_waits() -> None:
    """What hears of a renewal where nobody else does."""


def _stamp(files: TlsFiles) -> _Stamp:
    return tuple(_state(path) for path in files.files)


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
