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
from typing import Any

from gpu_agent.runtime.logs import Logger
from gpu_agent.runtime.tasks import in_thread
from gpu_agent.runtime.tls.certificate import Certificate, pin_of, read_certificate_file
from gpu_agent.runtime.tls.contexts import OwnCertificate, TlsFileError, check_own, server_context
from gpu_agent.runtime.tls.errors import openssl_reason
from gpu_agent.server.event_loop import reads_overlap
from gpu_agent.server.fair_queue import FairQueue, Work

CHECK_SECONDS = 30.0
"""How often the files are checked for changes."""
_READ_TIMEOUT_SECONDS = 10.0
WARN_DAYS = 14
"""A certificate that expires sooner is logged once a day."""

_DAY_SECONDS = 86400.0
_LOG = Logger("server.tls")

_FileStates = tuple[tuple[int, int, int, int] | None, ...]
"""Inode, size, and when content and mode last changed, of each file; None for one that is missing."""

READ_BYTES = 16 * 1024
"""Encrypted bytes of one read: at most this and one record are held for a peer."""

NOT_ENCRYPTED = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
    b"This port is encrypted: name it with wss:// or https://.\n"
)
"""For a peer that speaks HTTP without TLS."""

_WANTS_MORE = (ssl.SSLWantReadError, ssl.SSLWantWriteError)
_PLAIN_HTTP = "HTTP_REQUEST"
_CLOSED = asyncio.Protocol()

Inner = asyncio.Protocol | asyncio.BufferedProtocol


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """The certificate files of the registry's ports, and whether clients need certificates."""

    own: OwnCertificate
    client_ca_file: Path | None = None
    """Issues the clients' certificates; None requests none from them."""
    client_required: bool = True
    """Whether a client without a certificate is refused."""

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that are read."""
        return (*self.own.files, *([self.client_ca_file] if self.client_ca_file else []))


@dataclass(frozen=True, slots=True)
class _Loaded:
    context: ssl.SSLContext
    begins_at: float
    ends_at: float
    pin: str
    files: _FileStates


class Encryption:
    """The certificate in use, and the TLS context of new connections."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises `TlsFileError`."""
        self._files = files
        self._loaded = _load(files)
        self._refused: _FileStates | None = None
        """Files that were read and could not be used, or whose disk does not answer."""
        self._refusal: str | None = None
        """Why the files that were read last are not in use."""
        self._warned_at: float | None = None
        self.renewed: Callable[[], Awaitable[None]] = _do_nothing
        """Called when another certificate is in use."""

    @property
    def files(self) -> TlsFiles:
        """The files that are read."""
        return self._files

    @property
    def pin(self) -> str:
        """The pin of the key in use: it identifies the registry, whatever authority issued it."""
        return self._loaded.pin

    @property
    def context(self) -> ssl.SSLContext:
        """The context of the next handshake."""
        return self._loaded.context

    @property
    def ends_at(self) -> float:
        """When the certificate expires, in Unix seconds."""
        return self._loaded.ends_at

    async def reload(self, *, force: bool = True) -> bool:
        """Read the files again, and return whether they are usable; unless `force`, only if they changed."""
        try:
            states = await in_thread(
                "tls-files", lambda: _file_states(self._files), deadline_seconds=_READ_TIMEOUT_SECONDS
            )
            if not force and states in (self._loaded.files, self._refused):
                return True
            self._refused = states
            loaded = await in_thread(
                "tls-files", lambda: _load(self._files), deadline_seconds=_READ_TIMEOUT_SECONDS
            )
        except TimeoutError:
            return self._refuse("the disk with the certificate does not answer")
        except TlsFileError as error:
            return self._refuse(str(error))
        if loaded.ends_at <= time.time():
            return self._refuse(
                f"the certificate in {self._files.own.cert_file} has expired: have it renewed"
            )
        if (early := self._not_yet_valid(loaded)) is not None:
            return self._refuse(early)
        self._loaded, self._refused, self._warned_at, self._refusal = loaded, None, None, None
        file = str(self._files.own.cert_file)
        _LOG.info("certificate_loaded", file=file, days=self._days_left(), pin=self.pin)
        await self.renewed()
        return True

    @property
    def problem(self) -> str | None:
        """Say why peers refuse the certificate, or a newer one is not in use; None where all is well."""
        if self.ends_at <= time.time():
            return f"the certificate in {self._files.own.cert_file} has expired: have it renewed"
        if self._refusal is not None:
            return f"{self._refusal} (the certificate before it serves on)"
        return self._not_yet_valid(self._loaded)

    async def watch(self) -> None:
        """Check the files and the certificate's remaining time until cancelled."""
        while True:
            self._warn_of_dates()
            await asyncio.sleep(CHECK_SECONDS)
            await self.reload(force=False)

    def _not_yet_valid(self, loaded: _Loaded) -> str | None:
        if loaded.begins_at <= time.time():
            return None
        begins = time.strftime("%F %H:%M UTC", time.gmtime(loaded.begins_at))
        return (
            f"the certificate in {self._files.own.cert_file} is not valid before {begins}: agents refuse it "
            "until then; see that this machine's clock is right, or have another one issued"
        )

    def _refuse(self, problem: str) -> bool:
        self._refusal = problem
        _LOG.error("certificate_unusable", problem=problem, days=self._days_left())
        return False

    def _warn_of_dates(self) -> None:
        """Log once a day that the certificate expires soon or has expired, or that it is not valid yet."""
        now, days = time.monotonic(), self._days_left()
        early = self._not_yet_valid(self._loaded)
        if early is not None and (self._warned_at is None or now - self._warned_at > _DAY_SECONDS):
            self._warned_at = now
            _LOG.error("certificate_unusable", problem=early, days=days)
        if days < WARN_DAYS and (self._warned_at is None or now - self._warned_at > _DAY_SECONDS):
            self._warned_at = now
            _LOG.warning("certificate_expiring", file=str(self._files.own.cert_file), days=days)

    def _days_left(self) -> int:
        """How many days the certificate in use is valid; below 0, it has expired."""
        return int((self.ends_at - time.time()) // _DAY_SECONDS)


class RenewedCertificate:
    """A certificate of links between instances or of clients, read again when its files change.

    `use` shows it in the next connections, on this loop; it raises `TlsFileError`.
    """

    def __init__(self, own: OwnCertificate, use: Callable[[], None]) -> None:
        self._files = TlsFiles(own=own)
        self._use = use
        self._read = _file_states(self._files)

    async def watch(self) -> None:
        """Check the files until cancelled."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            await self.reload()

    async def reload(self) -> None:
        """Show the certificate in the files, if they changed and it can be used."""
        try:
            read = await in_thread("tls-files", self._look, deadline_seconds=_READ_TIMEOUT_SECONDS)
            if read is None:
                return
            self._use()
        except TimeoutError:
            _LOG.error("certificate_unusable", problem="the disk with the certificate does not answer")
        except (TlsFileError, OSError, ValueError) as error:
            _LOG.error("certificate_unusable", problem=str(error))
        else:
            days = int((read.ends_at - time.time()) // _DAY_SECONDS)
            file = str(self._files.own.cert_file)
            _LOG.info("certificate_loaded", file=file, days=days, pin=pin_of(read))

    def _look(self) -> Certificate | None:
        """Return the certificate in files that changed; raises what `reload` logs where it cannot be used."""
        states = _file_states(self._files)
        if states == self._read:
            return None
        self._read = states
        check_own(self._files.own)
        read = read_certificate_file(self._files.own.cert_file)
        if not read.begins_at <= time.time() < read.ends_at:
            raise TlsFileError(
                f"the certificate in {self._files.own.cert_file} has expired or is not valid yet; the one "
                "before it stays in use: have another one issued, and see that this machine's clock is right"
            )
        return read


class TlsPort:
    """Puts TLS before the connections of one port."""

    def __init__(self, encryption: Encryption, *, fair_queue: FairQueue | None = None) -> None:
        self.fair_queue = fair_queue
        """Where handshakes wait; None where few are expected."""
        self._encryption = encryption
        self._shared = memoryview(bytearray(READ_BYTES))

    def wrap(self, inner: Inner, failed: Callable[[str], None]) -> "TlsConnection":
        """Put TLS before a new connection; `failed` receives the reason when the peer's TLS is wrong."""
        return TlsConnection(self, inner, context=self._encryption.context, failed=failed)

    def lend_buffer(self) -> memoryview:
        """Return a buffer to read into: one for all where reads never overlap, else one for each."""
        return memoryview(bytearray(READ_BYTES)) if reads_overlap() else self._shared


class TlsConnection(asyncio.Transport, asyncio.BufferedProtocol):
    """One connection's TLS: a protocol for the socket's transport, a transport for the inner protocol."""

    def __init__(
        self, port: TlsPort, inner: Inner, *, context: ssl.SSLContext, failed: Callable[[str], None]
    ) -> None:
        super().__init__()
        self._port, self._inner, self._failed = port, inner, failed
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._buffer = port.lend_buffer()
        self._handshake_done = self._paused = False
        self._over = False
        """True once no further input is taken from the peer."""
        self._raw: asyncio.Transport

    # What asyncio calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # TCP's is both
        """Report the connection to the inner protocol at once, before the handshake."""
        self._raw = transport
        self._inner.connection_made(self)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Return where the next bytes are read into."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was read; a handshake may have to wait in the fair queue."""
        self._incoming.write(self._buffer[:nbytes])
        fair_queue = self._port.fair_queue
        if self._handshake_done or fair_queue is None or fair_queue.has_time(Work.NEW):
            self._advance()
        else:
            self._raw.pause_reading()
            fair_queue.wait(self._take_turn, Work.NEW)

    def eof_received(self) -> bool | None:
        """The peer sends no more; what it sent before is still handed on."""
        self._incoming.write_eof()
        if self._handshake_done:
            self._advance()
        return self._end()

    def pause_writing(self) -> None:
        """The peer does not read what we send."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """It reads again."""
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the end, and drop the reference cycle with the inner protocol."""
        inner, self._inner, self._failed = self._inner, _CLOSED, _ignore
        self._over = True
        inner.connection_lost(exc)

    # What the inner protocol calls.

    def write(self, data: "bytes | bytearray | memoryview[Any]") -> None:
        """Encrypt and send; before the handshake is complete data is dropped."""
        if not self._handshake_done or self._raw.is_closing():
            return
        left = memoryview(data)
        try:
            while left:
                left = left[self._tls.write(left) :]
        except ssl.SSLError:  # nothing may follow close_notify
            return
        self._flush()

    def can_write_eof(self) -> bool:
        """Whether one direction can be closed alone."""
        return self._raw.can_write_eof()

    def write_eof(self) -> None:
        """Close our direction, and still receive."""
        self._send_close_notify()
        self._raw.write_eof()

    def close(self) -> None:
        """Send close_notify and close once everything is sent; the peer's close_notify is not awaited."""
        self._over = True
        self._send_close_notify()
        self._raw.close()

    def abort(self) -> None:
        """Drop the connection at once."""
        self._over = True
        self._raw.abort()

    def is_closing(self) -> bool:
        """Whether it is closed, or about to be."""
        return self._raw.is_closing()

    def pause_reading(self) -> None:
        """Hand on no data until `resume_reading`."""
        self._paused = True
        self._raw.pause_reading()

    def resume_reading(self) -> None:
        """Hand on what has arrived meanwhile, and read on."""
        self._paused = False
        self._raw.resume_reading()
        asyncio.get_running_loop().call_soon(self._advance)

    def is_reading(self) -> bool:
        """Whether data is handed on."""
        return not self._paused and self._raw.is_reading()

    def get_extra_info(self, name: str, default: object = None) -> Any:  # noqa: ANN401 - asyncio's signature
        """Return information about TLS or the socket."""
        match name:
            case "ssl_object":
                return self._tls
            case "sslcontext":
                return self._tls.context
            case _:
                return self._raw.get_extra_info(name, default)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set how many bytes may wait to be sent."""
        self._raw.set_write_buffer_limits(high, low)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """The low and high limits of bytes that wait to be sent."""
        return self._raw.get_write_buffer_limits()

    def get_write_buffer_size(self) -> int:
        """How many bytes wait to be sent."""
        return self._raw.get_write_buffer_size()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Replace the inner protocol."""
        assert isinstance(protocol, asyncio.Protocol | asyncio.BufferedProtocol)  # noqa: S101 - all there are
        self._inner = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """The inner protocol."""
        return self._inner

    def _take_turn(self) -> None:
        if not self._raw.is_closing():
            self._raw.resume_reading()
            self._advance()

    def _advance(self) -> None:
        """Go as far as the received bytes allow: the handshake, then decrypted data."""
        try:
            if not self._handshake_done and not self._over:
                self._tls.do_handshake()
                self._handshake_done = True
            while not (self._over or self._paused or self._raw.is_closing()):
                self._hand_on()
        except _WANTS_MORE:
            pass
        except ssl.SSLZeroReturnError:
            self._peer_closed()
        except ssl.SSLError as error:
            self._fail(error)
        self._flush()

    def _hand_on(self) -> None:
        """Decrypt a piece and hand it on; raises what `ssl` raises where there is none."""
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

    def _peer_closed(self) -> None:
        if not self._end():
            self.close()

    def _end(self) -> bool | None:
        if self._over:
            return None
        self._over = True
        return self._inner.eof_received()

    def _fail(self, error: ssl.SSLError) -> None:
        """End a connection whose peer sent something other than our TLS; plain HTTP gets an answer."""
        if self._over:
            return
        if isinstance(error, ssl.SSLEOFError) and self._handshake_done:  # `eof_received` goes on
            return
        self._over = True
        self._failed(openssl_reason(error))
        if error.reason == _PLAIN_HTTP:
            self._outgoing.read()
            self._raw.write(NOT_ENCRYPTED)
        self._flush()
        self._raw.close()

    def _send_close_notify(self) -> None:
        if not self._handshake_done or self._raw.is_closing():
            return
        with contextlib.suppress(ssl.SSLError):  # the peer's own has not arrived, and is not awaited
            self._tls.unwrap()
        self._flush()

    def _flush(self) -> None:
        if not self._raw.is_closing() and (data := self._outgoing.read()):
            self._raw.write(data)


def _ignore(_reason: str) -> None:
    """Ignore a failure after the end."""


def _load(files: TlsFiles) -> _Loaded:
    """Raises `TlsFileError`."""
    states = _file_states(files)
    context = server_context(
        files.own, client_ca_file=files.client_ca_file, client_required=files.client_required
    )
    path = files.own.cert_file
    try:
        certificate = read_certificate_file(path)
    except (OSError, ValueError) as error:
        raise TlsFileError(f"the certificate in {path} cannot be read ({error}): name another") from None
    return _Loaded(context, certificate.begins_at, certificate.ends_at, pin_of(certificate), states)


async def _do_nothing() -> None:
    """Stands in where no renewal is followed."""


def _file_states(files: TlsFiles) -> _FileStates:
    return tuple(_file_state(path) for path in files.files)


def _file_state(path: Path) -> tuple[int, int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
