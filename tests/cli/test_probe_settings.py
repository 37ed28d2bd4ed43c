from pathlib import Path

import pytest

from gpu_agent.cli.outcome import ExitCode, Failure
from gpu_agent.cli.probe_settings import owner_of, probe_options

CONFIGURATION = """
model_directories = ["/srv/models"]
accept_public_jobs = true
[labels]
zone = "a"
"""


def test_the_probes_part_and_the_owners_part_are_read_without_a_registry(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(CONFIGURATION)
    assert probe_options(str(path)).model_directories == (Path("/srv/models"),)
    assert (owner_of(str(path)).labels, owner_of(str(path)).accept_public_jobs) == ({"zone": "a"}, True)


def test_a_missing_file_is_a_configuration_failure(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"nowhere\.toml") as failed:
        probe_options(str(tmp_path / "nowhere.toml"))
    assert failed.value.code is ExitCode.CONFIGURATION
