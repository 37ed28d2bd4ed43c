"""Which token a handshake carries (§2): the node token once there is one, the join token before.

The agent reads the join token's file for each handshake, so that an operator can replace it. It never logs
a token, and never sends one that is not printable ASCII. A file that everybody on the machine may read is
used, and the log warns. A file behind a link, as containers receive their secrets, is not checked.
"""

import os
import select
import stat
from dataclasses import dataclass, field
from pathlib import Path

from gpu_agent.node.identity import IdentityFile
from gpu_agent.runtime.logs import Logger
from gpu_agent.session.types import Credential

_MAX_BYTES = 4096
_NON_BLOCKING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
"""Opening a pipe without a writer would block the thread for ever."""
_PIPE_SECONDS = 1.0
"""How long the writer of a pipe, such as a shell's `<(…)`, may take."""
_OTHERS = 0o007
"""Not the group: there the mask of an access control list shows."""
_NO_TOKEN = "it holds no token"  # noqa: S105 - a sentence
_SERVICE_FILE = "/etc/gpu-agent/join-token"
"""Where the unit has systemd read the join token."""
JOIN_PREFIX = "gpuj_"
NOT_OURS = (
    f"holds no join token of this kind of registry: one is a line that begins with {JOIN_PREFIX}, as "
    "`gpu-agent registry token create` makes it"
)
"""What follows the name of a file with something else; an older scheduler may have other tokens (§9)."""
_LOG = Logger("node")


@dataclass(slots=True)
class Credentials:
    """The agent's tokens; a join token's file takes precedence over the token itself."""

    identity: IdentityFile
    join_token_file: Path | None = None
    join_token: str | None = field(default=None, repr=False)
    problem: str | None = field(default=None, init=False)
    """Why the last handshake carried no join token, with the next step."""
    doubt: str | None = field(default=None, init=False)
    """Why what the last handshake carried is probably no join token; the registry decides."""

    def token_for(self, credential: Credential) -> str | None:
        """Return the token to send, None to send none."""
        node_token = self.identity.identity.node_token
        self.problem = self.doubt = None
        if credential is Credential.BEST and node_token is not None:
            return node_token
        return self._join_token()

    def _join_token(self) -> str | None:
        if self.join_token_file is not None:
            found = read_token_file(self.join_token_file)
            if found.exposed_mode is not None:
                _LOG.warning("join_token_exposed", file=str(self.join_token_file), mode=found.exposed_mode)
            return self._readable(found.token, str(self.join_token_file), found.problem)
        if self.join_token is None:
            return None
        return self._readable(parse_token(self.join_token), "the settings", _NO_TOKEN)

    def _readable(self, token: str | None, source: str, reason: str) -> str | None:
        if token is None:
            _LOG.warning("join_token_unreadable", file=source, reason=reason)
            self.problem = f"no join token was sent: {source}: {reason}. {_where_to_put_it(source)}"
        elif not token.startswith(JOIN_PREFIX):
            self.doubt = f"{source} {NOT_OURS}"
        return token


def _where_to_put_it(source: str) -> str:
    handed_over = os.environ.get("CREDENTIALS_DIRECTORY")
    if handed_over is not None and Path(source).parent == Path(handed_over):
        return (
            f"systemd copied it from {_SERVICE_FILE} when the service started: put the token there, mode "
            "0600, and run `systemctl restart gpu-agent`"
        )
    return "Put the token there, readable by the agent's user; the agent reads it at its next attempt"


@dataclass(frozen=True, slots=True)
class TokenFile:
    """The content of a join token's file."""

    token: str | None = field(repr=False)
    problem: str = ""
    """Why there is no token in it."""
    exposed_mode: str | None = None
    """The file's mode, where every user of the machine may read or write it."""


def read_token_file(file: Path) -> TokenFile:
    """Read a join token's file; logs nothing."""
    try:
        with os.fdopen(os.open(file, os.O_RDONLY | _NON_BLOCKING), "rb", buffering=0) as opened:
            mode = os.fstat(opened.fileno()).st_mode
            if stat.S_ISFIFO(mode):
                select.select([opened], [], [], _PIPE_SECONDS)
            text = (opened.read(_MAX_BYTES) or b"").decode("ascii", "replace")
    except OSError as error:
        return TokenFile(None, error.strerror or str(error))
    open_to_all = mode & _OTHERS and os.name == "posix" and not file.is_symlink()
    token = parse_token(text)
    return TokenFile(
        token,
        "" if token is not None else _NO_TOKEN,
        f"{stat.S_IMODE(mode):04o}" if open_to_all else None,
    )


def parse_token(text: str) -> str | None:
    """Return the token in a text; None where it holds none."""
    token = text.strip()
    return token if token and token.isascii() and token.isprintable() and " " not in token else None
