"""The probe's report for a person at a terminal."""

from collections.abc import Iterable

from rich.console import Console, Group, RenderableType
from rich.text import Text

from gpu_agent.cli.gpu_table import gpu_table
from gpu_agent.cli.probe_verdict import verdict
from gpu_agent.probe.snapshot import COULD_REGISTER, exit_code
from gpu_agent.wire.inventory import Host, Inventory, Model, ModelStatus


def print_inventory(inventory: Inventory) -> None:
    """Print everything: GPUs, host, models, the verdict and the next step."""
    console = Console()
    console.print(Group(*_parts(inventory, console)))


def _parts(inventory: Inventory, console: Console) -> Iterable[RenderableType]:
    yield Text(_machine(inventory), style="bold")
    if inventory.gpu.gpus:
        yield gpu_table(inventory.gpu.gpus, console)
    yield Text(_host(inventory.host))
    yield Text(_models(inventory.models))
    for gpu in inventory.gpu.gpus:
        for reason in gpu.reasons:
            action = f" Next step: {reason.action}." if reason.action else ""
            yield Text(f"{gpu.uuid}: {reason.detail}{action}", style="yellow")
    good = exit_code(inventory) == COULD_REGISTER
    yield Text(verdict(inventory), style="green" if good else "red")


def _machine(inventory: Inventory) -> str:
    name = inventory.host.hostname or "this machine"
    versions = [
        f"driver {inventory.gpu.driver_version}" if inventory.gpu.driver_version else "",
        f"CUDA {inventory.gpu.cuda_version}" if inventory.gpu.cuda_version else "",
        "SIMULATED: these GPUs do not exist" if inventory.simulated else "",
    ]
    return ", ".join([name, *(word for word in versions if word)])


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
