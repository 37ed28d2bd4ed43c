"""Which token a handshake carries (§2): the node token once there is one, the join token before.

The join token's file is read anew for each handshake, so that an operator can replace it. No token
is ever logged, and one that is not printable ASCII is not sent.
"""

from dataclasses import dataclass
from pathlib import Path

from gpu_agent.node.identity import IdentityFile
from gpu_agent.runtime.logs import EventLog
from gpu_agent.session.actions import Credential

_LONGEST = 4096
_LOG = EventLog("node")


@dataclass(frozen=True, slots=True)
class Credentials:
    """Where the agent's tokens are."""

    identity: IdentityFile
    join_token_file: Path | None = None

    def token_for(self, credential: Credential) -> str | None:
        """Return the token to send, None to send none."""
        node_token = self.identity.identity.node_token
        if credential is Credential.BEST and node_token is not None:
            return node_token
        return self._join_token()

    def _join_token(self) -> str | None:
        if self.join_token_file is None:
            return None
        try:
            with self.join_token_file.open("rb") as file:
                token = file.read(_LONGEST).strip().decode("ascii", "replace")
        except OSError as error:
            _complain(self.join_token_file, error.strerror or str(error))
            return None
        if not token or not token.isascii() or not token.isprintable():
            _complain(self.join_token_file, "it holds no token")
            return None
        return token


def _complain(file: Path, reason: str) -> None:
    _LOG.warning("join_credential_unreadable", file=str(file), reason=reason)
