"""The doctor's checks of this machine: driver, device nodes, NVML, GPUs, container, model caches.

They judge what others have read, and touch nothing but the caches' folders.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from gpu_agent.cli.agent.probe_page import MEMORY_STEP, outcome_sentence
from gpu_agent.cli.output.inventory import count_broken, gpu_label, in_tree_order
from gpu_agent.probe.health.reasons import gpu_steps
from gpu_agent.probe.nvml.driver_files import LIBRARY, DriverFiles
from gpu_agent.probe.snapshot import COULD_REGISTER, able_to_serve, exit_code
from gpu_agent.runtime.check_results import CheckResult, fail, ok, skipped, warn
from gpu_agent.wire.inventory import GpuReport, Health, Host, Inventory, Outcome

_IN_CONTAINER = (
    "in a container, start it with the GPUs (`--gpus all`) and NVIDIA_DRIVER_CAPABILITIES=compute,utility"
)
_CONTAINERS = frozenset({"docker", "podman", "kubernetes", "lxc", "lxc-libvirt", "systemd-nspawn", "oci"})
_NVML_VENDOR = "nvidia"
_NO_GPUS = frozenset({"void", "none", ""})


def driver_checks(
    files: DriverFiles, inventory: Inventory, troubles: Sequence[str] = ()
) -> Iterator[CheckResult]:
    """Yield the driver's checks, from its library up to NVML; `troubles`: of its device nodes."""
    names = ("driver library", "kernel module", "device nodes", "NVML")
    if inventory.simulated:
        yield from (skipped(name, "these GPUs are simulated") for name in names)
        return
    gpu = inventory.gpu
    if (
        files.nvml_library is None
        and gpu.offered
        and all(each.vendor != _NVML_VENDOR for each in gpu.offered)
    ):
        yield from (
            skipped(name, "no NVIDIA driver, and none needed: the GPUs are of other vendors")
            for name in names
        )
        return
    yield _library(files, gpu)
    yield _module(files, gpu)
    yield _nodes(files, gpu, troubles)
    yield _nvml(gpu)


def collector_check(inventory: Inventory) -> CheckResult:
    """Check whether every collector answered."""
    gpu = inventory.gpu
    if gpu.outcome is Outcome.OK and gpu.detail:
        what, _, fix = gpu.detail.rpartition(": ")
        return warn("collectors", what.rstrip("."), fix.rstrip(".") or "see `gpu-agent probe`")
    return ok("collectors", "none has failed")


def gpu_check(inventory: Inventory) -> CheckResult:
    """Check the GPUs, and whether this machine could register."""
    gpus = inventory.gpu.gpus
    if not gpus and inventory.gpu.outcome is not Outcome.OK:
        return skipped("GPUs", "not seen, since NVML failed")
    unhealthy = [
        f"GPU {below or gpu_label(gpu)} is {gpu.health.value}"
        + "".join(f", {each.code}" for each in gpu.reasons)
        for gpu, below in in_tree_order(gpus)
        if gpu.health is not Health.OK
    ]
    unsized = [*_of_unknown_memory(inventory.gpu)]
    fix = "; ".join([*gpu_steps(gpus), *([MEMORY_STEP] if unsized else [])]) or "see `gpu-agent probe`"
    if exit_code(inventory) != COULD_REGISTER:
        return fail("GPUs", "; ".join([outcome_sentence(inventory).rstrip("."), *unhealthy]), fix)
    if unhealthy or unsized:
        return warn("GPUs", "; ".join([*unhealthy, *unsized]), fix)
    if inventory.simulated:
        fix = "a registry takes them with --allow-simulated only; without --simulate the true ones are read"
        return warn("GPUs", f"{len(gpus)} that do not exist", fix)
    return ok("GPUs", f"{len(gpus)}, all healthy" if len(gpus) > 1 else "1, and it is healthy")


def container_check(host: Host, environ: Mapping[str, str]) -> CheckResult:
    """Check what a container leaves of the machine."""
    inside = host.virtualization
    hidden = environ.get("NVIDIA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in _NO_GPUS:
        return fail("container", f"NVIDIA_VISIBLE_DEVICES={hidden!r} hides every GPU", _IN_CONTAINER)
    limits = [
        f"{host.cpu_logical_cores} of {host.machine_logical_cores} cores"
        if host.machine_logical_cores not in (None, host.cpu_logical_cores)
        else "",
        f"{host.memory_total_mb // 1024} of {host.machine_memory_total_mb // 1024} GiB"
        if host.memory_total_mb is not None
        and host.machine_memory_total_mb not in (None, host.memory_total_mb)
        and host.machine_memory_total_mb is not None
        else "",
    ]
    limited = ", ".join(word for word in limits if word)
    if inside in _CONTAINERS:
        words = f"in one ({inside})"
    elif inside in (None, "none"):
        words = "none seen" if inside is None else "none, and no virtual machine"
    else:
        words = f"none seen; this is a virtual machine ({inside})"
    return ok("container", f"{words}; the cgroup leaves {limited}" if limited else words)


def cache_check(root: Path) -> CheckResult:
    """Check a model cache; blocks for as long as its disk does."""
    if not root.exists():
        return ok("model cache", f"{root} is not there: it counts as empty")
    if not os.access(root, os.R_OK | os.X_OK):
        return fail(
            "model cache",
            f"{root} belongs to user {root.stat().st_uid}, and we may not read it",
            "let the agent's user read it, or name other places with hub_roots and model_directories",
        )
    return ok("model cache", f"{root} can be read")


def silent_cache_check(root: Path) -> CheckResult:
    """Return the result for a model cache whose disk does not answer."""
    return fail(
        "model cache",
        f"{root} is on a disk that does not answer",
        "see `df`, `mount` and `dmesg`; the models in other places are not affected",
    )


def model_checks(inventory: Inventory) -> Iterator[CheckResult]:
    """Yield a warning where models cannot serve."""
    failed = count_broken(inventory.models)
    if failed:
        yield warn("models", f"{failed} of {len(inventory.models)} cannot serve", "see `gpu-agent probe`")


def _of_unknown_memory(report: GpuReport) -> Iterator[str]:
    """Yield the GPUs that are healthy and still cannot serve: a registration needs their memory (R-01)."""
    unsized = {gpu.uuid for gpu in report.usable} - {gpu.uuid for gpu in able_to_serve(report)}
    for gpu, below in in_tree_order(report.gpus):
        if gpu.uuid in unsized:
            why_not = gpu.unknowns.get("memory_mb")
            yield f"the memory of GPU {below or gpu_label(gpu)} is unknown" + (
                f" ({why_not})" if why_not else ""
            )


def _library(files: DriverFiles, gpu: GpuReport) -> CheckResult:
    if files.nvml_library is None:
        if gpu.outcome is Outcome.OK:
            return ok("driver library", f"{LIBRARY}, where the loader finds it")
        fix = f"install the NVIDIA driver; {_IN_CONTAINER}"
        return fail("driver library", f"{LIBRARY} is nowhere on this machine", fix)
    version = f", version {files.nvml_library_version}" if files.nvml_library_version else ""
    return ok("driver library", f"{files.nvml_library}{version}")


def _module(files: DriverFiles, gpu: GpuReport) -> CheckResult:
    library, module = files.nvml_library_version, files.module_version
    if module is not None and library is not None and module[0].isdigit() and module != library:
        return fail(
            "kernel module",
            f"version {module}, and the library's is {library}",
            "reboot, or reload the nvidia kernel module: the driver was updated under it",
        )
    if module is not None:
        return ok("kernel module", f"version {module}" if module[0].isdigit() else module)
    if files.wsl or gpu.outcome is Outcome.OK:
        return skipped("kernel module", "it is the host's" if files.wsl else "not seen, and not missed")
    if files.nvml_library is None:
        return skipped("kernel module", "there is no driver")
    fix = "run `modprobe nvidia`, and see `dmesg` if it will not load (Secure Boot refuses unsigned ones)"
    return fail("kernel module", "the nvidia kernel module is not loaded", fix)


def _nodes(files: DriverFiles, gpu: GpuReport, troubles: Sequence[str]) -> CheckResult:
    check = "device nodes"
    if troubles:
        parts = [trouble.partition(": ") for trouble in troubles]
        fixes = dict.fromkeys(fix for _, _, fix in parts if fix)
        return fail(check, "; ".join(what for what, _, _ in parts), "; ".join(fixes))
    if files.nodes:
        return ok(check, ", ".join(files.nodes))
    if files.wsl:
        return skipped(check, "/dev/dxg stands for them")
    return skipped(check, "none, and not missed" if gpu.outcome is Outcome.OK else "none: there is no driver")


def _nvml(gpu: GpuReport) -> CheckResult:
    seen = [each for each in gpu.gpus if each.vendor == _NVML_VENDOR]
    if gpu.outcome is not Outcome.OK or (gpu.detail and not seen):
        words = gpu.detail or "NVML does not answer."
        what, _, fix = words.partition(": ")
        return fail("NVML", what.rstrip("."), fix.rstrip(".") or "see `gpu-agent probe`")
    about = [
        f"{len(seen)} GPU{'' if len(seen) == 1 else 's'}",
        *([f"driver {gpu.driver_version}"] if gpu.driver_version else []),
        *([f"CUDA {gpu.cuda_version}"] if gpu.cuda_version else []),
    ]
    return ok("NVML", f"answers in {gpu.took_ms:.0f} ms: {', '.join(about)}")
