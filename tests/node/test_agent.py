"""The agent on real sockets: against the older scheduler, and against servers that misbehave."""

import asyncio
import contextlib
import json
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed

from gpu_agent.node.agent import Agent
from gpu_agent.node.daemon import ExitCode, run
from gpu_agent.node.gpu_readings import ReadGpus, open_gpus
from gpu_agent.node.identity import IdentityFile, lock_state_dir
from gpu_agent.node.jobs import WorkerProcess
from gpu_agent.node.settings import AgentSettings
from gpu_agent.probe.health.tracker import MissedReading
from gpu_agent.runtime.tasks import Tasks
from gpu_agent.session.types import Exit, State
from gpu_agent.wire.inventory import Gpu, GpuReport, Outcome
from tests.bare_registry import ACK, BareRegistry, listening_registry
from tests.node.running_agent import QUICK, RunningAgent, running_agent, settings_for
from tests.older_scheduler import OlderScheduler
from tests.waiting import patience


def _agent_at(
    registry: BareRegistry, folder: Path, *, read: ReadGpus | None = None
) -> AbstractAsyncContextManager[RunningAgent]:
    return running_agent(settings_for(registry.url, folder), read=read)


# The older scheduler (§9)


async def test_r04_the_agent_becomes_ready_at_an_older_scheduler_and_stores_its_id(tmp_path: Path) -> None:
    async with OlderScheduler() as scheduler, running_agent(settings_for(scheduler.url, tmp_path)) as running:
        async with asyncio.timeout(patience(10)):
            await scheduler.ready.wait()
        await running.until(lambda: running.agent.session.registry_status.status == "ready")  # type: ignore[union-attr]  # registered
        (node_id,) = scheduler.statuses
        assert IdentityFile(tmp_path).load().identity.node_id == node_id
        versions = [frame.get("capability_schema_version") for frame in scheduler.frames[:2]]
        assert versions == ["1.1", "1.0"]
        assert (await running.stopped()).reason == "bye"
        assert scheduler.frames[-1]["type"] == "node_unregister"


async def test_the_agent_survives_restarts_of_an_older_scheduler_with_its_id(tmp_path: Path) -> None:
    async with OlderScheduler() as scheduler:
        port = scheduler.port
        settings = settings_for(scheduler.url, tmp_path)
        async with running_agent(settings) as running:
            async with asyncio.timeout(patience(10)):
                await scheduler.ready.wait()
            (node_id,) = scheduler.statuses
            for _ in range(2):
                await scheduler.__aexit__()
                await running.until(lambda: running.agent.session.state is not State.REGISTERED)
                scheduler = OlderScheduler(port=port)  # noqa: PLW2901 - the next one at its place
                await scheduler.__aenter__()
                async with asyncio.timeout(patience(10)):
                    await scheduler.ready.wait()
                assert list(scheduler.statuses) == [node_id]
            await running.stopped()
        await scheduler.__aexit__()


async def test_r06_an_older_scheduler_that_holds_the_id_for_ever_gives_a_new_one(tmp_path: Path) -> None:
    async with OlderScheduler() as scheduler, running_agent(settings_for(scheduler.url, tmp_path)) as running:
        async with asyncio.timeout(patience(10)):
            await scheduler.ready.wait()
        (first,) = scheduler.statuses
        scheduler.ready.clear()
        scheduler.drop_connections()
        async with asyncio.timeout(patience(10)):
            await scheduler.ready.wait()
        assert len(scheduler.statuses) == 2
        assert IdentityFile(tmp_path).load().identity.node_id != first
        assert json.loads((tmp_path / "identity.json.conflict-1").read_text())["node_id"] == first
        await running.stopped()


# Any registry


async def test_r02_a_registration_declares_the_machine_and_beats_carry_its_figures(
    tmp_path: Path,
) -> None:
    async with listening_registry() as registry, _agent_at(registry, tmp_path) as running:
        registration = await registry.next("node_register")
        assert registration["simulated"] is True
        assert [gpu["name"] for gpu in registration["hardware"]["gpus"]] == ["NVIDIA L4", "NVIDIA L4"]
        heartbeat = await registry.next("node_heartbeat")
        assert heartbeat["node_id"] == "node-A"
        assert heartbeat["sequence"] == 1
        assert len(heartbeat["gpus"]) == 2
        assert heartbeat["probe_age_seconds"] < 5
        assert (await registry.next("node_heartbeat"))["sequence"] == 2
        await running.stopped()


async def test_announced_jobs_are_named_in_beats_and_in_the_next_registration(tmp_path: Path) -> None:
    async with listening_registry() as registry, _agent_at(registry, tmp_path) as running:
        assert (await registry.next("node_heartbeat")).get("running_jobs") is None
        worker = WorkerProcess("w")
        assert running.agent.jobs.start("job-1", worker, uid=0, now=1.0) is None
        while (heartbeat := await registry.next("node_heartbeat")).get("running_jobs") is None:
            pass
        assert (heartbeat["running_jobs"], heartbeat["resource_usage"]["running_jobs"]) == (["job-1"], 1)
        job_ids: object = None
        while job_ids != ["job-1"]:
            await registry.say(type="node_control", command="reregister")
            job_ids = (await registry.next("node_register")).get("running_jobs")
        running.agent.jobs.remove_worker(worker)
        while (heartbeat := await registry.next("node_heartbeat")).get("running_jobs") != []:
            pass
        assert heartbeat["resource_usage"]["running_jobs"] == 0
        await running.stopped()


async def test_the_id_and_the_token_are_on_the_disk_before_the_first_beat(tmp_path: Path) -> None:
    token = {**ACK, "node_token": "s3cret"}
    async with listening_registry(token) as registry, _agent_at(registry, tmp_path) as running:
        await registry.next("node_heartbeat")
        identity = IdentityFile(tmp_path).load().identity
        assert (identity.node_id, identity.node_token) == ("node-A", "s3cret")
        await running.stopped()


async def test_a_token_once_given_opens_the_next_connection(tmp_path: Path) -> None:
    IdentityFile(tmp_path).save("node-A", "s3cret")
    async with listening_registry() as registry, _agent_at(registry, tmp_path) as running:
        assert (await registry.next("node_register"))["node_id"] == "node-A"
        request = registry.connections[0].request
        assert request is not None
        assert request.headers["Authorization"] == "Bearer s3cret"
        await running.stopped()


async def test_an_identity_that_cannot_be_saved_does_not_stop_the_session(tmp_path: Path) -> None:
    (tmp_path / "identity.json").mkdir()
    identity = IdentityFile(tmp_path)
    async with listening_registry() as registry:
        settings = settings_for(registry.url, tmp_path)
        gpus = open_gpus(simulate=settings.simulate, seed="test", deadline_seconds=1)
        async with gpus as source, Tasks() as tasks:
            agent = Agent(settings, identity, source, session=QUICK)
            tasks.start("agent", agent.run(tasks))
            await registry.next("node_heartbeat")
            tasks.end()


async def test_a_refresh_sends_a_full_beat(tmp_path: Path) -> None:
    async with listening_registry() as registry, _agent_at(registry, tmp_path) as running:
        await registry.next("node_heartbeat")
        await registry.say(type="node_control", command="refresh")
        while "hardware" not in (heartbeat := await registry.next("node_heartbeat")):
            pass
        assert heartbeat["installed_models"] == []
        await running.stopped()


async def test_a1_without_a_gpu_the_agent_never_connects_and_does_once_one_appears(tmp_path: Path) -> None:
    reports = [GpuReport(outcome=Outcome.NO_DRIVER)]

    async def read() -> GpuReport | MissedReading:
        return reports[-1]

    async with (
        listening_registry() as registry,
        _agent_at(registry, tmp_path, read=read) as running,
    ):
        await running.until(lambda: running.agent.session.last_refusal == "no usable GPU to declare")
        assert registry.connections == []
        card = Gpu(uuid="GPU-1", name="L4", memory_mb=24_000)
        reports.append(GpuReport(outcome=Outcome.OK, gpus=(card,)))
        running.agent._prober.probe_now()
        await registry.next("node_heartbeat")
        await running.stopped()


async def test_an_endless_flood_from_the_registry_does_not_delay_a_stop(tmp_path: Path) -> None:
    async with listening_registry() as registry, _agent_at(registry, tmp_path) as running:
        await registry.next("node_heartbeat")

        async def babble() -> None:
            with contextlib.suppress(ConnectionClosed):
                while True:
                    await registry.say(type="node_control", command="dance")

        async with asyncio.TaskGroup() as group:
            group.create_task(babble(), name="babble")
            await registry.next("node_heartbeat")
            await running.stopped()


async def test_a_flood_of_unknown_commands_is_a_few_lines_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "gpu_agent")
    async with listening_registry() as registry, _agent_at(registry, tmp_path) as running:
        await registry.next("node_heartbeat")
        for _ in range(300):
            await registry.say(type="node_control", command="dance")
        await registry.say(type="node_control", command="reregister")
        await registry.next("node_register")
        await running.stopped()
    assert 0 < caplog.messages.count("control_unknown") <= 5


async def test_a_registry_that_refuses_for_good_ends_the_agent_with_its_words(tmp_path: Path) -> None:
    refusal = {"type": "node_error", "code": "SIMULATED_NODE_REFUSED", "message": "No."}
    async with (
        listening_registry(refusal) as registry,
        _agent_at(registry, tmp_path) as running,
    ):
        async with asyncio.timeout(patience(10)):
            ending = await running.ended
    assert ending == Exit("No. (SIMULATED_NODE_REFUSED)", failed=True)


def test_a_second_agent_on_a_state_directory_exits_and_names_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = AgentSettings(registry_url="ws://127.0.0.1:1/ws/node", state_dir=tmp_path)
    with lock_state_dir(tmp_path):
        assert run(settings, lambda: settings) is ExitCode.UNUSABLE_STATE
    said = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert said["event"] == "state_directory_unusable"
