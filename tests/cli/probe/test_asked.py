import argparse
from pathlib import Path

import pytest

from gpu_agent.cli.probe import asked as probe_asked
from gpu_agent.cli.probe.asked import something_configured


@pytest.mark.parametrize(
    ("options", "environ", "configured"),
    [
        ({}, {}, False),
        ({}, {"GPU_MODE": "x"}, False),
        ({}, {"GPU_AGENT_SIMULATE": "L4"}, True),
        ({}, {"gpu_agent_simulate": "L4"}, True),
        ({"config": "agent.toml"}, {}, True),
        ({"state_dir": "state"}, {}, True),
    ],
)
def test_settings_are_loaded_only_where_there_are_some(
    options: dict[str, str],
    environ: dict[str, str],
    configured: bool,  # noqa: FBT001 - a table's column
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probe_asked, "SYSTEM_CONFIGURATION", tmp_path / "agent.toml")
    arguments = argparse.Namespace(**{"config": None, "state_dir": None, **options})
    assert something_configured(arguments, environ) is configured
    (tmp_path / "agent.toml").touch()
    assert something_configured(arguments, environ) is True
