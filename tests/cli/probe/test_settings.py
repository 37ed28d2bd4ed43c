import argparse
from pathlib import Path

import pytest

from gpu_agent.cli.outcome import ExitCode, Failure
from gpu_agent.cli.probe.settings import asked, settings_of

CONFIGURATION = """
model_directories = ["/srv/models"]
accept_public_jobs = true
simulate = "4xL4-24GB"
state_dir = "/var/lib/one"
[labels]
zone = "a"
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "agent.toml"
    path.write_text(CONFIGURATION)
    return path


def arguments(**given: object) -> argparse.Namespace:
    return argparse.Namespace(**{"config": None, "simulate": None, "state_dir": None, **given})


def test_the_probes_part_and_the_owners_part_are_read_without_a_registry(path: Path) -> None:
    given = arguments(config=str(path))
    assert asked(given).options.model_directories == (Path("/srv/models"),)
    assert (asked(given).simulate, asked(given).apart) == ("4xL4-24GB", "\n/var/lib/one")
    owner = settings_of(given).owner
    assert (owner.labels, owner.accept_public_jobs) == ({"zone": "a"}, True)


def test_the_commands_own_options_come_first(path: Path) -> None:
    given = asked(arguments(config=str(path), simulate="1xL4-24GB", state_dir="/var/lib/two"))
    assert (given.simulate, given.apart) == ("1xL4-24GB", "\n/var/lib/two")


def test_a_missing_file_is_a_configuration_failure(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"nowhere\.toml") as failed:
        asked(arguments(config=str(tmp_path / "nowhere.toml")))
    assert failed.value.code is ExitCode.CONFIGURATION


def test_settings_for_tls_keep_no_probe_from_looking(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    for named in ('registry_url = "wss://registry.example"\n', ""):
        file.write_text(f'{named}tls_ca_file = "/etc/gpu-agent/ca.pem"\n')
        assert settings_of(arguments(config=str(file))).security.ca_file == Path("/etc/gpu-agent/ca.pem")
