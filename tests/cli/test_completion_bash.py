import shutil
import subprocess
from pathlib import Path

import pytest

from gpu_agent.cli.completion import bash_script, places
from gpu_agent.cli.main import ROOT

BASH = shutil.which("bash")
pytestmark = pytest.mark.skipif(BASH is None, reason="no bash on this machine")

ASKING = """
source "$1"
shift
COMP_WORDS=("$@")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_gpu_agent
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def sourced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bash") / "gpu-agent"
    path.write_text(bash_script(places(ROOT)))
    return path


def completed(sourced: Path, *words: str, folder: Path | None = None) -> set[str]:
    """What bash offers for the last of these words."""
    asked = [BASH or "", "--norc", "-c", ASKING, "bash", str(sourced), *words]
    done = subprocess.run(asked, capture_output=True, text=True, check=True, cwd=folder)
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
        (["gpu-agent", "run", "--log-level", "=", "w"], {"warning"}),
        (["gpu-agent", "run", "--registry", ""], set()),
        (["gpu-agent", "completion", ""], {"bash", "zsh", "fish"}),
        (["gpu-agent", "registry", "node", "show", "token", "--js"], {"--json"}),
        (["gpu-agent", "nothing-like-it", ""], set()),
    ],
)
def test_bash_offers_what_may_follow(sourced: Path, words: list[str], offered: set[str]) -> None:
    offers = completed(sourced, *words)
    assert offers == offered if words[1] != "nothing-like-it" else "probe" in offers


def test_bash_offers_files_where_one_is_named_and_folders_where_a_folder_is(
    sourced: Path, tmp_path: Path
) -> None:
    (tmp_path / "agent.toml").touch()
    (tmp_path / "a-folder").mkdir()
    both = completed(sourced, "gpu-agent", "run", "--config", "a", folder=tmp_path)
    assert both == {"agent.toml", "a-folder"}
    assert completed(sourced, "gpu-agent", "run", "--state-dir", "a", folder=tmp_path) == {"a-folder"}
