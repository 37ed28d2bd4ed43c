"""What a receiver needs on this machine: its files as they are now, and its program.

It needs no extra, so that `config check` says of a receiver what an attempt would say. A problem names a
file, and nothing of what it holds.
"""

import errno
import os
import shutil
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from gpu_agent.runtime.proxy import Proxy
from gpu_agent.runtime.tls.contexts import TlsFileError, client_context
from gpu_agent.server.notify.command import command_environment, not_started
from gpu_agent.server.notify.settings import ReceiverSettings, check_url, is_plaintext

_MOST_FILE_BYTES = 8192
_SHORTEST_SECRET = 16
_OTHERS = 0o007


class UnusableError(Exception):
    """Something that a person has to change."""


@dataclass(frozen=True, slots=True)
class Access:
    """How a webhook is reached now."""

    url: str
    secret: bytes | None
    context: ssl.SSLContext | None
    """None for a URL that is not encrypted."""
    proxy: Proxy | None = None


def unusable(receiver: ReceiverSettings, *, plaintext: bool) -> str | None:
    """Say why no message can reach a receiver from this machine, as far as that shows without sending one."""
    if receiver.command:
        return _command_problem(receiver.command[0])
    try:
        check_encrypted(read_access(receiver).url, plaintext=plaintext)
    except UnusableError as error:
        return str(error)
    return None


def read_access(receiver: ReceiverSettings) -> Access:
    """Read the files that a webhook needs; blocks; raises `UnusableError`."""
    url = receiver.url
    if url is None and receiver.url_file is not None:
        try:
            url = check_url(_secret("url_file", receiver.url_file).decode())
        except ValueError as error:
            raise UnusableError(f"url_file {receiver.url_file}: {error}") from None
    secret = None if receiver.secret_file is None else _secret("secret_file", receiver.secret_file)
    if secret is not None and len(secret) < _SHORTEST_SECRET:
        raise UnusableError(
            f"the secret in {receiver.secret_file} is shorter than {_SHORTEST_SECRET} characters: make one "
            "with `openssl rand -hex 32`"
        )
    context = None
    if url is not None and urlsplit(url).scheme == "https":
        try:
            context = client_context(ca_file=receiver.ca_file, own=None)
        except TlsFileError as error:
            raise UnusableError(str(error)) from None
    proxy = _read_proxy(receiver)
    if proxy is not None and context is None:
        raise UnusableError("a proxy gets only encrypted messages: write https://, or leave proxy out")
    return Access(url or "", secret, context, proxy)


def check_encrypted(url: str, *, plaintext: bool) -> None:
    """Raise `UnusableError` where others could read the messages; with `plaintext` that is accepted."""
    if is_plaintext(url) and not plaintext:
        raise UnusableError(
            f"http://{urlsplit(url).hostname or ''} is not encrypted: write https://, or set "
            "insecure_plaintext on a network where you trust every machine"
        )


def _command_problem(program: str) -> str | None:
    path = command_environment()["PATH"]
    if shutil.which(program, path=path) is not None:
        return None
    is_there = shutil.which(program, mode=os.F_OK, path=path) is not None
    return not_started(program, os.strerror(errno.EACCES if is_there else errno.ENOENT))


def _read_proxy(receiver: ReceiverSettings) -> Proxy | None:
    if receiver.proxy_file is None:
        return None if receiver.proxy is None else Proxy.parse(receiver.proxy)
    try:
        return Proxy.parse(_secret("proxy_file", receiver.proxy_file).decode())
    except ValueError as error:
        raise UnusableError(f"proxy_file {receiver.proxy_file}: {error}") from None


def _secret(name: str, path: Path) -> bytes:
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise UnusableError(f"{name} {path} is no file")
        with path.open("rb") as file:
            content = file.read(_MOST_FILE_BYTES).strip()
    except OSError as error:
        raise UnusableError(f"{name} {path} cannot be read ({error.strerror})") from None
    if os.name == "posix" and mode & _OTHERS:
        raise UnusableError(
            f"every user of this machine may read {name} {path}: run `chmod o-rwx {path}`, and replace the "
            "secret if others use the machine"
        )
    if not content:
        raise UnusableError(f"{name} {path} is empty")
    return content
