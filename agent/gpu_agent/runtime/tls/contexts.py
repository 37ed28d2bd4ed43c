"""TLS contexts of both ends, made from files: the own certificate, and the authorities to trust.

TLS 1.2 or newer, and no session is resumed: each handshake proves the peer again. A key file that other users
may read is refused, and no environment variable can make a process write its keys down (`SSLKEYLOGFILE`), as
the library's default contexts let it.
"""

import os
import ssl
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

from gpu_agent.records import dataclass
from gpu_agent.runtime.tls.certificate import require_pins

_ANYBODY = 0o007
"""Not the group: a service manager, or Debian's `ssl-cert`, grants a key by one."""
_ENCRYPTED = "the key is encrypted"
_MISMATCH = "key values mismatch"


class TlsFileError(Exception):
    """A file cannot be used for TLS: the owner must fix it. A sentence with the next step."""


@dataclass(frozen=True, slots=True)
class OwnCertificate:
    """What this side proves itself with: PEM files."""

    cert_file: Path
    """The certificate, and behind it those that lead to its authority."""
    key_file: Path | None = None
    """None: the key stands in the certificate's file."""

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of it."""
        return (self.cert_file,) if self.key_file is None else (self.cert_file, self.key_file)


def client_context(
    *, ca_file: Path | None, own: OwnCertificate | None, pins: frozenset[str] = frozenset()
) -> ssl.SSLContext:
    """Trust who is vouched for by the file's authorities, else by the system's; raises `TlsFileError`.

    With pins the peer must have one of these keys; where no file is named besides, nothing else is asked
    of it: a pin stands for authority, name and dates.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks the chain and the name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if pins:
        require_pins(context, pins)
    if pins and ca_file is None:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    elif ca_file is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        _trust(context, ca_file)
    if own is not None:
        _load_own(context, own)
    return context


def server_context(
    own: OwnCertificate, *, client_ca_file: Path | None = None, client_required: bool = True
) -> ssl.SSLContext:
    """Prove itself, and ask clients to where a file says who vouches for them; raises `TlsFileError`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    _load_own(context, own)
    if client_ca_file is not None:
        _trust(context, client_ca_file)
        context.verify_mode = ssl.CERT_REQUIRED if client_required else ssl.CERT_OPTIONAL
    return context


class RenewableContext:
    """A context for threads that connect with it: it is made again when its files change, never changed."""

    def __init__(self, make: Callable[[], ssl.SSLContext]) -> None:
        """Raises `TlsFileError`."""
        self._make = make
        self.context = make()

    def renew(self) -> None:
        """Make the context of the next connections; raises `TlsFileError`."""
        self.context = self._make()


def check_own(own: OwnCertificate) -> None:
    """Raise `TlsFileError` where no side could prove itself with these files."""
    _load_own(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), own)


def show_renewed(own: OwnCertificate, contexts: Iterable[ssl.SSLContext]) -> None:
    """Show a certificate that was checked in the next handshakes of contexts in use.

    Only on the loop that makes their connections: OpenSSL lets no other thread use a context that changes.
    """
    for context in contexts:
        _load_own(context, own)


def _trust(context: ssl.SSLContext, ca_file: Path) -> None:
    """Trust each certificate of a file, an authority's as one that was signed by itself."""
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        _check_file(ca_file)
        context.load_verify_locations(cafile=ca_file)
    except ssl.SSLError:
        raise TlsFileError(
            f"{ca_file} holds no certificate in PEM that could vouch for another: name a file that does"
        ) from None
    except OSError as error:
        raise _unreadable(ca_file, error) from None


def _load_own(context: ssl.SSLContext, own: OwnCertificate) -> None:
    holds_key = own.key_file or own.cert_file
    try:
        for path in own.files:
            _check_file(path)
        exposed = _exposed_mode(holds_key)
    except OSError as error:
        raise _unreadable(Path(str(error.filename)), error) from None
    if exposed is not None:
        raise TlsFileError(
            f"everybody on this machine may read the key in {holds_key} (mode {exposed}): run "
            f"`chmod 600 {holds_key}`, and have another made if others use this machine"
        )
    try:
        context.load_cert_chain(own.cert_file, own.key_file, password=_no_password)
    except ssl.SSLError as error:
        raise TlsFileError(_pair_problem(error, own)) from None
    except OSError as error:
        raise _unreadable(own.cert_file, error) from None
    except ValueError:  # what `_no_password` raised
        raise TlsFileError(
            f"the key in {holds_key} is encrypted: write it down without a passphrase, readable for its "
            f"user alone (`openssl pkey -in {holds_key} -out FILE`)"
        ) from None


def _check_file(path: Path) -> None:
    """Raises `OSError` where it cannot be opened. A pipe or a device would block its reader."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise TlsFileError(f"{path} is no file: name one that holds a certificate or a key in PEM")
    path.open("rb").close()


def _no_password() -> NoReturn:
    """Instead of a question at the terminal."""
    raise ValueError(_ENCRYPTED)


def _exposed_mode(path: Path) -> str | None:
    """Return the mode of a file that everybody may read; behind a link it is a container's to judge."""
    if os.name != "posix" or path.is_symlink():
        return None
    mode = path.stat().st_mode
    return f"{stat.S_IMODE(mode):04o}" if mode & _ANYBODY else None


def _pair_problem(error: ssl.SSLError, own: OwnCertificate) -> str:
    cert, key = own.cert_file, own.key_file or own.cert_file
    reason = (error.reason or str(error)).replace("_", " ").lower()
    if reason == _MISMATCH:
        return f"the key in {key} is not that of the certificate in {cert}: name the two that match"
    return (
        f"{cert} and {key} hold no certificate and key in PEM that OpenSSL can use ({reason}): "
        f"see `openssl x509 -in {cert} -text` and `openssl pkey -in {key} -noout`"
    )


def _unreadable(path: Path, error: OSError) -> TlsFileError:
    return TlsFileError(
        f"{path} cannot be read ({error.strerror or error}): check its name, owner and permissions"
    )
