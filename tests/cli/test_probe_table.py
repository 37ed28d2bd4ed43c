import io

import pytest
from rich.console import Console

from gpu_agent.cli import probe_table
from gpu_agent.wire.inventory import (
    Gpu,
    GpuReport,
    Health,
    HealthReason,
    Host,
    Inventory,
    Model,
    ModelStatus,
    Outcome,
)

HOST = Host(
    cpu_logical_cores=4,
    cpu_physical_cores=2,
    memory_total_mb=8192,
    memory_used_mb=None,
    memory_available_mb=None,
    platform="linux",
    machine_logical_cores=16,
)
L4 = Gpu(
    index=0, uuid="GPU-1", name="NVIDIA L4", memory_mb=23034, memory_used_mb=11517, utilization_percent=30
)


def printed(monkeypatch: pytest.MonkeyPatch, report: GpuReport, *models: Model, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO())
    monkeypatch.setattr(probe_table, "Console", lambda: console)
    with console.capture() as capture:
        probe_table.print_inventory(Inventory(host=HOST, gpu=report, models=models))
    return capture.get()


def test_gpus_host_and_verdict_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    said = printed(monkeypatch, GpuReport(outcome=Outcome.OK, gpus=(L4,)))
    for words in ("L4", "ok", "████░░░░ 11/22 GiB", "30%", "4 of 16 cores", "Could register: 1 of 1"):
        assert words in said


def test_what_is_wrong_with_a_gpu_is_told_with_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = HealthReason(code="gpu_lost", detail="it fell off the bus", action="reboot the machine")
    lost = Gpu(index=1, uuid="GPU-3", name="NVIDIA L4", health=Health.LOST, reasons=(reason,))
    said = printed(monkeypatch, GpuReport(outcome=Outcome.OK, gpus=(lost,)))
    assert "it fell off the bus Next step: reboot the machine." in said
    assert "no GPU is usable" in said


def test_models_are_listed_by_kind_with_what_keeps_them_from_serving(monkeypatch: pytest.MonkeyPatch) -> None:
    said = printed(
        monkeypatch,
        GpuReport(outcome=Outcome.OK, gpus=(L4,)),
        Model(model_id="b/asr", version="1", kind="asr"),
        Model(
            model_id="a/llm", version="2", kind="llm", status=ModelStatus.ERROR, detail="a shard is missing"
        ),
        Model(model_id="c/llm", version="3", kind="llm", enabled=False),
        width=200,
    )
    assert "Models, asr: b/asr 1" in said
    assert "Models, llm: a/llm 2 (error: a shard is missing), c/llm 3 (disabled)" in said
