"""Commands whose user may start no more threads and processes: they say so in one sentence, in time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.nvml_fake.control import FakeNvml
from tests.waiting import patience

PROGRAM = """\
import os, resource, sys
import gpu_agent.cli.output.text, gpu_agent.runtime.logs  # what the sentence takes, as the next lines load
from gpu_agent.cli.main import main
main(sys.argv[1:])  # what the other user below may not read
sys.stdout.flush()
if os.geteuid() == 0:
    os.setuid(54321)
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
print("limited", file=sys.stderr, flush=True)
sys.exit(main(sys.argv[1:]))
"""
SENTENCE = "gpu-agent: no thread or process can be started"


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
@pytest.mark.parametrize("command", ["probe --simulate 1xL4", "probe --json", "check", "doctor"])
def test_a_user_who_may_start_nothing_more_is_named_the_limit(command: str, tmp_path: Path) -> None:
    environ = {**os.environ, **FakeNvml(tmp_path).environment()}
    environ.pop("GPU_AGENT_DEBUG", None)
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, *command.split()],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=patience(60),
    )
    said = ended.stderr.partition("limited\n")[2]
    assert (ended.returncode, said.count("\n")) == (1, 1), said
    assert said.startswith("gpu-agent: no thread or process can be started")
    assert "TasksMax" in said
