"""The probe's report for a person at a terminal."""

from collections.abc import Iterable

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from gpu_agent.probe.snapshot import exit_code
from gpu_agent.wire.inventory import Gpu, Health, Host, Inventory, Model, ModelStatus, Outcome

BAR_CELLS = 8
WIDE_COLUMNS = 118
"""From here on a terminal has room for UUIDs."""
HEALTH_STYLES = {
    Health.OK: "green",
    Health.DEGRADED: "yellow",
    Health.LOST: "bold red",
    Health.UNKNOWN: "red",
}


def print_inventory(inventory: Inventory) -> None:
    """Print everything: GPUs, host, models, the verdict and the next step."""
    console = Console()
    console.print(Group(*_parts(inventory, wide=console.width >= WIDE_COLUMNS)))


def _parts(inventory: Inventory, *, wide: bool) -> Iterable[RenderableType]:
    yield Text(_machine(inventory), style="bold")
    if inventory.gpu.gpus:
        yield _gpu_table(inventory.gpu.gpus, wide=wide)
    yield Text(_host(inventory.host))
    yield Text(_models(inventory.models))
    for gpu in inventory.gpu.gpus:
        for reason in gpu.reasons:
            action = f" Next step: {reason.action}." if reason.action else ""
            yield Text(f"{gpu.uuid}: {reason.detail}{action}", style="yellow")
    yield _verdict(inventory)


def _machine(inventory: Inventory) -> str:
    name = inventory.host.hostname or "this machine"
    versions = [
        f"driver {inventory.gpu.driver_version}" if inventory.gpu.driver_version else "",
        f"CUDA {inventory.gpu.cuda_version}" if inventory.gpu.cuda_version else "",
        "SIMULATED: these GPUs do not exist" if inventory.simulated else "",
    ]
    return ", ".join([name, *(word for word in versions if word)])


def _gpu_table(gpus: Iterable[Gpu], *, wide: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("GPU", "NAME", "HEALTH", "MEMORY"):
        table.add_column(column, no_wrap=True)
    for column in ("LOAD", "TEMP", "POWER"):
        table.add_column(column, justify="right", no_wrap=True)
    if wide:
        table.add_column("UUID", no_wrap=True, style="dim")
    for gpu in gpus:
        table.add_row(
            "?" if gpu.index is None else str(gpu.index),
            Text(gpu.name.removeprefix("NVIDIA ")),
            Text(gpu.health.value, style=HEALTH_STYLES[gpu.health]),
            _memory(gpu),
            _figure(gpu.utilization_percent, "%"),
            _figure(gpu.temperature_c, " °C"),
            _figure(gpu.power_w, " W"),
            *([Text(gpu.uuid)] if wide else []),
        )
    return table


def _memory(gpu: Gpu) -> Text:
    if gpu.memory_mb is None:
        return Text("unknown", style="dim")
    total = f"{gpu.memory_mb / 1024:.0f} GiB"
    if gpu.memory_used_mb is None:
        return Text(total)
    filled = round(BAR_CELLS * min(1.0, gpu.memory_used_mb / gpu.memory_mb))
    bar = Text("█" * filled, style="cyan")
    bar.append("░" * (BAR_CELLS - filled), style="dim")
    return bar.append(f" {gpu.memory_used_mb / 1024:.0f}/{total}", style="default")


def _figure(value: float | None, unit: str) -> str:
    return "?" if value is None else f"{value:.0f}{unit}"


def _host(host: Host) -> str:
    cores = f"{host.cpu_logical_cores} cores"
    if host.machine_logical_cores is not None and host.machine_logical_cores != host.cpu_logical_cores:
        cores = f"{host.cpu_logical_cores} of {host.machine_logical_cores} cores"
    memory = f"{host.memory_total_mb / 1024:.0f} GiB memory"
    if host.memory_available_mb is not None:
        memory += f" ({host.memory_available_mb / 1024:.0f} GiB available)"
    about = [cores, memory, host.os, host.kernel, host.virtualization]
    return "Host: " + ", ".join(word for word in about if word)


def _models(models: Iterable[Model]) -> str:
    by_kind: dict[str, list[str]] = {}
    for model in models:
        state = "" if model.status is ModelStatus.READY else f" ({model.status.value}: {model.detail})"
        off = "" if model.enabled else " (disabled)"
        by_kind.setdefault(model.kind, []).append(f"{model.model_id} {model.version}{state}{off}")
    if not by_kind:
        return "Models: none found in the caches or declared"
    return "\n".join(f"Models, {kind}: {', '.join(sorted(names))}" for kind, names in sorted(by_kind.items()))


def _verdict(inventory: Inventory) -> Text:
    usable = len(inventory.gpu.usable)
    if exit_code(inventory) == 0:
        return Text(f"Could register: {usable} of {len(inventory.gpu.gpus)} GPUs are usable.", style="green")
    if inventory.gpu.detail:
        return Text(f"Could not register: {inventory.gpu.detail}", style="red")
    if inventory.gpu.outcome is Outcome.OK and not inventory.gpu.gpus:
        return Text("Could not register: the driver answers, but it sees no GPU.", style="red")
    return Text("Could not register: no GPU is usable; see its health above.", style="red")
