"""A scheduler in forty lines: each line of its input is a job, the number of its GPUs and a command.

Try it with `echo '1 nvidia-smi -L' | python examples/scheduler.py http://127.0.0.1:8081`. It survives a
`kill -9` of the registry: its jobs run on, and their claims with them. `docs/scheduler.md` explains it.
"""

import asyncio
import os
import sys

from gpu_agent.client import Claim, ClaimLost, JobRequest, NoAvailableNode, RegistryClient


async def execute(command: str, claim: Claim) -> int:
    """Run a command with the claimed GPUs, here or wherever `claim.node_id` is; end it with its claim."""
    gpus = {"CUDA_VISIBLE_DEVICES": ",".join(claim.gpu_uuids)}
    process = await asyncio.create_subprocess_shell(command, env={**os.environ, **gpus})
    try:
        return await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def run(client: RegistryClient, job: JobRequest, command: str) -> None:
    """Run one job: wait for GPUs, run it, release them; run it again where its claim was lost."""
    while True:
        try:
            async with client.claim(job, wait=3600, raise_on_loss=True) as claim:
                print(f"{job.job_id} runs on {claim.node_id} with {' '.join(claim.gpu_uuids)}", flush=True)
                print(f"{job.job_id} ended with {await execute(command, claim)}", flush=True)
                return
        except ClaimLost as lost:
            print(f"{job.job_id} starts again: {lost}", flush=True)
        except NoAvailableNode as none:
            print(f"{job.job_id} waits: {none}", flush=True)
            await asyncio.sleep(1)  # no node is big enough yet


async def main(url: str, lines: list[str]) -> None:
    """Run all jobs, as many at a time as there are GPUs for."""
    token = os.environ.get("GPU_REGISTRY_TOKEN")
    async with RegistryClient(url, token=token, retry_seconds=3600) as client, asyncio.TaskGroup() as jobs:
        for number, line in enumerate(lines):
            gpus, command = line.split(maxsplit=1)
            job = JobRequest(job_id=f"job-{number}", gpu_count=int(gpus))
            jobs.create_task(run(client, job, command))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.stdin.read().splitlines()))
