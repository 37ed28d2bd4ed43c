from gpu_agent.cli.commands import ROOT
from gpu_agent.cli.documents.completion_words import Offer, Place, Takes, places
from gpu_agent.cli.grammar import Command, Group

PLACES = {place.typed: place for place in places(ROOT)}


def option(place: Place, name: str) -> Offer:
    return next(offer for offer in place.options if name in offer.names)


def test_every_command_and_every_way_to_one_is_a_place() -> None:
    def walk(group: Group, words: str) -> list[str]:
        found = [words]
        for name, one in group.commands.items():
            deeper = f"{words} {name}"
            found += [deeper] if isinstance(one, Command) else walk(one, deeper)
        return found

    assert list(PLACES) == walk(ROOT, "gpu-agent")


def test_ways_offer_their_commands_with_a_line_about_each() -> None:
    assert set(PLACES["gpu-agent"].commands) == set(ROOT.commands)
    assert PLACES["gpu-agent registry token"].commands["create"] == "let nodes join, or an operator in"


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
