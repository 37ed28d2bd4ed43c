import pytest

from gpu_agent.cli.app import main
from gpu_agent.cli.commands import ROOT
from gpu_agent.cli.documents.completion import SCRIPTS
from gpu_agent.cli.documents.completion_words import places


@pytest.mark.parametrize("shell", SCRIPTS)
def test_the_script_of_a_shell_is_printed_and_names_every_command(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    printed = capsys.readouterr().out
    assert printed == SCRIPTS[shell](places(ROOT))
    assert all(place.typed in printed for place in places(ROOT))


def test_a_shell_that_nobody_wrote_one_for_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == 4
    assert "bash" in capsys.readouterr().err
