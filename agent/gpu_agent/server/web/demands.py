"""A job's demands: in words for people, and read from the form that asks why a job waits."""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from gpu_agent.registry.job import Job, Sharing, sharing_of
from gpu_agent.wire.api import DryRunRequest

FIELDS = ("gpus", "nodes", "gpu", "mem", "sharing", "model", "label", "public")
"""The fields of the form, besides the job."""
MIB = 1024


@dataclass(frozen=True, slots=True)
class Needs:
    """What a job needs: in short, and the rest."""

    short: str
    rest: str


def needs_of(job: Job) -> Needs:
    """Say what a job needs."""
    sharing = sharing_of(job)
    name = job.gpu_name or ("GPU" if job.gpu_count == 1 else "GPUs")
    short = "1 slot" if sharing is None else f"{job.gpu_count or 1} \N{MULTIPLICATION SIGN} {name}"
    if job.nodes > 1:
        short += f" on each of {job.nodes} nodes"
    rest = []
    if job.min_gpu_memory_mb:
        free = " free" if sharing is Sharing.MEMORY else ""
        rest.append(f"≥ {job.min_gpu_memory_mb / MIB:g} GiB{free} on each")
    if job.required_models:
        rest.append(f"model {', '.join(job.required_models)}")
    rest += [f"{name}={_values(value)}" for name, value in job.labels.items()]
    rest += [*job.required_features]
    if job.min_compute_capability:
        rest.append(f"compute capability ≥ {job.min_compute_capability}")
    if job.allowed_nodes is not None:
        rest.append(f"one of {len(job.allowed_nodes)} nodes" if len(job.allowed_nodes) > 1 else "one node")
    if job.public:
        rest.append("public pool")
    return Needs(short, ", ".join(rest))


def form_of(job: Job) -> dict[str, str]:
    """Return a job's demands as the form shows them; what the form has no field for is left out."""
    sharing = sharing_of(job)
    return {
        "gpus": "" if job.gpu_count is None else str(job.gpu_count),
        "nodes": str(job.nodes),
        "gpu": job.gpu_name or "",
        "mem": f"{job.min_gpu_memory_mb / MIB:g}" if job.min_gpu_memory_mb else "",
        "sharing": "memory" if sharing is Sharing.MEMORY else "",
        "model": ", ".join(job.required_models),
        "label": ", ".join(f"{name}={_values(value)}" for name, value in job.labels.items()),
        "public": "1" if job.public else "",
    }


def job_from(form: Mapping[str, str], job_id: str) -> Job:
    """Read the form; raises `ValueError` with a sentence that names what is wrong."""
    stated: dict[str, object] = {"job_id": job_id or "dry-run"}
    gpus = _whole(form, "gpus", "GPUs on each node")
    if gpus:
        stated["gpu_count"] = gpus
    stated["nodes"] = _whole(form, "nodes", "Nodes") or 1
    if memory := form.get("mem", "").strip():
        try:
            stated["min_gpu_memory_mb"] = round(float(memory) * MIB)
        except (ValueError, OverflowError):
            raise ValueError("Memory on each GPU: write a number of GiB, such as 24.") from None
    if form.get("sharing") == "memory":
        stated["gpu_sharing"] = "memory"
    elif "min_gpu_memory_mb" in stated and not gpus:
        stated["gpu_count"] = 1
    if name := form.get("gpu", "").strip():
        stated["gpu_name"] = name
    stated["required_models"] = _list(form.get("model", ""))
    pairs = [pair.partition("=") for pair in _list(form.get("label", ""))]
    if not all(name and mark for name, mark, _ in pairs):
        raise ValueError("Labels: write each as name=value, such as zone=a.")
    stated["labels"] = {name.strip(): value.strip() for name, _, value in pairs}
    stated["public"] = form.get("public") == "1"
    try:
        return Job(**DryRunRequest.model_validate(stated).__dict__)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "The demands"
        raise ValueError(f"{where}: {first['msg'].removeprefix('Value error, ')}.") from None


def _whole(form: Mapping[str, str], name: str, words: str) -> int | None:
    text = form.get(name, "").strip()
    if not text:
        return None
    if not text.isdecimal():
        raise ValueError(f"{words}: write a whole number.")
    return int(text)


def _list(text: str) -> list[str]:
    return [one.strip() for one in text.split(",") if one.strip()]


def _values(value: str | tuple[str, ...]) -> str:
    return value if isinstance(value, str) else " or ".join(value)
