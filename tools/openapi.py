"""The description of the operators' API as a file, for those who make a client of it.

Written by `make schema`; a registry answers the same at `/openapi.json`. No command of the program.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from gpu_agent.server.api.app import create_app


def described() -> str:
    """Write the description."""
    return json.dumps(create_app().openapi(), indent=2) + "\n"


def main(arguments: Iterable[str]) -> int:
    """Write the description into the documents that are named."""
    for name in arguments:
        Path(name).write_text(described(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
