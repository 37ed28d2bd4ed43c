"""The demo's tokens: the one that its registry left for its operator, and the one by which its agents join.

They go the way that true ones go: through the state directory, over the operators' API, in files.
"""

import os
from pathlib import Path

from gpu_agent.cli.asking.api import Api
from gpu_agent.cli.asking.operator_token import OperatorToken
from gpu_agent.cli.outcome import Failure
from gpu_agent.runtime.state_dir import OPERATOR_TOKEN_FILE

JOIN_TTL_SECONDS = 600.0


def operator_token(state_dir: Path) -> OperatorToken:
    """Read what the registry left at its first start."""
    file = state_dir / OPERATOR_TOKEN_FILE
    try:
        return OperatorToken(file.read_text(encoding="ascii").strip(), str(file))
    except OSError as error:
        raise Failure(f"the demo's registry has left no token in {file}: {error.strerror or error}") from None


def write_join_token(api: Api, file: Path, *, uses: int) -> Path:
    """Have a join token made, and put it where the agents alone read it."""
    asked = {"kind": "join", "uses": uses, "ttl_seconds": JOIN_TTL_SECONDS, "note": "the demo's agents"}
    made = api.post("/v1/tokens", asked, {"token": str})
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as opened:
        opened.write(made["token"])
    return file
