import logging
import time

import pytest

from gpu_agent.registry.job import Job
from gpu_agent.server.clock import Clock
from gpu_agent.server.report import report
from gpu_agent.server.service import RegistryService
from gpu_agent.server.service_settings import ServiceSettings
from gpu_agent.store.memory import MemoryStore
from tests.server.harness import LOOPBACK, QUICK, node


async def test_each_minute_in_which_dispatches_failed_is_logged_once_when_it_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "gpu_agent")
    later = 0.0
    clock = Clock(monotonic=lambda: time.monotonic() + later, wall=lambda: time.time() + later)
    settings = ServiceSettings(node_listen=LOOPBACK, thresholds=QUICK, auth_on=False)
    service = RegistryService(settings, MemoryStore(), clock=clock)
    await service.start()
    try:
        async with node(service) as ready:
            await ready.become_ready()
            for number in range(2):
                await service.claim(Job(job_id=f"job-{number}", gpu_count=9))
            report(service)
            assert "dispatch_exclusions" not in caplog.messages
            later = 61.0
            report(service)
            report(service)
    finally:
        await service.stop()
    (line,) = [record for record in caplog.records if record.message == "dispatch_exclusions"]
    fields = line.fields  # type: ignore[attr-defined] # our own log sets it
    assert (fields["failed"], fields["counts"]) == (2, {"gpu_unavailable": 2})
    assert fields["examples"] == {"gpu_unavailable": [ready.node_id]}
    assert fields["last_jobs"] == ("job-0", "job-1")
    assert abs(fields["window_start"] - time.time()) < 90


async def test_the_time_to_choose_a_place_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gpu_agent")
    service = RegistryService(ServiceSettings(node_listen=LOOPBACK, auth_on=False), MemoryStore())
    service.select(Job(job_id="job-1"))
    report(service)
    (line,) = [record for record in caplog.records if record.message == "performance"]
    assert 0 < line.fields["select_p99_us"] < 1e5  # type: ignore[attr-defined] # as above
