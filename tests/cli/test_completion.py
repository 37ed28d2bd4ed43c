import pytest

from gpu_agent.cli.command import Command, Group
from gpu_agent.cli.completion import SCRIPTS, Offer, Place, Takes, places
from gpu_agent.cli.main import ROOT, main


@pytest.mark.parametrize("shell", SCRIPTS)
def test_the_script_of_a_shell_is_printed_and_names_every_command(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    printed = capsys.readouterr().out
    assert printed == SCRIPTS[shell](places(ROOT))
    assert all(place.typed in printed for place in places(ROOT))


def test_an_unknown_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == 4
    assert "bash" in capsys.readouterr().err


PLACES = {place.typed: place for place in places(ROOT)}


def option(place: Place, name: str) -> Offer:
    return next(offer for offer in place.options if name in offer.names)


def test_every_command_and_every_way_to_one_is_a_slot() -> None:
    def walk(group: Group, words: str) -> list[str]:
        found = [words]
        for name, one in group.commands.items():
            deeper = f"{words} {name}"
            found += [deeper] if isinstance(one, Command) else walk(one, deeper)
        return found

    assert list(PLACES) == walk(ROOT, "gpu-agent")


def test_ways_offer_their_commands_with_a_line_about_each() -> None:
    assert set(PLACES["gpu-agent"].commands) == set(ROOT.commands)
    assert PLACES["gpu-agent registry token"].commands["create"] == "create a join token or an operator token"


def test_an_option_says_what_it_takes() -> None:
    run = PLACES["gpu-agent run"]
    assert option(run, "--config").takes is Takes.FILE
    assert option(run, "--state-dir").takes is Takes.FOLDER
    assert option(run, "--registry").takes is Takes.VALUE
    assert option(run, "--help").takes is Takes.NOTHING
    level = option(run, "--log-level")
    assert (level.takes, level.choices) == (Takes.CHOICE, ("debug", "info", "warning", "error"))


def test_arguments_are_offered_beside_options() -> None:
    (shell,) = PLACES["gpu-agent completion"].arguments
    assert (shell.names, shell.choices) == ((), ("bash", "zsh", "fish"))


def test_every_option_has_words_about_it() -> None:
    assert [
        (place.typed, offer.names) for place in PLACES.values() for offer in place.options if not offer.help
    ] == []
