"""The NVML child under test: started with a fake NVML, asked in its own words."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from gpu_agent.probe.nvml_process import CHILD_COMMAND


class ChildUnderTest:
    """One child process and its protocol, unadorned."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._last_id = 0

    def read(self, **more: object) -> dict[str, Any]:
        self._last_id += 1
        self.say({"id": self._last_id, "ask": "read", **more})
        assert self.process.stdout is not None
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        assert answer["id"] == self._last_id
        return answer

    def say(self, ask: Mapping[str, object]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(ask).encode() + b"\n")
        self.process.stdin.flush()


@contextmanager
def child_of(environment: Mapping[str, str]) -> Iterator[ChildUnderTest]:
    """Run a child until the end of the block."""
    process = subprocess.Popen(
        CHILD_COMMAND,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=dict(environment),
    )
    with process:  # leaving closes its stdin, which ends it
        yield ChildUnderTest(process)
