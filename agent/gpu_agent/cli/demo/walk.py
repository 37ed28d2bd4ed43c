"""The demo's walk: ready → claim → explain → drain → offline, each step printed with its time."""

import time
from collections.abc import Callable
from typing import Any

from gpu_agent.cli.answers import CLAIM, EXPLANATION, NODE_DETAIL, NODES
from gpu_agent.cli.asking.api import Problem, quoted
from gpu_agent.cli.demo.fleet import Fleet
from gpu_agent.cli.nodes.sheet import gpus_in_words
from gpu_agent.cli.outcome import Failure

READY_SECONDS = 20.0
OFFLINE_SECONDS = 5.0
JOB = "demo-job-1"


class Walk:
    """The main job, step by step, on a running fleet."""

    def __init__(self, fleet: Fleet, say: Callable[[str], None], *, started: float) -> None:
        self._fleet = fleet
        self._say = say
        self._started = started

    def all_steps(self) -> None:
        """Walk; raises `Failure` at the first step that does not go as it must."""
        self._step(f"the registry listens, operators at {self._fleet.api.url}")
        for node in self._ready():
            self._step(f"{node['node_id']} is ready: {gpus_in_words(node['gpus'])}")
        claim = self._claim()
        self._explain(
            {"job_id": "demo-job-2", "required_models": ["demo/nobody-has-this"]},
            "a job that needs a model nobody has",
        )
        self._drain(claim["node_id"])
        self._explain({"job_id": "demo-job-3"}, "any job, now")
        self._step("done")

    def _ready(self) -> list[dict[str, Any]]:
        expected = len(self._fleet.processes) - 1

        def look() -> list[dict[str, Any]] | None:
            nodes: list[dict[str, Any]] = self._fleet.api.get("/v1/nodes", NODES)["nodes"]
            ready = [node for node in nodes if node["status"] == "ready"]
            return ready if len(ready) == expected else None

        return self._fleet.await_(look, seconds=READY_SECONDS, what=f"{expected} nodes ready")

    def _claim(self) -> dict[str, Any]:
        job: dict[str, Any] = {"job_id": JOB}
        if self._fleet.simulated:
            job |= {"required_models": ["demo/whisper"], "gpu_count": 2}
        claim = self._fleet.api.post("/v1/claims", job, CLAIM)
        again = self._fleet.api.post("/v1/claims", job, CLAIM)
        if again["node_id"] != claim["node_id"]:
            raise Failure(f"the same job was placed twice: on {claim['node_id']} and {again['node_id']}")
        self._step(f"claimed a place for {JOB} on {claim['node_id']}: {len(claim['gpu_uuids'])} GPU(s)")
        return claim

    def _explain(self, job: dict[str, Any], words: str) -> None:
        answer = self._fleet.api.post("/v1/dispatch/explain", job, EXPLANATION)
        self._step(f"explained: {words}")
        for node_id in answer["able"]:
            self._say(f"           {node_id}: able")
        for one in answer["excluded"]:
            self._say(
                f"           {one['node_id']}: {one['reason']} (needs {one['need']}; has {one['have']})"
            )

    def _drain(self, node_id: str) -> None:
        path = f"/v1/nodes/{quoted(node_id)}"
        drained = self._fleet.api.post(f"{path}/drain", {}, NODE_DETAIL)
        if drained["status"] != "draining":
            raise Failure(f"{node_id} should be draining while {JOB} runs, but is {drained['status']}")
        self._step(f"{node_id} is draining: it keeps {JOB} and takes nothing new")
        self._fleet.api.delete(f"/v1/claims/{JOB}")

        def look() -> dict[str, Any] | None:
            node = self._fleet.api.attempt("GET", path, None)
            return None if isinstance(node, Problem) or node["status"] != "offline" else node

        gone = self._fleet.await_(look, seconds=OFFLINE_SECONDS, what=f"{node_id} offline after its last job")
        self._step(f"{node_id} is offline: {gone['reason_code']}")

    def _step(self, words: str) -> None:
        self._say(f"[{time.monotonic() - self._started:6.2f} s] {words}")
