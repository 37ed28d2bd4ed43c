"""Fuzz: whatever the wire lets through, with extreme figures, odd names, things twice, a megabyte."""

from random import Random
from typing import TypeVar

from gpu_agent.registry.events import (
    ClaimRequested,
    ConnectionLost,
    CordonRequested,
    DrainRequested,
    Event,
    FaultReported,
    GpuCordonRequested,
    HeartbeatReceived,
    RegistrationReceived,
    ReleaseRequested,
    RemovalRequested,
    RenewalRequested,
    Requester,
    ResumeRequested,
    UnregistrationReceived,
)
from gpu_agent.registry.job import Job
from gpu_agent.wire.heartbeat import Heartbeat
from gpu_agent.wire.messages import (
    GpuDeclaration,
    GpuFigures,
    Hardware,
    InstalledModel,
    NodeError,
    NodeHeartbeat,
    NodeRegister,
    NodeUnregister,
    ResourceUsage,
)
from tests.registry.harness import JOIN, fresh_token, proof

_Choice = TypeVar("_Choice")

NAMES = ("", "a", "b", "a\nb", "\n", "\0", "GPU-0", "GPU-1", "#0", "#1", "ß😀", "x" * 1024)
"""What nodes call GPUs, models, labels and features."""

_LABEL_VALUES: tuple[str | tuple[str, ...], ...] = ("a", ("", "a"))
JOBS = ("", "job-1", "job-2", "job-3", "\0\n", "x" * 1024)
FIGURES = (None, 0.0, 5.0, 55.5, 91.0, 100.0, 100.5, -0.5, 5e-324, 1e15, -1e15)
NUMBERS = (None, 0, 1, 24, 81_920, 2**53)
HEALTHS = ("ok",) * 6 + ("degraded", "lost", "unknown", "", "x" * 1024)
NODES = tuple(f"node-{number}" for number in range(1, 15))


class Fuzzer:
    """Draws the next event for a fleet of such nodes; the same dice give the same events."""

    def __init__(self, dice: Random) -> None:
        self.dice = dice
        self.claims = 0

    def anything(self) -> Event:
        """Draw an event of a node, an operator or a scheduler that is no heartbeat."""
        node_id, job_id, connection = self._one(NODES), self._one(JOBS), self.dice.randint(1, 16)
        reason, seconds = self._one(("", "x" * 4096)), self._one((None, 0.0, 30.0, 1e15))
        return self._one(
            (
                self.registration(connection, node_id, proven=self.dice.random() < 1 / 2),
                ConnectionLost(connection),
                UnregistrationReceived(
                    connection,
                    NodeUnregister(
                        node_id=node_id,
                        reason=reason,
                        drain=self.dice.random() < 1 / 2,
                        deadline_seconds=seconds,
                    ),
                ),
                FaultReported(connection, NodeError(code=self._one(NAMES), message=reason)),
                DrainRequested(1, node_id, seconds, reason),
                ResumeRequested(1, node_id),
                CordonRequested(1, node_id, self._one((None, reason))),
                RemovalRequested(1, node_id),
                self.claim(job_id),
                self.claim(job_id),
                GpuCordonRequested(1, node_id, self._one(NAMES), self._one((None, reason))),
                RenewalRequested(1, job_id, ttl_seconds=self._one((None, 10.0))),
                ReleaseRequested(1, job_id, self._one((None, "", "x" * 1024))),
            )
        )

    def claim(self, job_id: str) -> Event:
        """Draw a job, with demands that odd nodes may meet."""
        count, memory = self._one((None, 1, 1, 2, 256)), self._one((None, 0, 500, 2**53))
        self.claims += 1
        return ClaimRequested(
            1 + self.claims,
            Job(
                job_id=job_id,
                gpu_count=count,
                gpu_sharing=self._one((None, "memory")) if memory else None,
                gpu_name=self._one((None, None, "a", "\n")),
                min_gpu_memory_mb=memory,
                min_compute_capability=self._one((None, None, "8.0")),
                required_models=self._some(("a",)),
                labels=dict.fromkeys(self._some(("",)), self._one(_LABEL_VALUES)),
                excluded_nodes=self._some(NODES) if self.dice.random() < 1 / 4 else (),
                nodes=self._one((1, 1, 1, 2, 256)),
                priority=self._one((0, -100, 100)),
                ttl_seconds=self._one((None, 10.0, 86_400.0)),
                wait_seconds=self._one((0.0, 0.0, 300.0)),
                affinity_key=self._one((None, "", "key")),
            ),
            f"claim-{self.dice.getrandbits(64):x}",
            Requester(self._one((None, "", "ada", "x" * 1024)), is_admin=self.dice.random() < 1 / 4),
        )

    def registration(self, connection: int, node_id: str, *, proven: bool) -> RegistrationReceived:
        """Draw a declaration."""
        message = NodeRegister(
            version=self._one(NAMES),
            capability_schema_version=self._one((None, "1.0", "1.1", "1.1", "x" * 1024)),
            node_id=self._one((None, node_id)),
            hardware=self.hardware(),
            installed_models=self.models(),
            features_supported=dict.fromkeys(self._some(NAMES), True),
            advanced_features=self._some(NAMES),
            labels=dict.fromkeys(self._some(NAMES), self._one(NAMES)),
            max_concurrent_jobs=self._one(NUMBERS),
            running_jobs=self._one((None, self._some(JOBS))),
        )
        return RegistrationReceived(
            connection,
            message,
            f"node-{connection}",
            credential=proof(node_id) if proven else JOIN,
            fresh_token=fresh_token(node_id),
        )

    def heartbeat(self, node_id: str) -> Heartbeat:
        """Draw a heartbeat; most of them bring figures only."""
        parts = {
            "gpus": self._one((None, self.figures())),
            "probe_age_seconds": self._one((None, 0.0, 61.0, 1e15)),
            "running_jobs": self._one((None, self._some(JOBS))),
            "installed_models": self.models(),
            "capability_state": dict.fromkeys(self._some(NAMES), self._one(("ready", ""))),
            "labels": dict.fromkeys(self._some(NAMES), self._one(NAMES)),
            "max_concurrent_jobs": self._one(NUMBERS),
            "hardware": self.hardware(),
            "accept_public_jobs": True,
        }
        chosen = {name: part for name, part in parts.items() if self.dice.random() < 1 / 3}
        return Heartbeat.of(
            NodeHeartbeat.model_validate(
                {"node_id": node_id, "timestamp": 0, "resource_usage": self.usage(), **chosen}
            )
        )

    def heartbeat_arrived(self, connection: int, node_id: str) -> HeartbeatReceived:
        """Draw a heartbeat that a connection brings."""
        return HeartbeatReceived(connection, self.heartbeat(node_id))

    def usage(self) -> ResourceUsage:
        """Draw a machine's load."""
        return ResourceUsage(
            cpu_percent=self._one(FIGURES) or 0.0,
            mem_percent=self._one(FIGURES) or 0.0,
            gpu_percent=self._one(FIGURES),
            gpu_mem_percent=self._one(FIGURES),
            running_jobs=self._one(NUMBERS) or 0,
        )

    def hardware(self) -> Hardware:
        """Draw GPUs, of which two may have the same name and one may be its own parent."""
        gpus = tuple(
            GpuDeclaration(
                name=self._one(NAMES),
                memory_gb=self._one((24, *NUMBERS)),
                memory_mb=self._one((None, *NUMBERS)),
                uuid=self._one((None, *NAMES)),
                parent_uuid=self._one((None, None, None, *NAMES)),
                health=self._one((None, *HEALTHS)),
            )
            for _ in range(self.dice.randint(0, 4))
        )
        return Hardware(cpu_cores=0, memory_gb=2**53, gpus=gpus)

    def figures(self) -> tuple[GpuFigures, ...]:
        """Draw figures of GPUs, declared or not."""
        return tuple(
            GpuFigures(
                uuid=self._one(NAMES),
                utilization_percent=self._one(FIGURES),
                processes=self._one(NUMBERS),
                memory_used_mb=self._one(NUMBERS),
                temperature_c=self._one(FIGURES),
                power_w=self._one(FIGURES),
                health=self._one(HEALTHS),
                reasons=self._one(((), (), ("x" * 1024,) * 64, ("\n", ""))),
            )
            for _ in range(self.dice.randint(0, 4))
        )

    def models(self) -> tuple[InstalledModel, ...]:
        """Draw models, two versions of one among them."""
        return tuple(
            InstalledModel(
                model_id=name,
                version=self._one(NAMES),
                kind=self._one((None, "emotion", "")),
                status=self._one(("ready", "", "x" * 1024)),
                enabled=self.dice.random() < 1 / 2,
            )
            for name in self._some(NAMES)
            if name
        )

    def _one(self, choices: tuple[_Choice, ...]) -> _Choice:
        return self.dice.choice(choices)

    def _some(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in names if self.dice.random() < 1 / 4)
