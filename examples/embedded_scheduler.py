"""A scheduler in forty lines: it embeds the registry and runs each word of its input, a model id, as a job.

Try it with `echo my/model my/model | python examples/embedded_scheduler.py STATE_DIRECTORY`. One that uses a
registry elsewhere is `examples/scheduler.py`.
"""

import asyncio
import contextlib
import sys
from pathlib import Path

from gpu_agent.server import (
    Address,
    ClaimView,
    Job,
    NewToken,
    RegistryService,
    ServiceSettings,
    Thresholds,
    open_store,
)


async def run(registry: RegistryService, job: Job) -> None:
    """Claim a slot, renew the claim while the job runs, release it; claim again where it was lost."""
    while not isinstance(claim := await registry.claim(job), ClaimView):
        print(f"{job.job_id} waits: {claim.code}", flush=True)
        await asyncio.sleep(1)
    print(f"{job.job_id} runs on {claim.node_id}", flush=True)
    ended = asyncio.Event()
    asyncio.get_running_loop().call_later(1, ended.set)  # here the job goes to claim.endpoint instead
    while not ended.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(registry.thresholds.claim_ttl_seconds / 3):
                await ended.wait()
        if not isinstance(await registry.renew(job.job_id), ClaimView):
            await run(registry, job)  # its node went offline, and the claim with it
            return
    await registry.release(job.job_id)
    print(f"{job.job_id} is done", flush=True)


async def main(folder: Path, models: list[str]) -> None:
    """Be a registry, and its scheduler until all jobs are done."""
    busy = Thresholds(max_cpu_percent=100)  # nodes whose CPU is busy get jobs too
    settings = ServiceSettings(node_listen=Address("127.0.0.1", 0), allow_simulated=True, thresholds=busy)
    registry = RegistryService(settings, open_store("sqlite", folder))
    await registry.start()
    joining = await registry.tokens.create_join(uses=None)
    assert isinstance(joining, NewToken), joining  # noqa: S101 - an example stops where a service would retry
    token_file = folder / "join.token"
    token_file.touch(mode=0o600)
    token_file.write_text(joining.token)
    url = f"ws://{registry.node_address}/ws/node"
    files = f"--join-token-file {token_file} --state-dir {folder / 'agent'}"
    print(f"gpu-agent run --registry {url} {files}", flush=True)
    async with asyncio.TaskGroup() as group:
        for number, model in enumerate(models):
            group.create_task(run(registry, Job(job_id=f"job-{number}", required_models=(model,))))
    await registry.stop()


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit("name a directory for its state: python embedded_scheduler.py STATE_DIRECTORY")
    asyncio.run(main(Path(sys.argv[1]), sys.stdin.read().split()))
