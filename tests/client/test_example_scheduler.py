"""`examples/scheduler.py` beside other schedulers of one registry: whose job is whose, and in which order."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from gpu_agent.client import JobRequest, RegistryClient
from tests.client.harness import ONE_GPU, Front
from tests.programs import free_port
from tests.server.harness import Node
from tests.waiting import patience, until

EXAMPLE = Path(__file__).parents[2] / "examples" / "scheduler.py"


class Run:
    """One run of the example, with these lines."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def output(self) -> str:
        """What it printed until it ended without a fault."""
        async with asyncio.timeout(patience(30)):
            said, _ = await self._process.communicate()
        assert self._process.returncode == 0, said
        return said.decode()

    async def interrupted(self, *, after: str, seconds: float) -> str:
        """What it printed, errors included, until Ctrl-C some seconds after it said this."""
        assert self._process.stdout is not None
        async with asyncio.timeout(patience(30)):
            first = (await self._process.stdout.readline()).decode()
            assert after in first
            await asyncio.sleep(seconds)
            self._process.send_signal(signal.SIGINT)
            rest, _ = await self._process.communicate()
        assert self._process.returncode == 0, rest
        return first + rest.decode()


@asynccontextmanager
async def running(front: Front, *lines: str, name: str | None = None) -> AsyncIterator[Run]:
    words = [str(EXAMPLE), front.url, *([] if name is None else [name])]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, *words, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.STDOUT
    )
    assert process.stdin is not None
    process.stdin.write("\n".join(lines).encode())
    process.stdin.close()
    try:
        yield Run(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def until_exists(file: Path) -> str:
    """A command that runs until a file is there."""
    return f"until [ -e {file} ]; do sleep 0.05; done"


async def test_two_runs_share_no_claim(front: Front, gpu_node: Node, tmp_path: Path) -> None:
    assert gpu_node.node_id
    line = f"1 {until_exists(tmp_path / 'end')}"
    async with running(front, line) as one, running(front, line) as other:
        await until(lambda: len({claim.job_id for claim in front.service.claims()}) == 2)
        (tmp_path / "end").touch()
        said = await one.output() + await other.output()
    assert said.count("ended with 0") == 2


async def test_a_run_of_the_same_name_gets_the_claims_of_the_one_before(
    front: Front, client: RegistryClient, gpu_node: Node
) -> None:
    assert gpu_node.node_id
    before = await client.create_claim(JobRequest(job_id="nightly-0", gpu_count=1))
    async with running(front, "1 echo $CUDA_VISIBLE_DEVICES", name="nightly") as run:
        said = await run.output()
    assert before.gpu_uuids is not None
    assert f"\n{before.gpu_uuids[0]}\n" in said


async def test_a_bad_line_and_an_id_in_use_stop_no_other_job(
    front: Front, client: RegistryClient, gpu_node: Node
) -> None:
    assert gpu_node.node_id
    await client.create_claim(JobRequest(job_id="mine-2", gpu_name="H100", gpu_count=1))
    lines = ("many echo 0", "-1 echo 1", "1 echo taken", "", "1 echo four")
    async with running(front, *lines, name="mine") as run:
        said = await run.output()
    assert said.count("is no job") == 3
    assert "mine-2 does not run" in said
    assert "four\nmine-4 ended with 0" in said


async def test_a_job_that_no_node_can_have_is_told_once_and_ctrl_c_ends_quietly(
    front: Front, gpu_node: Node
) -> None:
    assert gpu_node.node_id
    async with running(front, "99 true", name="big") as run:
        said = await run.interrupted(after="big-0 waits", seconds=2.5)
    assert said == "big-0 waits: no node can give it 99 GPUs yet\n"


async def test_jobs_start_in_the_order_of_their_lines(
    front: Front, client: RegistryClient, gpu_node: Node
) -> None:
    """The first job needs more than is free, the second one does not."""
    assert gpu_node.node_id
    other = await client.create_claim(ONE_GPU)
    async with running(front, "2 echo first", "1 echo second", name="mine") as run:
        await until(lambda: "mine-0" in {one.job_id for one in front.service.queue()})
        await client.release("train", other.claim_id)
        said = await run.output()
    assert [line for line in said.splitlines() if line in ("first", "second")] == ["first", "second"]


async def test_where_nothing_answers_it_says_once_that_it_waits_and_for_whom() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(EXAMPLE), url, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.STDOUT
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"1 true\n1 true\n")
    process.stdin.close()
    async with asyncio.timeout(patience(10)):
        said = (await process.stdout.readline()).decode()
        assert said.startswith(f"waiting: no registry answers at {url} (")
        await asyncio.sleep(1)  # the time in which each job asks several times more
        process.send_signal(signal.SIGINT)
        assert b"waiting" not in await process.stdout.read()
        assert await process.wait() == 0


async def test_without_an_address_it_says_how_to_start_it() -> None:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, str(EXAMPLE), stdin=pipe, stderr=pipe)
    async with asyncio.timeout(patience(30)):
        _, said = await process.communicate()
    assert said.decode() == "name the registry: python scheduler.py http://127.0.0.1:8081 [NAME]\n"
