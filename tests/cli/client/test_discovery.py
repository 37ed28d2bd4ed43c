import socket
import sys
from pathlib import Path

import pytest

from gpu_agent.cli.client import discovery as api_address
from gpu_agent.cli.client.discovery import (
    DEFAULT_API,
    SERVER_VARIABLE,
    STATE_DIR_VARIABLE,
    RegistryEndpoint,
    check_url,
    find_endpoint,
)
from gpu_agent.cli.command import Arguments, ExitCode, Failure
from gpu_agent.runtime.state_dir import ENDPOINT_FILE, write_endpoint_file
from gpu_agent.runtime.state_dir import Endpoint as LeftEndpoint

PIN = "sha256//" + "A" * 43 + "="
OWN = "https://127.0.0.1:8443"


@pytest.fixture
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state directory of this machine's registry; nothing of the true machine is read."""
    monkeypatch.setenv(STATE_DIR_VARIABLE, str(tmp_path))
    monkeypatch.delenv(SERVER_VARIABLE, raising=False)
    return tmp_path


def place(api: str | None = None) -> RegistryEndpoint:
    return find_endpoint(Arguments(server=api))


def test_where_no_registry_has_left_its_address_the_usual_one_is_taken(state_dir: Path) -> None:
    assert place() == RegistryEndpoint(DEFAULT_API)
    assert not (state_dir / ENDPOINT_FILE).exists()


def test_this_machines_own_registry_is_found_where_it_says_it_is(state_dir: Path) -> None:
    write_endpoint_file(state_dir, LeftEndpoint(OWN, PIN))
    assert place() == RegistryEndpoint(OWN, state_dir, PIN)
    assert place().endpoint_file == state_dir / ENDPOINT_FILE


def test_what_leads_to_a_name_is_not_followed(state_dir: Path) -> None:
    write_endpoint_file(state_dir, LeftEndpoint("https://elsewhere.example", PIN))
    assert place() == RegistryEndpoint(DEFAULT_API)


def test_a_registry_that_is_named_is_the_one(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_endpoint_file(state_dir, LeftEndpoint(OWN, PIN))
    assert place("https://registry.example/") == RegistryEndpoint("https://registry.example")
    monkeypatch.setenv(SERVER_VARIABLE, "http://10.0.0.1:8081")
    assert place() == RegistryEndpoint("http://10.0.0.1:8081")
    assert place("https://registry.example") == RegistryEndpoint("https://registry.example")


def test_this_machines_own_is_known_by_its_key_where_it_is_named_too(state_dir: Path) -> None:
    write_endpoint_file(state_dir, LeftEndpoint(OWN, PIN))
    assert place(f"{OWN}/") == RegistryEndpoint(OWN, state_dir, PIN)


@pytest.fixture
def two_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The state directories of a user's own registry and of the unit's."""
    monkeypatch.delenv(STATE_DIR_VARIABLE, raising=False)
    monkeypatch.delenv(SERVER_VARIABLE, raising=False)
    users, units = tmp_path / "users", tmp_path / "units"
    monkeypatch.setattr(api_address, "default_state_dir", lambda: users)
    monkeypatch.setattr(api_address, "UNIT_FOLDER", units)
    users.mkdir()
    units.mkdir()
    return users, units


def test_the_platforms_place_goes_before_the_units(two_places: tuple[Path, Path]) -> None:
    users, units = two_places
    write_endpoint_file(units, LeftEndpoint(OWN, PIN))
    assert place().state_dir == units
    write_endpoint_file(users, LeftEndpoint("http://127.0.0.1:9"))
    assert place().url == "http://127.0.0.1:9"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says who listens")
def test_a_registry_that_is_served_goes_before_one_that_was_killed(two_places: tuple[Path, Path]) -> None:
    users, units = two_places
    write_endpoint_file(users, LeftEndpoint("http://127.0.0.1:9"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        write_endpoint_file(units, LeftEndpoint(f"http://127.0.0.1:{listener.getsockname()[1]}"))
        assert place().state_dir == units
    assert place().state_dir == users


@pytest.mark.parametrize(
    "url", ["", "ftp://h", "http://", "http://u:p@h", "http://h?x", "http://h:x", "http://h h"]
)
def test_what_is_no_url_of_a_registry_is_refused(url: str) -> None:
    with pytest.raises(Failure, match="is no URL of a registry") as refused:
        check_url(url)
    assert refused.value.code is ExitCode.CONFIGURATION
