"""The NVML child under test: started with a fake NVML, queried by its own protocol."""

import json
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpu_agent.probe.nvml.process import CHILD_COMMAND
from gpu_agent.probe.stand_in import UNIDENTIFIED
from tests.nvml_fake.control import FakeNvml


class ChildUnderTest:
    """One child process and its protocol; events that it sent are added to the next reading."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._last_id = 0
        self._events: dict[str, Counter[str]] = {}

    def read(self, **more: object) -> dict[str, Any]:
        self._last_id += 1
        self.send({"id": self._last_id, "request": "read", **more})
        while "id" not in (answer := self.line()):
            for uuid, counts in answer["events"].items():
                self._events.setdefault(uuid, Counter()).update(counts)
        assert answer["id"] == self._last_id
        for gpu in answer.get("gpus", ()):
            counts = self._events.pop(gpu.get("uuid") or f"{UNIDENTIFIED}{gpu['index']}", None)
            if counts is not None:
                gpu["events"] = dict(counts)
        return answer

    def line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line: dict[str, Any] = json.loads(self.process.stdout.readline())
        return line

    def send(self, request: Mapping[str, object]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()


@contextmanager
def child_of(environment: Mapping[str, str], *, root: Path | None = None) -> Iterator[ChildUnderTest]:
    """Run a child until the end of the block; `root` holds a tree of the kernel's in place of its own."""
    process = subprocess.Popen(
        CHILD_COMMAND if root is None else (*CHILD_COMMAND, str(root)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=dict(environment),
    )
    with process:  # leaving closes its stdin, which ends it
        yield ChildUnderTest(process)


def gpus_of(fake: FakeNvml, *, root: Path | None = None) -> list[dict[str, Any]]:
    """What a child reports of the fake's GPUs at its first reading."""
    with child_of(fake.environment(), root=root) as child:
        gpus: list[dict[str, Any]] = child.read()["gpus"]
        return gpus


def gpu_of(fake: FakeNvml, *, root: Path | None = None) -> dict[str, Any]:
    """The first GPU as a child reports it."""
    return gpus_of(fake, root=root)[0]
