"""What a command loads before it works: only what it needs, so that help and short commands stay quick."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.nvml_fake.control import FakeNvml
from tests.probe.models.caches import repository, revision, whisper_files
from tests.programs import COMMAND, Program

_LIST = """\
import sys
from gpu_agent.cli.main import main
try:
    main(sys.argv[1:])
finally:
    print("LOADED", *sys.modules)
"""


def loaded(*words: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", _LIST, *words], capture_output=True, text=True, check=False, timeout=60
    )
    return set(done.stdout.rpartition("LOADED ")[2].split())


@pytest.mark.parametrize(
    "words",
    [
        "status",
        "refresh",
        "explain",
        "drain",
        "resume",
        "job run",
        "job list",
        "registry node list",
        "registry node show",
        "registry explain node",
        "registry node drain",
        "registry node remove",
    ],
)
def test_a_help_page_loads_no_pydantic(words: str) -> None:
    assert "pydantic" not in loaded(*words.split(), "--help")


def test_status_loads_no_model_that_it_does_not_need() -> None:
    modules = loaded("status", "--json", "--socket", "/nowhere/agent.sock")
    assert "gpu_agent.wire.control" in modules
    unneeded = {
        "gpu_agent.wire.api",
        "gpu_agent.wire.messages",
        "gpu_agent.session.types",
        "gpu_agent.probe.snapshot",
    }
    assert not modules & unneeded


def imported_by(*words: str, environment: dict[str, str]) -> set[str]:
    """What a run of the program imports; its child, which is another process, prints in between."""
    traced = {**environment, "PYTHONPROFILEIMPORTTIME": "1"}
    done = subprocess.run(
        [*COMMAND, *words], env=traced, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems read the host and start the child by more")
def test_a_probe_loads_nothing_that_generates_code_or_calls_a_driver(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=1)
    needed = ("LD_LIBRARY_PATH", "NVML_FAKE_CONTROL")
    environment = {name: value for name, value in fake.environment().items() if name in needed}
    hub = tmp_path / "hub"
    repository(hub, "org/model").snapshot(revision(1), whisper_files())
    modules = imported_by("probe", "--json", environment={**environment, "HF_HUB_CACHE": str(hub)})
    assert {"gpu_agent.probe.snapshot", "gpu_agent.probe.models.huggingface", "psutil"} <= modules
    unneeded = {
        *("dataclasses", "inspect", "tempfile", "shutil", "logging", "ctypes", "pynvml"),
        *("asyncio", "pydantic", "importlib.metadata"),
        *("gpu_agent.probe.nvml.client", "gpu_agent.node.settings", "gpu_agent.wire.codes"),
    }
    assert not modules & unneeded


def test_an_agent_loads_no_library_for_what_it_never_does(tmp_path: Path) -> None:
    with Program(
        *("run", "--registry", "ws://127.0.0.1:9", "--simulate", "1xL4", "--state-dir", str(tmp_path)),
        environment={"PYTHONPROFILEIMPORTTIME": "1"},
    ) as agent:
        agent.await_event("session_backing_off", within_seconds=20)
        agent.end()
        modules = {line.rpartition("|")[2].strip() for line in agent.other}
    assert {
        "pydantic._internal._model_construction",
        "websockets.asyncio.client",
        "gpu_agent.node.daemon",
    } <= modules
    unneeded = {
        "importlib.metadata",
        "csv",
        "zipfile",
        "urllib.request",
        "http.client",
        "email.utils",
        "difflib",
    }
    assert not modules & {*unneeded, "difflib", "gpu_agent.wire.api"}
