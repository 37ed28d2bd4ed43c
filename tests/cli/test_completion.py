"""What a shell offers after `gpu-agent`: the words that click answers, and the scripts that ask for them."""

import pytest
from click.shell_completion import ShellComplete

from gpu_agent.cli.groups import COMPLETE_VARIABLE, ROOT
from gpu_agent.cli.main import main


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_asks_the_program(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    printed = capsys.readouterr().out
    assert f"{COMPLETE_VARIABLE}={shell}_complete" in printed
    assert "gpu-agent" in printed


def test_an_unknown_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == 4
    assert "'bash', 'zsh', 'fish'" in capsys.readouterr().err


def offered(*words: str) -> dict[str, tuple[str, str | None]]:
    """Each word that is offered for the last one, with its kind and what is said of it."""
    *before, incomplete = words
    found = ShellComplete(ROOT, {}, "gpu-agent", COMPLETE_VARIABLE).get_completions(before, incomplete)
    return {one.value: (one.type, one.help) for one in found}


def test_a_group_offers_its_commands_with_a_line_about_each() -> None:
    assert set(offered("")) == set(ROOT.entries)
    assert offered("registry", "token", "cr")["create"] == (
        "plain",
        "create a join token or an operator token",
    )


def test_an_option_offers_what_it_takes() -> None:
    assert set(offered("run", "--log-level", "")) == {"debug", "info", "warning", "error"}
    assert [kind for kind, _ in offered("run", "--config", "a").values()] == ["file"]
    assert [kind for kind, _ in offered("run", "--state-dir", "a").values()] == ["dir"]
    assert offered("run", "--registry", "a") == {}
    assert set(offered("completion", "")) == {"bash", "zsh", "fish"}


def test_a_command_offers_its_options() -> None:
    assert set(offered("run", "--join")) == {"--join-token-file"}
    assert offered("registry", "node", "show", "token", "--js")["--json"] == (
        "plain",
        "print what GET /v1/nodes/ID answers",
    )
