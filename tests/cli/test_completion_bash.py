import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cli.completion_scripts import WITH_THE_PROGRAM, script

BASH = shutil.which("bash")
pytestmark = pytest.mark.skipif(BASH is None, reason="no bash on this machine")

ASKING = """
source "$1"
shift
COMP_WORDS=("$@")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
compopt() { COMPREPLY+=("-o $2"); }  # bash has it in a completion alone
_gpu_agent_completion gpu-agent
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def sourced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bash") / "gpu-agent"
    path.write_text(script("bash"))
    return path


def completed(sourced: Path, *words: str, folder: Path | None = None) -> set[str]:
    """What bash offers for the last of these words."""
    asked = [BASH or "", "--norc", "-c", ASKING, "bash", str(sourced), *words]
    done = subprocess.run(asked, capture_output=True, text=True, check=True, cwd=folder, env=WITH_THE_PROGRAM)
    assert done.stderr == ""
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["gpu-agent", "pro"], {"probe"}),
        (["gpu-agent", "registry", "to"], {"token"}),
        (["gpu-agent", "registry", "token", ""], {"create", "list", "revoke", "rotate"}),
        (["gpu-agent", "run", "--join"], {"--join-token-file"}),
        (["gpu-agent", "run", "--log-level", ""], {"debug", "info", "warning", "error"}),
        (["gpu-agent", "run", "--registry", ""], set()),
        (["gpu-agent", "completion", ""], {"bash", "zsh", "fish"}),
        (["gpu-agent", "registry", "node", "show", "token", "--js"], {"--json"}),
    ],
)
def test_bash_offers_what_may_follow(sourced: Path, words: list[str], offered: set[str]) -> None:
    assert completed(sourced, *words) == offered


def test_bash_offers_files_where_one_is_named_and_folders_where_a_folder_is(sourced: Path) -> None:
    assert "default" in completed(sourced, "gpu-agent", "run", "--config", "a")
    assert "dirnames" in completed(sourced, "gpu-agent", "run", "--state-dir", "a")
