"""A registry with receivers of alarms, as a process: killed with -9, reloaded, and asked by its commands."""

import asyncio
import json
import signal
import subprocess
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.alarm_receiver import SECRET, AlarmWebhook, answer, webhook
from tests.programs import COMMAND, Agent, Registry
from tests.waiting import patience, until

pytestmark = pytest.mark.e2e

RECEIVER = """
[[notify]]
name = "{name}"
url = "{url}"
secret_file = "{folder}/secret"
events = ["node_cordoned", "node_uncordoned"]
group_seconds = 0
"""


def served(folder: Path) -> Registry:
    return Registry(
        *("--config", str(folder / "registry.toml"), "--store", f"sqlite:///{folder}/registry.db"),
        *("--allow-simulated", "--heartbeat-interval-seconds", "1"),
    )


def wanted(registry: Registry) -> list[int]:
    """The ids of all events that the receivers want, as the registry has them."""
    url = f"{registry.api}/v1/events?after=0&follow=false"
    with urllib.request.urlopen(url, timeout=patience(10)) as stream:  # noqa: S310 - loopback, ours
        lines = [line.removeprefix("data: ") for line in stream.read().decode().splitlines()]
    events = [json.loads(line) for line in lines if line.startswith("{")]
    return [one["id"] for one in events if one["event"] in {"node_cordoned", "node_uncordoned"}]


def command(registry: Registry, *words: str) -> subprocess.CompletedProcess[str]:
    ask = [*COMMAND, "registry", "notify", *words, "--server", registry.api]
    return subprocess.run(ask, capture_output=True, text=True, timeout=patience(20), check=False)


@pytest.mark.timeout(180)
async def test_each_event_arrives_in_order_and_signed_though_the_registry_is_killed(tmp_path: Path) -> None:
    (tmp_path / "secret").touch(mode=0o600)
    (tmp_path / "secret").write_text(SECRET)
    async with webhook() as hook, webhook() as second:
        add_receiver(tmp_path, "ops", hook.url())
        with ExitStack() as running:
            registry = await started(tmp_path, running)
            path = await asyncio.to_thread(registered, registry, tmp_path / "agent")
            for fault in ("", "hang", "close", answer("500 Oops")):
                await cordon(registry, path)
                hook.faults.extend([fault] * bool(fault))
                before = len(hook.requests)
                await cordon(registry, path)
                await until(lambda before=before: len(hook.requests) > before)  # type: ignore[misc]
                registry.send(signal.SIGKILL)
                await asyncio.to_thread(registry.wait, 5)
                registry = await started(tmp_path, running)
            ids = await asyncio.to_thread(wanted, registry)
            await until(lambda: hook.ids[-1:] == ids[-1:], within_seconds=30)
            await reloaded_and_asked(registry, tmp_path, path, second=second)
    assert len(ids) == 16
    assert list(dict.fromkeys(hook.ids))[:16] == ids
    assert all(one.is_signed() for one in (*hook.requests, *second.requests))


async def started(folder: Path, running: ExitStack) -> Registry:
    return await asyncio.to_thread(running.enter_context, served(folder))


def registered(registry: Registry, folder: Path) -> str:
    """Let a node register, and leave: what the registry stores of it is enough for events."""
    with Agent(registry.node_url, folder):
        (ready,) = registry.await_ready(1, within_seconds=30)
    return f"/v1/nodes/{ready['node_id']}"


async def cordon(registry: Registry, path: str) -> None:
    for action, body in (("cordon", {"reason": "dust"}), ("uncordon", {})):
        await asyncio.to_thread(registry.post, f"{path}/{action}", body)


def add_receiver(folder: Path, name: str, url: str) -> None:
    config = folder / "registry.toml"
    written = config.read_text() if config.exists() else ""
    config.write_text(written + RECEIVER.format(name=name, url=url, folder=folder))


async def reloaded_and_asked(registry: Registry, folder: Path, path: str, *, second: AlarmWebhook) -> None:
    add_receiver(folder, "second", second.url())
    registry.send(signal.SIGHUP)
    await asyncio.to_thread(registry.await_event, "settings_reloaded", changed=["notify"])
    await cordon(registry, path)
    await until(lambda: len(second.ids) == 2, within_seconds=20)

    async def run(*words: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(command, registry, *words)

    tried = await run("test")
    assert (tried.returncode, tried.stderr) == (0, "")
    assert [line.split(":")[0] for line in tried.stdout.splitlines()] == ["ops", "second"]
    second.faults.append(answer("403 No"))
    refused = await run("test", "second")
    assert refused.returncode == 1
    assert "answers HTTP 403" in refused.stdout
    listed = json.loads((await run("list", "--json")).stdout)["receivers"]
    assert [(one["name"], one["waiting"], one["problem"]) for one in listed] == [
        ("ops", 0, None),
        ("second", 0, None),
    ]
