"""How a command knows the registry at an `https://` address, and proves itself to it, with what else it asks.

This machine's own registry is known by the key that it left the pin of, any other by an authority: the
system's, or that of `--ca-file`. What goes wrong is told with the next step. Opens no connection.
"""

import argparse
import http.client
import os
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from gpu_agent.cli.asking.address import Place
from gpu_agent.cli.outcome import ExitCode, Failure
from gpu_agent.runtime.pins import PinError
from gpu_agent.runtime.tls_contexts import OwnCertificate, TlsFileError, for_client
from gpu_agent.runtime.tls_troubles import Terms, trouble_of

_TERMS = Terms(authority="--ca-file", pin=None, own="--cert-file and --key-file", plain="http://")
_OPTIONS = (
    ("--ca-file", "GPU_REGISTRY_CA_FILE", "vouches for an https:// registry (default: ${}, else the system)"),
    (
        "--cert-file",
        "GPU_REGISTRY_CERT_FILE",
        "your certificate, if the registry asks for one (default: ${})",
    ),
    ("--key-file", "GPU_REGISTRY_KEY_FILE", "its key (default: ${}, else in the certificate's file)"),
)
"""Each with the variable that stands for it."""


def add_tls_options(parser: argparse.ArgumentParser) -> None:
    """Add `--ca-file`, `--cert-file` and `--key-file`."""
    for option, variable, meaning in _OPTIONS:
        parser.add_argument(option, metavar="FILE", type=Path, help=meaning.format(variable))


def context_of(place: Place, arguments: argparse.Namespace) -> ssl.SSLContext | None:
    """Make what a handshake is set up with, None for `http://`; raises `Failure`."""
    if not place.url.startswith("https://"):
        return None
    ca_file, cert_file, key_file = (_given(arguments, option, variable) for option, variable, _ in _OPTIONS)
    own = None if cert_file is None else OwnCertificate(cert_file, key_file)
    by_pin = place.pin is not None and arguments.ca_file is None
    try:
        return for_client(
            ca_file=None if by_pin else ca_file,
            own=own,
            pins=frozenset({place.pin} if by_pin and place.pin is not None else ()),
        )
    except TlsFileError as error:
        raise Failure(str(error), code=ExitCode.CONFIGURATION) from None


class EncryptedHandler(urllib.request.HTTPSHandler):
    """Opens encrypted connections with one context."""

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(context=context)
        self._trusting = context

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """Ask over an encrypted connection."""
        return self.do_open(_Connection, req, context=self._trusting)


class _Connection(http.client.HTTPSConnection):
    """One whose peer may say why it hangs up before all is sent, as one does that wants a certificate."""

    def send(self, data: Any) -> None:  # noqa: ANN401 - the library's own
        """Send; raises what TLS has to say where that fails."""
        if self.sock is None:
            self.connect()
        try:
            super().send(data)
        except OSError:
            self.sock.recv(1)
            raise


def trouble(error: OSError, url: str, host: str) -> str | None:
    """Say what is wrong with the encryption at a URL, if that is what an error means."""
    found = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(found, PinError):
        return (
            f"what listens at {url} is not this machine's own registry, or no longer: its key has the pin "
            f"{found.seen}, and the registry left another one beside its operator token. Nothing was sent. "
            "If that one is meant, name it with --api URL and who vouches for it with --ca-file FILE"
        )
    if isinstance(found, ssl.SSLError):
        return f"nothing was asked of {url}: {trouble_of(found, host, _TERMS)}"
    return None


def _given(arguments: argparse.Namespace, option: str, variable: str) -> Path | None:
    given: Path | None = getattr(arguments, option.removeprefix("--").replace("-", "_"))
    stated = os.environ.get(variable)
    return given if given is not None else (Path(stated).expanduser() if stated else None)
