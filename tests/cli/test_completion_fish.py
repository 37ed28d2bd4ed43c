import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cli.completion_scripts import WITH_THE_PROGRAM, script

FISH = shutil.which("fish")
pytestmark = pytest.mark.skipif(FISH is None, reason="no fish on this machine")


@pytest.fixture(scope="module")
def sourced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fish") / "gpu-agent.fish"
    path.write_text(script("fish"))
    return path


def completed(sourced: Path, line: str, folder: Path) -> dict[str, str]:
    """What fish offers for a line, with what it says of each."""
    done = subprocess.run(
        [FISH or "", "--no-config", "-c", "source $argv[1]; complete -C $argv[2]", str(sourced), line],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env={**WITH_THE_PROGRAM, "HOME": str(folder)},
    )
    assert done.stderr == ""
    rows = [row.partition("\t") for row in done.stdout.splitlines()]
    return {word: about for word, _, about in rows}


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("gpu-agent pro", {"probe"}),
        ("gpu-agent registry tok", {"token"}),
        ("gpu-agent registry token ", {"create", "list", "revoke", "rotate"}),
        ("gpu-agent run --join", {"--join-token-file"}),
        ("gpu-agent run --log-level ", {"debug", "info", "warning", "error"}),
        ("gpu-agent completion ", {"bash", "zsh", "fish"}),
        ("gpu-agent registry node show token --js", {"--json"}),
    ],
)
def test_fish_offers_what_may_follow(sourced: Path, tmp_path: Path, line: str, offered: set[str]) -> None:
    assert set(completed(sourced, line, tmp_path)) == offered


def test_fish_says_what_each_is(sourced: Path, tmp_path: Path) -> None:
    assert completed(sourced, "gpu-agent pro", tmp_path)["probe"].startswith("show what this machine has")


def test_fish_offers_files_only_where_one_is_named(sourced: Path, tmp_path: Path) -> None:
    (tmp_path / "agent.toml").touch()
    assert set(completed(sourced, "gpu-agent run --config a", tmp_path)) == {"agent.toml"}
    assert completed(sourced, "gpu-agent run a", tmp_path) == {}
