"""`gpu-agent run` as a process: signals, exit codes, the state directory."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.bare_registry import listening_registry

pytestmark = pytest.mark.e2e


def _arguments(url: str, state_dir: Path) -> tuple[str, ...]:
    return ("--registry", url, "--simulate", "1xL4-24GB", "--state-dir", str(state_dir))


@asynccontextmanager
async def _program(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GPU_AGENT_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gpu_agent.cli.app",
        "run",
        *arguments,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def _log_line(process: asyncio.subprocess.Process, event: str) -> dict[str, Any]:
    assert process.stderr is not None
    async with asyncio.timeout(20):
        async for line in process.stderr:
            said: dict[str, Any] = json.loads(line)
            if said["event"] == event:
                return said
    raise AssertionError(event)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_says_goodbye_and_leaves_within_five_seconds(tmp_path: Path, number: int) -> None:
    async with (
        listening_registry() as registry,
        _program(
            "--registry", registry.url, "--simulate", "1xL4-24GB", "--state-dir", str(tmp_path)
        ) as process,
    ):
        await registry.next("node_heartbeat")
        process.send_signal(number)
        async with asyncio.timeout(5):
            assert (await registry.next("node_unregister"))["drain"] is False
            assert await process.wait() == 0


async def test_a_second_agent_in_the_same_directory_exits_naming_the_first(tmp_path: Path) -> None:
    common = _arguments("ws://127.0.0.1:1", tmp_path)
    async with _program(*common) as first:
        await _log_line(first, "agent_started")
        async with _program(*common) as second:
            said = await _log_line(second, "state_directory_unusable")
            assert f"process {first.pid}" in said["problem"]
            async with asyncio.timeout(10):
                assert await second.wait() == 4


async def test_a_corrupt_identity_is_said_and_a_refusal_for_good_is_an_exit_code(tmp_path: Path) -> None:
    (tmp_path / "identity.json").write_text("{")
    refusal = {"type": "node_error", "code": "SIMULATED_NODE_REFUSED", "message": "No."}
    async with (
        listening_registry(refusal) as registry,
        _program(
            "--registry", registry.url, "--simulate", "1xL4-24GB", "--state-dir", str(tmp_path)
        ) as process,
    ):
        assert (await _log_line(process, "identity_corrupt"))["kept_aside"].endswith(
            "identity.json.corrupt-1"
        )
        assert (await _log_line(process, "agent_ended"))["failed"] is True
        async with asyncio.timeout(10):
            assert await process.wait() == 6
