import logging
from dataclasses import fields
from pathlib import Path

import pytest

from gpu_agent.registry.thresholds import Thresholds
from gpu_agent.runtime.reloading import Reloaded, reloaded
from gpu_agent.server.reloading import AT_ONCE, Renewed
from gpu_agent.server.settings import RegistrySettings
from gpu_agent.server.tls import Encryption, TlsFiles
from tests.authority import Authority


def test_what_can_hold_at_once_is_a_setting() -> None:
    assert set(RegistrySettings.model_fields) >= AT_ONCE


def test_what_the_fleet_judges_by_waits_for_a_restart() -> None:
    assert not AT_ONCE & {one.name for one in fields(Thresholds)}
    told = reloaded(RegistrySettings(), RegistrySettings(claim_ttl_seconds=5), at_once=AT_ONCE)
    assert told.waiting == ("claim_ttl_seconds",)


@pytest.mark.usefixtures("logging_restored")
async def test_what_holds_at_once_is_taken_over() -> None:
    renewed = Renewed(RegistrySettings())
    settings = RegistrySettings(log_level="debug", performance_interval_seconds=7)
    await renewed.take_over(Reloaded(settings, ("log_level", "performance_interval_seconds")))
    assert renewed.performance_interval_seconds == 7
    assert logging.getLogger("gpu_agent").level == logging.DEBUG


async def test_the_certificate_is_read_again_although_no_setting_changed(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    renewed = Renewed(RegistrySettings())
    renewed.encryption = encryption = Encryption(TlsFiles(own=authority.issue()))
    before = encryption.context
    await renewed.take_over(Reloaded(RegistrySettings()))
    assert encryption.context is not before
