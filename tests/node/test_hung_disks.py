import asyncio
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from gpu_agent.probe.host.host import HostProbe
from gpu_agent.probe.models.declared import ModelDeclaration
from gpu_agent.probe.models.directory import ModelFolders
from gpu_agent.probe.models.scanner import DISK_SILENT, UNREADABLE, DiskPatience, ModelScanner
from gpu_agent.probe.snapshot import Sources
from gpu_agent.wire.inventory import GpuReport, ModelStatus
from tests.hung_disk import hung
from tests.node.prober_harness import GOOD, PACE, CountingHost, always, probing
from tests.probe.models.stuck_source import StuckSource
from tests.waiting import patience

QUICK = replace(PACE, deadline_seconds=20)
"""A look as a whole is in time, however busy this machine is."""
HASTY = DiskPatience(wait_seconds=0.05, silent_after_seconds=0.0, stale_after_seconds=1.0)


def _of_models(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message for message in caplog.messages if message.startswith(("model_", "host_scan"))]


def _held() -> StuckSource:
    source = StuckSource("/held")
    source.hold()
    return source


async def test_a_disk_that_hangs_holds_neither_the_gpus_up_nor_gathers_threads() -> None:
    source, well = _held(), StuckSource("/well", "well")
    sources = Sources(scanner=ModelScanner((source, well), patience=HASTY))
    async with probing(always(GOOD), sources, pace=QUICK) as (_, next_one):
        for _ in range(3):
            inventory = await next_one()
            assert inventory.gpu.gpus == GOOD.gpus
            assert (inventory.host.memory_total_mb or 0) > 0
            assert [model.model_id for model in inventory.models] == ["well"]
        assert source.looks == 1
        source.release.set()
        while source.looks < 2:
            await next_one()
        while len((await next_one()).models) < 2:
            pass


async def test_a_hung_disk_leaves_the_hosts_figures_fresh(tmp_path: Path) -> None:
    source, host = _held(), CountingHost(root=tmp_path)
    sources = Sources(host=host, scanner=ModelScanner((source,), patience=HASTY))
    async with probing(always(GOOD), sources, pace=QUICK) as (_, next_one):
        loads = [(await next_one()).host.load_1m for _ in range(4)]
        assert loads == sorted(set(loads), key=lambda load: load or 0), "each is of a reading of its own"
        source.release.set()


async def test_a_hung_host_has_no_figures_and_past_the_limit_no_ready_model(
    tmp_path: Path,
) -> None:
    host = CountingHost(root=tmp_path)
    sources = Sources(host=host, scanner=ModelScanner((StuckSource("/well"),)))
    pace = replace(PACE, deadline_seconds=0.2, stale_after_seconds=0.5)
    async with probing(always(GOOD), sources, pace=pace) as (_, next_one):
        while not (await next_one()).models:
            pass
        host.release.clear()
        while (await next_one()).host.load_1m is not None:
            pass
        assert (await next_one()).host.memory_used_mb is None
        while (hanging := await next_one()).models[0].status is ModelStatus.READY:
            pass
        host.release.set()
        while (again := await next_one()).models[0].status is not ModelStatus.READY:
            pass
    assert hanging.models[0].detail == UNREADABLE
    assert again.host.load_1m is not None


async def test_models_are_ready_no_longer_than_a_disk_that_hangs_can_vouch_for_them() -> None:
    source = StuckSource("/held")
    scanner = ModelScanner((source,), (ModelDeclaration(model_id="stated", version="1"),), patience=HASTY)
    async with probing(always(GOOD), Sources(scanner=scanner), pace=QUICK) as (_, next_one):
        while len((healthy := await next_one()).models) < 2:
            pass
        source.hold()
        inventories = [await next_one()]
        while inventories[-1].models[1].status is ModelStatus.READY:
            inventories.append(await next_one())
        hanging = inventories[-1]
        assert len(inventories) > 2, "within the limit they stay as they were"
        source.release.set()
        while (again := await next_one()).models[1].status is not ModelStatus.READY:
            pass
    assert hanging.models[0] == healthy.models[0], "the owner's word stands"
    assert (hanging.models[1].status, hanging.models[1].detail) == (ModelStatus.ERROR, UNREADABLE)
    assert again.models == healthy.models
    proven = [inventory.features_supported["emotion_detection"] for inventory in (healthy, hanging, again)]
    assert proven == [True, False, True]


async def test_a_hung_disk_is_logged_once_and_again_when_it_answers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "gpu_agent")
    source = _held()
    sources = Sources(scanner=ModelScanner((source,), patience=HASTY))
    async with probing(always(GOOD), sources, pace=QUICK) as (_, next_one):
        for _ in range(5):
            await next_one()
        assert _of_models(caplog) == ["model_scan_failed"]
        source.release.set()
        while not (await next_one()).models:
            pass
        await next_one()
    assert _of_models(caplog) == ["model_scan_failed", "model_disk_recovered"]


async def test_a_folder_that_cannot_be_scanned_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    scanner = ModelScanner([ModelFolders([tmp_path / "file"])])
    async with probing(always(GOOD), Sources(scanner=scanner)) as (_, next_one):
        for _ in range(3):
            await next_one()
    # A busy machine may read the host late, which is logged too.
    assert [said for said in _of_models(caplog) if said.startswith("model_")] == ["model_scan_failed"]


async def test_a_host_that_hangs_from_the_start_is_data_and_gathers_no_threads(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    boot_id = tmp_path / "proc/sys/kernel/random/boot_id"
    boot_id.parent.mkdir(parents=True)
    os.mkfifo(boot_id)  # opening it hangs, as a file on a dead mount does
    looks = 0

    async def read() -> GpuReport:
        nonlocal looks
        looks += 1
        if looks == 10:
            with boot_id.open("w") as pipe:
                pipe.write("a-boot-id")
        return GOOD

    before = {thread.ident for thread in threading.enumerate()}
    async with probing(read, Sources(host=HostProbe(root=tmp_path))) as (_, next_one):
        inventory = await next_one()
        assert looks >= 10, "nothing is declared of a host that did not answer"
        assert inventory.host.boot_id == "a-boot-id"
        assert inventory.gpu.gpus == GOOD.gpus
        assert not inventory.models_complete, "they were not looked for yet"
        assert len({thread.ident for thread in threading.enumerate()} - before) <= 1
    assert caplog.messages.count("host_scan_overdue") == 1


async def test_new_sources_are_scanned_at_once_and_reported_before_the_call_returns() -> None:
    calm = replace(PACE, interval_seconds=30, deadline_seconds=20)
    async with probing(always(GOOD), pace=calm) as (prober, next_one):
        assert (await next_one()).models == ()
        await prober.replace_sources(
            Sources(scanner=ModelScanner((), (ModelDeclaration(model_id="new", version="1"),)))
        )
        assert [model.model_id for model in (await next_one()).models] == ["new"]


async def test_replacing_sources_waits_for_no_hung_disk() -> None:
    source = _held()
    async with probing(always(GOOD), pace=QUICK) as (prober, next_one):
        await next_one()
        async with asyncio.timeout(patience(10)):
            await prober.replace_sources(Sources(scanner=ModelScanner((source,), patience=HASTY)))
        assert source.looks == 1
        source.release.set()


async def test_while_a_disk_hangs_other_folders_are_still_watched(tmp_path: Path) -> None:
    dead, well = tmp_path / "dead", tmp_path / "well"
    dead.mkdir()
    well.mkdir()
    calm = replace(QUICK, interval_seconds=3600)
    scanner = ModelScanner([ModelFolders([dead]), ModelFolders([well])], patience=HASTY)
    with hung(dead):
        async with probing(always(GOOD), Sources(scanner=scanner), pace=calm) as (_, next_one):
            await next_one()
            await next_one()  # what is followed from now on is looked at once more
            (well / "new.gguf").write_bytes(b"GGUF")
            while not (inventory := await next_one()).models:
                pass
    assert [model.model_id for model in inventory.models] == ["new"]
    assert inventory.models_unsearched == {str(dead): DISK_SILENT}
