"""What really runs on the GPUs: the truth against which every claim is checked."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

Gpu = tuple[str, str]
"""Node id and UUID."""


@dataclass(slots=True)
class World:
    """The jobs of all machines. Thread-safe."""

    violations: list[str] = field(default_factory=list)
    granted: int = 0
    gangs: int = 0
    _on_gpu: dict[Gpu, dict[str, bool]] = field(default_factory=dict)
    """By GPU: the jobs that run there, and whether each has it exclusively."""
    _on_node: dict[str, set[str]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self, job_id: str, nodes: Sequence[str], gpus: Sequence[Gpu], *, exclusive: bool) -> None:
        """Let a job run where its claim says; two jobs on one GPU are a violation unless both share it."""
        with self._lock:
            self.granted += 1
            self.gangs += len(nodes) > 1
            if len(set(nodes)) != len(nodes) or len(set(gpus)) != len(gpus):
                self._violate(f"{job_id}: a node or a GPU twice in one claim: {nodes} {gpus}")
            for gpu in gpus:
                running = self._on_gpu.setdefault(gpu, {})
                others = {job: is_exclusive for job, is_exclusive in running.items() if job != job_id}
                if others and (exclusive or any(others.values())):
                    self._violate(
                        f"{gpu[1]} of {gpu[0]} was given to {job_id} while {sorted(others)} ran there"
                    )
                running[job_id] = exclusive
            for node in nodes:
                self._on_node.setdefault(node, set()).add(job_id)

    def end(self, job_id: str) -> None:
        """The job's processes have ended."""
        with self._lock:
            for running in self._on_gpu.values():
                running.pop(job_id, None)
            for jobs in self._on_node.values():
                jobs.discard(job_id)

    def violate(self, text: str) -> None:
        """Record what must not happen."""
        with self._lock:
            self._violate(text)

    def report(self, node_id: str, uuids: Sequence[str]) -> tuple[list[str], list[int]]:
        """Return what a machine sees: its jobs, and the processes on each GPU."""
        with self._lock:
            jobs = sorted(self._on_node.get(node_id, ()))
            return jobs, [len(self._on_gpu.get((node_id, uuid), ())) for uuid in uuids]

    def _violate(self, text: str) -> None:
        self.violations.append(text)
