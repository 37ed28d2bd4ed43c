import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gpu_agent.local import socket_path as place
from gpu_agent.local.socket_path import MAX_ADDRESS_BYTES, address_of, socket_path
from gpu_agent.node.identity import default_state_dir
from tests.node.control_harness import reachable_folder
from tests.node.other_user import needs_root, output_of, started


@pytest.fixture(autouse=True)
def _bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No configuration and no service of this machine's takes part."""
    monkeypatch.setattr(place, "_CONFIGURATION", tmp_path / "agent.toml")
    monkeypatch.setattr(place, "UNIT_SOCKET", tmp_path / "run" / "agent.sock")


def configured(tmp_path: Path, words: str) -> None:
    (tmp_path / "agent.toml").write_text(words)


def test_without_anything_it_is_with_the_state_as_the_agent_itself_places_it() -> None:
    assert socket_path() == default_state_dir() / "agent.sock"


def test_a_users_state_may_be_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/srv/state")
    assert socket_path() == Path("/srv/state/gpu-agent/agent.sock") == default_state_dir() / "agent.sock"


def test_a_variable_goes_before_the_configuration_and_that_before_the_services_place(
    tmp_path: Path,
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "agent.sock").touch()
    assert socket_path({}) == tmp_path / "run" / "agent.sock"
    configured(tmp_path, 'socket = "/run/other.sock"\nstate_dir = "/srv/agent"\n')
    assert socket_path({}) == Path("/run/other.sock")
    assert socket_path({"GPU_AGENT_STATE_DIR": "/s"}) == Path("/s/agent.sock")
    assert socket_path({"GPU_AGENT_STATE_DIR": "/s", "GPU_AGENT_SOCKET": "/x"}) == Path("/x")


def test_a_user_without_a_home_finds_the_agent_of_such_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_number: int) -> object:
        raise KeyError

    for name in ("HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert socket_path({}) == default_state_dir() / "agent.sock"


@pytest.mark.parametrize("variable", ["GPU_AGENT_SOCKET", "GPU_AGENT_STATE_DIR"])
def test_a_home_that_is_not_there_is_no_reason_to_fail(variable: str) -> None:
    assert str(socket_path({variable: "~no-such-user/s"})).startswith("~no-such-user/s")


@needs_root
def test_a_user_without_a_home_runs_its_job_all_the_same() -> None:
    program = (
        "import os\nfrom gpu_agent import local\nos.environ.pop('HOME', None)\nos.setuid(54321)\n"
        "with local.job('job-1') as job: print(job.announced)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.stderr) == ("False\n", "")


def test_a_configured_state_directory_holds_the_socket(tmp_path: Path) -> None:
    configured(tmp_path, 'state_dir = "/srv/agent"\n')
    assert socket_path({}) == Path("/srv/agent/agent.sock")


@pytest.mark.parametrize("words", ["socket = 7", "socket", "\udcff".encode("utf-8", "surrogateescape")])
def test_a_configuration_that_cannot_be_read_says_nothing(tmp_path: Path, words: str | bytes) -> None:
    (tmp_path / "agent.toml").write_bytes(words.encode() if isinstance(words, str) else words)
    assert socket_path({}) == default_state_dir() / "agent.sock"


def test_a_path_of_any_length_can_be_listened_at_and_connected_to(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100) / ("y" * 100)
    folder.mkdir(parents=True)
    path = folder / "agent.sock"
    assert len(os.fsencode(path)) > MAX_ADDRESS_BYTES
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        with address_of(path) as address:
            listener.bind(address)
        listener.listen()
        with address_of(path) as address:
            client.connect(address)


def test_a_worker_pays_for_the_standard_library_alone() -> None:
    program = (
        "import sys, gpu_agent.local\n"
        "heavy = ('pydantic', 'asyncio', 'platformdirs', 'websockets')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@needs_root
def test_a_place_that_is_closed_to_the_asker_is_the_place_all_the_same() -> None:
    asks = (
        "import sys\nfrom pathlib import Path\nfrom gpu_agent.local import NoAgentError, ask, socket_path\n"
        "socket_path._CONFIGURATION, socket_path.UNIT_SOCKET = Path('/nowhere'), Path(sys.argv[1])\n"
        "try:\n    ask('status')\nexcept NoAgentError as error:\n    print(error)"
    )
    with reachable_folder() as folder:
        (folder / "run").mkdir(mode=0o750)
        place_of_unit = folder / "run" / "agent.sock"
        output = output_of(started(asks, str(place_of_unit), also_load="gpu_agent.local"))
    assert output.startswith(
        f"this user may not talk to the agent at {place_of_unit}: its group, its own user and root may"
    )
    assert "gpasswd -a USER gpu-agent" in output
