"""TLS of the registry's ports: the certificate, reloaded when its files change, and the connections.

A renewed certificate counts from the next handshake on; open connections stay. A certificate that cannot be
used changes nothing, and the log says why. Connections use `ssl`'s layer without a socket: asyncio's own
reports a connection only after its handshake, so that it would count in no limit, and it holds 256 KiB for
each.
"""

import asyncio
import contextlib
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gpu_agent.runtime.logs import Logger
from gpu_agent.runtime.tasks import in_thread
from gpu_agent.runtime.tls.certificate import pin_of, read_certificate_file
from gpu_agent.runtime.tls.contexts import OwnCertificate, TlsFileError, server_context
from gpu_agent.runtime.tls.errors import openssl_reason
from gpu_agent.server.fair_queue import FairQueue

# A registry's own certificate as it is at this moment: read when it starts, and again when it changes.
#
# A renewed one counts from the next handshake on; whoever is connected stays. One that cannot be used
# changes nothing: the one before it serves on, and the log says why. Opens no port and no connection.


LOOK_SECONDS = 30.0
"""How often the files are looked at."""
READ_SECONDS = 10.0
WARN_DAYS = 14
"""A certificate that ends sooner is told of, once a day."""

_DAY_SECONDS = 86400.0
_LOG = Logger("server.tls")

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
            _LOG.warning("certificate_expiring", file=str(self._files.own.cert_file), days=days)

    def _days_left(self) -> int:
        """How many days the certificate in use lasts; below 0, it has ended."""
        return int((self.ends_at - time.time()) // _DAY_SECONDS)


def _read(files: TlsFiles) -> _Read:
    """Raises `TlsFileError`."""
    stamp = _stamp(files)
    context = server_context(
        files.own, client_ca_file=files.client_ca_file, client_required=files.client_required
    )
    path = files.own.cert_file
    try:
        certificate = read_certificate_file(path)
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


# TLS between one socket and the protocol that speaks on it, on the library's layer without a socket.
#
# asyncio's own says nothing of a connection before its handshake is over, so that it would count in no
# limit, and keeps 256 KiB for each. Here the protocol behind hears of its peer at once: its timers and its
# counts hold for the handshake too, and where many shake hands they take turns. Flow control is the
# socket's. Knows no certificate and no node.


READ_BYTES = 16 * 1024
"""Of what is encrypted, at a time: never more than that, and one record, is held for a peer."""

NOT_ENCRYPTED = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
    b"This port is encrypted: name it with wss:// or https://.\n"
)
"""For a peer that speaks HTTP without TLS."""

_AGAIN = (ssl.SSLWantReadError, ssl.SSLWantWriteError)
_SPEAKS_HTTP = "HTTP_REQUEST"
_NOBODY = asyncio.Protocol()

Inner = asyncio.Protocol | asyncio.BufferedProtocol


class Contexts(Protocol):
    """Whoever has the certificate."""

    @property
    def context(self) -> ssl.SSLContext:
        """What the next handshake is set up with."""


class TlsPort:
    """Puts TLS before the connections of one port."""

    def __init__(self, contexts: Contexts, *, turns: FairQueue | None = None) -> None:
        self.turns = turns
        """Where handshakes wait for their turn; None where few come."""
        self._contexts = contexts
        self._shared = memoryview(bytearray(READ_BYTES))

    def wrap(self, inner: Inner, failed: Callable[[str], None]) -> "TlsConnection":
        """Put TLS before a new connection; `failed` hears what was wrong with what its peer sent."""
        return TlsConnection(self, inner, context=self._contexts.context, failed=failed)

    def lend_buffer(self) -> memoryview:
        """Return a buffer to read into: one for all where reading never overlaps, else one for each."""
        if isinstance(asyncio.get_running_loop(), asyncio.SelectorEventLoop):
            return self._shared
        return memoryview(bytearray(READ_BYTES))


class TlsConnection(asyncio.Transport, asyncio.BufferedProtocol):
    """One connection's TLS: a protocol for the socket's transport, a transport for the protocol behind."""

    def __init__(
        self, port: TlsPort, inner: Inner, *, context: ssl.SSLContext, failed: Callable[[str], None]
    ) -> None:
        super().__init__()
        self._port, self._inner, self._failed = port, inner, failed
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._buffer = port.lend_buffer()
        self._shaken = self._paused = self._waits = False
        self._over = False
        """True once nothing more is taken from the peer."""
        self._raw: asyncio.Transport

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Tell of the peer, and wait for its handshake."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - TCP transports are both
        self._raw = transport
        self._inner.connection_made(self)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Lend where the next bytes are read into."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was read; a handshake may have to wait for its turn."""
        self._incoming.write(self._buffer[:nbytes])
        turns = self._port.turns
        if self._shaken or turns is None or turns.has_time(urgent=False):
            self._go_on()
        else:
            self._waits = True
            self._raw.pause_reading()
            turns.wait(self._take_turn, urgent=False)

    def eof_received(self) -> bool | None:
        """The socket says no more; what it has said before is still handed on."""
        self._incoming.write_eof()
        if self._shaken:
            self._go_on()
        return self._end()

    def pause_writing(self) -> None:
        """The peer does not read what it is sent."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """It reads again."""
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell of the end, and let go of the protocol, which holds us."""
        inner, self._inner, self._failed = self._inner, _NOBODY, _nobody_hears
        self._over = True
        inner.connection_lost(exc)

    # What the protocol behind calls.

    def write(self, data: "bytes | bytearray | memoryview[Any]") -> None:
        """Encrypt and send; before the handshake is over there is nobody to send to."""
        if not self._shaken or self._raw.is_closing():
            return
        left = memoryview(data)
        try:
            while left:
                left = left[self._tls.write(left) :]
        except ssl.SSLError:  # nothing follows TLS's goodbye
            return
        self._flush()

    def can_write_eof(self) -> bool:
        """Either half can be closed by itself."""
        return self._raw.can_write_eof()

    def write_eof(self) -> None:
        """Say no more, and still hear."""
        self._say_goodbye()
        self._raw.write_eof()

    def close(self) -> None:
        """Say goodbye and close once everything is sent; the peer's goodbye is not waited for."""
        self._over = True
        self._say_goodbye()
        self._raw.close()

    def abort(self) -> None:
        """Drop the connection without a word."""
        self._over = True
        self._raw.abort()

    def is_closing(self) -> bool:
        """Whether it is closed, or about to be."""
        return self._raw.is_closing()

    def pause_reading(self) -> None:
        """Hand nothing on for a while."""
        self._paused = True
        self._raw.pause_reading()

    def resume_reading(self) -> None:
        """Hand on what has come meanwhile, and read on."""
        self._paused = False
        self._raw.resume_reading()
        asyncio.get_running_loop().call_soon(self._go_on)

    def is_reading(self) -> bool:
        """Whether what comes is handed on."""
        return not self._paused and self._raw.is_reading()

    def get_extra_info(self, name: str, default: object = None) -> Any:  # noqa: ANN401 - asyncio's signature
        """Tell what is known of TLS, and of the socket."""
        match name:
            case "ssl_object":
                return self._tls
            case "sslcontext":
                return self._tls.context
            case _:
                return self._raw.get_extra_info(name, default)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Say how much may wait to be sent."""
        self._raw.set_write_buffer_limits(high, low)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """How little and how much may wait to be sent."""
        return self._raw.get_write_buffer_limits()

    def get_write_buffer_size(self) -> int:
        """How much waits to be sent."""
        return self._raw.get_write_buffer_size()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Let another protocol speak from now on."""
        assert isinstance(protocol, asyncio.Protocol | asyncio.BufferedProtocol)  # noqa: S101 - all there are
        self._inner = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """The protocol that speaks."""
        return self._inner

    def _take_turn(self) -> None:
        self._waits = False
        if not self._raw.is_closing():
            self._raw.resume_reading()
            self._go_on()

    def _go_on(self) -> None:
        """Do what the bytes that have come allow: shake hands, then hand on what was said."""
        try:
            if not self._shaken and not self._over:
                self._tls.do_handshake()
                self._shaken = True
            while not (self._over or self._paused or self._raw.is_closing()):
                self._hand_on()
        except _AGAIN:
            pass
        except ssl.SSLZeroReturnError:
            self._peer_said_goodbye()
        except ssl.SSLError as error:
            self._fail(error)
        self._flush()

    def _hand_on(self) -> None:
        """Decrypt a piece and hand it on; raises what the library raises where there is none."""
        if isinstance(self._inner, asyncio.BufferedProtocol):
            buffer = memoryview(self._inner.get_buffer(-1))
            if count := self._read_into(buffer):
                self._inner.buffer_updated(count)
                return
        elif data := self._tls.read(READ_BYTES):
            self._inner.data_received(data)
            return
        raise ssl.SSLZeroReturnError

    def _read_into(self, buffer: memoryview) -> int:
        count: object = self._tls.read(len(buffer), buffer)
        assert isinstance(count, int)  # noqa: S101 - bytes only where no buffer is given
        return count

    def _peer_said_goodbye(self) -> None:
        if not self._end():
            self.close()

    def _end(self) -> bool | None:
        if self._over:
            return None
        self._over = True
        return self._inner.eof_received()

    def _fail(self, error: ssl.SSLError) -> None:
        """End a connection whose peer sent what is no TLS, or not ours; tell it why."""
        if self._over:
            return
        if isinstance(error, ssl.SSLEOFError) and self._shaken:  # `eof_received` goes on
            return
        self._over = True
        self._failed(openssl_reason(error))
        if error.reason == _SPEAKS_HTTP:
            self._outgoing.read()
            self._raw.write(NOT_ENCRYPTED)
        self._flush()
        self._raw.close()

    def _say_goodbye(self) -> None:
        if not self._shaken or self._raw.is_closing():
            return
        with contextlib.suppress(ssl.SSLError):  # the peer's own has not come, and is not waited for
            self._tls.unwrap()
        self._flush()

    def _flush(self) -> None:
        if not self._raw.is_closing() and (data := self._outgoing.read()):
            self._raw.write(data)


def _nobody_hears(_reason: str) -> None:
    """What fails once it is over is nobody's business."""
