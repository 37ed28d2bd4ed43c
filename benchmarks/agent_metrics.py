"""What metrics cost an agent: memory (PSS) of parent and child together, and CPU time a scrape, with 8 GPUs.

    python benchmarks/agent_metrics.py [--scrapes 400] [--check]

Two agents run side by side and read the same 8 GPUs of the fake NVML library through the true child process:
one with `metrics_listen` and `metrics_file`, one without. The second is the baseline. Memory is measured
after all scrapes. The CPU time of a scrape is what the first agent used more than the second meanwhile,
divided by the scrapes. As many requests for a page that is not there show what the connection costs of that.
Linux only. `--check` exits 1 when a stated target is missed.
"""

import argparse
import os
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.nvml_fake.control import FakeNvml
from tests.programs import Agent, Registry, eventually, free_port

MEMORY_TARGET_MIB = 4.0
SCRAPE_TARGET_MS = 5.0
GPUS = 8
SETTLE_SECONDS = 15.0
CONFIGURATION = 'metrics_listen = "127.0.0.1:{port}"\nmetrics_file = "{folder}/gpu_agent.prom"\n'
TICKS = os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(member for child in children for member in family(int(child)))]


def pss_mib(pid: int) -> float:
    """Proportional memory of a process and its descendants."""
    return sum(
        int(line.split()[1]) / 1024
        for member in family(pid)
        for line in Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()
        if line.startswith("Pss:")
    )


def cpu_seconds(pid: int) -> float:
    """User and system time that a process and its descendants have used."""
    ticks = 0
    for member in family(pid):
        fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS


def fetch(url: str) -> bytes:
    """The body; nothing where there is no such page."""
    with suppress(urllib.error.HTTPError), urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - ours
        body: bytes = answer.read()
        return body
    return b""


def milliseconds_a_request(url: str, *, requests: int, asked: int, beside: int) -> float:
    """CPU time of the process `asked` for each request, less what `beside` uses meanwhile without one."""
    before = cpu_seconds(asked), cpu_seconds(beside)
    for _ in range(requests):
        fetch(url)
    more = (cpu_seconds(asked) - before[0]) - (cpu_seconds(beside) - before[1])
    return more / requests * 1000


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scrapes", type=int, default=400)
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, port = Path(temporary), free_port()
        fake = FakeNvml(folder, gpus=GPUS)
        fake.unset("log")
        config = folder / "agent.toml"
        config.write_text(CONFIGURATION.format(port=port, folder=folder))
        url = f"http://127.0.0.1:{port}"
        with (
            Registry() as registry,
            Agent(registry.node_url, folder / "off", simulate=None, environment=fake.environment()) as off,
            Agent(
                registry.node_url,
                folder / "on",
                "--config",
                str(config),
                simulate=None,
                environment=fake.environment(),
            ) as on,
        ):
            registry.await_ready(2, within_seconds=60)
            eventually(
                lambda: fetch(f"{url}/metrics").count(b"\nDCGM_FI_DEV_GPU_TEMP{") == GPUS,
                within_seconds=30,
                what="figures of 8 GPUs",
            )
            time.sleep(SETTLE_SECONDS)
            pids = {"asked": on.pid, "beside": off.pid}
            scrape = milliseconds_a_request(f"{url}/metrics", requests=arguments.scrapes, **pids)
            other = milliseconds_a_request(f"{url}/none", requests=arguments.scrapes, **pids)
            size = len(fetch(f"{url}/metrics"))
            time.sleep(SETTLE_SECONDS)
            with_metrics, without = pss_mib(on.pid), pss_mib(off.pid)
    more = with_metrics - without
    print(f"baseline: agent without metrics, 8 GPUs through NVML  {without:5.1f} MiB PSS")
    print(
        f"agent with a port and a file                          {with_metrics:5.1f} MiB PSS: {more:+.1f} MiB "
        f"(target {MEMORY_TARGET_MIB:.0f}), {with_metrics / without:.2f} x baseline"
    )
    print(
        f"a scrape of {size / 1024:.1f} KiB: {scrape:.2f} ms of CPU (target {SCRAPE_TARGET_MS:.0f}); "
        f"a request for a page that is not there: {other:.2f} ms, {scrape / max(other, 1e-9):.1f} x"
    )
    missed = more > MEMORY_TARGET_MIB or scrape > SCRAPE_TARGET_MS
    return int(arguments.check and missed)


if __name__ == "__main__":
    sys.exit(main())
