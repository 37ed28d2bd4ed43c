"""Which GPUs the agent reads: this machine's, through NVML, or simulated ones.

Both are opened once for the life of the process, and closed at its end.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gpu_agent.node.prober import ReadGpus
from gpu_agent.probe.health import Missed
from gpu_agent.probe.nvml.nvml import ChildPolicy, NvmlProbe
from gpu_agent.probe.nvml.process import hung_sentence
from gpu_agent.probe.simulated import SimulatedGpus
from gpu_agent.wire.inventory import GpuReport

GOODBYE_SECONDS = 0.5
"""How long a child may take to end by itself when the agent leaves."""


@asynccontextmanager
async def opened_gpus(
    *, simulate: str | None, seed: str, deadline_seconds: float, keep_open: bool = True
) -> AsyncIterator[ReadGpus]:
    """Give the way to read them. `seed` tells one simulated machine from another.

    Not to keep the driver open between two readings lets a laptop's GPU sleep, and makes each slower.
    """
    if simulate is not None:
        gpus = SimulatedGpus(simulate, seed=seed)

        async def read() -> GpuReport | Missed:
            now = time.time()
            hung = gpus.hung_seconds(now)
            if hung is None:
                return gpus.read(now)
            since = time.monotonic() - hung
            return Missed(reason="nvml_hung", since=since, detail=hung_sentence(deadline_seconds))

        yield read
        return
    policy = ChildPolicy(goodbye_seconds=GOODBYE_SECONDS)
    probe = NvmlProbe(deadline_seconds=deadline_seconds, policy=policy)
    try:
        yield probe.read if keep_open else _closed_after(probe)
    finally:
        await probe.close()


def _closed_after(probe: NvmlProbe) -> ReadGpus:
    """Read, and let the child go; one that is stuck is kept, so that there is never another beside it."""

    async def read() -> GpuReport | Missed:
        result = await probe.read()
        if isinstance(result, GpuReport):
            await probe.close()
        return result

    return read
