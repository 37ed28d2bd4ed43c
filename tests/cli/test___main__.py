import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import COMMAND, free_port
from tests.waiting import patience

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="this machine has no /dev/full")
NO_GPU = {"LD_LIBRARY_PATH": "/nowhere"}
"""No driver is found there, whatever the machine has."""


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """Run a line of shell in which `gpu-agent` is the program under test."""
    environment = {**os.environ, **NO_GPU, "PYTHONUNBUFFERED": ""}
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line.replace("gpu-agent", COMMAND[0])],
        env=environment,
        capture_output=True,
        text=True,
        timeout=patience(30),
        check=False,
    )


@pytest.mark.parametrize("form", ["--json", "", "--register-preview"])
@pytest.mark.parametrize("simulate", ["--simulate 8xH100-80GB", ""])
def test_a_reader_who_leaves_changes_no_exit_code(form: str, simulate: str) -> None:
    here = shell(f"gpu-agent probe {form} {simulate} > /dev/null")
    left = shell(f"gpu-agent probe {form} {simulate} | true")
    assert left.returncode == here.returncode
    assert "Broken" not in left.stderr


@pytest.mark.parametrize("words", ["schema", "--help", "probe --help", "--version"])
def test_a_reader_who_leaves_a_long_output_is_no_fault(words: str) -> None:
    done = shell(f"gpu-agent {words} | true")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("closed", ["2>&-", pytest.param("2>/dev/full", marks=needs_full), "2> >(true)"])
def test_no_stderr_changes_no_exit_code(closed: str) -> None:
    assert (
        shell(f"gpu-agent registry node list --server http://127.0.0.1:{free_port()} {closed}").returncode
        == 5
    )
    assert shell(f"gpu-agent prob {closed}").returncode == 4


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_change_no_exit_code(closed: str) -> None:
    assert shell(f"gpu-agent probe --simulate 8xH100-80GB {closed}").returncode == 0
    assert shell(f"gpu-agent probe --json {closed}").returncode in (0, 2, 3)


@needs_full
@pytest.mark.parametrize("words", ["schema", "schema node_error", "--help", "probe --simulate 1xL4"])
def test_an_output_that_cannot_be_written_is_a_failure_and_no_bug(words: str) -> None:
    done = shell(f"gpu-agent {words} > /dev/full")
    assert done.returncode == 1
    assert "the output could not be written (No space left on device)" in done.stderr
    assert "bug" not in done.stderr


def test_an_encoding_that_lacks_letters_loses_letters_and_nothing_else() -> None:
    for encoding in ("ascii", "latin-1"):
        done = shell(f"PYTHONIOENCODING={encoding} gpu-agent probe --simulate 8xH100-80GB")
        assert (done.returncode, done.stderr) == (0, "")
        assert re.search(r" \d+C ", done.stdout)


@pytest.mark.parametrize(
    "loading", ["gpu_agent.cli.main", "argparse", "gpu_agent.cli.demo", "gpu_agent.cli.output.screen"]
)
def test_an_interruption_while_it_loads_is_reported_without_a_traceback(loading: str) -> None:
    program = f"""
import os, signal, sys
from gpu_agent.cli.__main__ import main
class Interrupting:
    def find_spec(name, path, target=None):
        if name == {loading!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting)
sys.modules.pop({loading!r}, None)
sys.argv[1:] = ["demo", "--once"]
sys.exit(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=patience(30), check=False
    )
    assert (done.returncode, done.stderr) == (130, "")


def test_it_runs_as_a_module_too() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gpu_agent.cli", "--version"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert done.stdout.startswith("gpu-agent ")


def test_a_command_that_lives_for_long_has_its_garbage_collected() -> None:
    program = (
        "import gc, sys; from gpu_agent.cli import __main__, schema\n"
        "schema.main = lambda _: int(not gc.isenabled())\n"
        "sys.argv = ['gpu-agent', 'schema']\n"
        "sys.exit(__main__.main())\n"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=patience(30), check=False).returncode == 0


def test_a_probe_within_another_program_leaves_its_garbage_collector_as_it_was() -> None:
    program = (
        "import gc, sys; from gpu_agent.cli.main import main\n"
        "code = main(['probe', '--json', '--simulate', '1xL4-24GB'])\n"
        "sys.exit(code or not gc.isenabled())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.DEVNULL, timeout=patience(30), check=False
    )
    assert done.returncode == 0
