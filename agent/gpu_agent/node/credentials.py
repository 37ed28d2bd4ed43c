"""Which token a handshake carries (§2): the node token once there is one, the join token before.

The join token's file is read anew for each handshake, so that an operator can replace it. No token
is ever logged, and one that is not printable ASCII is not sent. A file that everybody on the machine may
read is taken, and told of; one behind a link, as containers are handed their secrets, is theirs to judge.
"""

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from gpu_agent.node.identity import IdentityFile
from gpu_agent.runtime.logs import EventLog
from gpu_agent.session.actions import Credential

_LONGEST = 4096
_ANYBODY = 0o007
"""Not the group: where a service manager grants a file by a list, its mask shows there."""
_LOG = EventLog("node")


@dataclass(frozen=True, slots=True)
class Credentials:
    """Where the agent's tokens are; a join token's file goes before the token itself."""

    identity: IdentityFile
    join_token_file: Path | None = None
    join_token: str | None = field(default=None, repr=False)

    def token_for(self, credential: Credential) -> str | None:
        """Return the token to send, None to send none."""
        node_token = self.identity.identity.node_token
        if credential is Credential.BEST and node_token is not None:
            return node_token
        return self._join_token()

    def _join_token(self) -> str | None:
        if self.join_token_file is not None:
            return _read(self.join_token_file)
        return None if self.join_token is None else _sendable(self.join_token, "the settings")


def _read(file: Path) -> str | None:
    try:
        with file.open("rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            if mode & _ANYBODY and os.name == "posix" and not file.is_symlink():
                _LOG.warning("join_credential_exposed", file=str(file), mode=f"{stat.S_IMODE(mode):04o}")
            return _sendable(opened.read(_LONGEST).decode("ascii", "replace"), str(file))
    except OSError as error:
        _complain(str(file), error.strerror or str(error))
        return None


def _sendable(text: str, source: str) -> str | None:
    token = text.strip()
    if not token or not token.isascii() or not token.isprintable():
        _complain(source, "it holds no token")
        return None
    return token


def _complain(source: str, reason: str) -> None:
    _LOG.warning("join_credential_unreadable", file=source, reason=reason)
