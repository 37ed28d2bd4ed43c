"""A scheduler in forty lines: each line of its input is a job, the number of its GPUs and a command.

Try it with `echo '1 nvidia-smi -L' | python examples/scheduler.py http://127.0.0.1:8081`. A name behind the
address begins its jobs' ids, for a run that goes on where another one of that name ended. It survives a
`kill -9` of the registry: its jobs run on, and their claims with them. `docs/tutorial/scheduler.md`
explains it.
"""

import asyncio
import os
import secrets
import sys
from contextlib import AsyncExitStack, suppress

from gpu_agent.client import Claim, ClaimLost, JobRequest, NoAvailableNode, RegistryClient, RegistryError


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


async def run(client: RegistryClient, job: JobRequest, command: str, *, turn: asyncio.Lock) -> None:
    """Run one job: wait for GPUs, run it, release them; run it again where its claim was lost."""
    told = False
    while True:
        try:
            async with AsyncExitStack() as block:
                async with turn:  # a lock is fair: jobs get GPUs in the order of their lines
                    claim = await block.enter_async_context(client.claim(job, wait=3600, raise_on_loss=True))
                print(f"{job.job_id} runs on {claim.node_id} with {' '.join(claim.gpu_uuids)}", flush=True)
                print(f"{job.job_id} ended with {await execute(command, claim)}", flush=True)
                return
        except ClaimLost as lost:
            print(f"{job.job_id} starts again: {lost}", flush=True)
        except NoAvailableNode:
            if not told:
                print(f"{job.job_id} waits: no node can give it {job.gpu_count} GPUs yet", flush=True)
            told = True
            await asyncio.sleep(1)
        except RegistryError as refused:
            print(f"{job.job_id} does not run: {refused}", flush=True)  # such as `JobIdInUse`
            return


async def main(url: str, name: str, lines: list[str]) -> None:
    """Run all jobs, as many at a time as there are GPUs for."""
    token, turn = os.environ.get("GPU_REGISTRY_TOKEN") or None, asyncio.Lock()
    async with RegistryClient(url, token=token, retry_seconds=3600) as client, asyncio.TaskGroup() as jobs:
        for number, line in enumerate(lines):
            try:
                gpus, command = line.split(maxsplit=1)
                job = JobRequest(job_id=f"{name}-{number}", gpu_count=int(gpus))
            except ValueError:
                print(f"{line!r} is no job: write a number of GPUs and a command", flush=True)
            else:
                jobs.create_task(run(client, job, command, turn=turn))


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit("name the registry: python scheduler.py http://127.0.0.1:8081 [NAME]")
    address, run_name, *_ = [*sys.argv[1:], secrets.token_hex(4)]
    with suppress(KeyboardInterrupt):  # the jobs were ended, and their claims released
        asyncio.run(main(address, run_name, sys.stdin.read().splitlines()))
