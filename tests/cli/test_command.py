import pytest

from gpu_agent.cli.command import (
    MEANINGS,
    ExitCode,
    Failure,
    label_pair,
    positive_number,
    whole_number,
)
from gpu_agent.cli.declaration import Command, Declaration, argument, exit_code_lines, option, run
from gpu_agent.cli.groups import ROOT
from tests.cli.given import given


def test_every_exit_code_is_explained() -> None:
    assert set(MEANINGS) == set(ExitCode)


def test_a_failure_carries_its_sentence_and_its_code() -> None:
    failure = Failure("no registry answers", code=ExitCode.UNREACHABLE)
    assert (str(failure), failure.code) == ("no registry answers", 5)


def command(*params: object, **declared: object) -> Command:
    made = Declaration(about="Does it.", example="do it", params=params, **declared)  # type: ignore[arg-type]
    return Command(["gpu-agent", "registry", "it"], made, lambda _: 0)


def help_of(made: Command) -> str:
    return made.get_help(made.make_context(made.path, []))


def test_help_has_an_example_and_the_ways_to_end() -> None:
    said = help_of(command(exits={ExitCode.OK: "it is done", ExitCode.NO_NODE: "by no node"}))
    for words in (
        "usage: gpu-agent registry it [OPTIONS]\n\nDoes it.\n",
        "example:\n  do it\n",
        "    0  it is done\n    4  wrong",
        "    6  the registry",
        "7  by no node",
    ):
        assert words in said


def test_help_lists_options_by_subject_and_breaks_no_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    about = "see /etc/gpu-agent/agent.toml, or run gpu-agent registry explain-nothing-at-all"
    said = help_of(
        command(option("--far", help=about), option("--near", help="near", flag=True, subject="where it is"))
    )
    assert "where it is:\n  --near  near\n" in said
    listed = said.partition("options:\n")[2].partition("\n\n")[0]
    assert " ".join(listed.split()).startswith(f"--far VALUE {about}")
    assert max(map(len, said.splitlines())) <= 60


def test_codes_stand_in_a_column() -> None:
    assert list(exit_code_lines({ExitCode.OK: "done", ExitCode.INTERRUPTED: "stopped"})) == [
        "    0  done",
        "  130  stopped",
    ]


def mistaken(params: list[object], *words: str) -> str:
    with pytest.raises(Failure) as failed:
        given(params, *words)  # type: ignore[arg-type]
    assert failed.value.code is ExitCode.CONFIGURATION
    sentence, _, next_step = str(failed.value).partition("\n")
    assert next_step == "See `gpu-agent it --help`."
    return sentence


MEANT = "did you mean --join-token-file?"
FILE = option("--join-token-file", metavar="FILE", help="holds it")
COUNT = option("--count", metavar="N", type=positive_number, help="how many")
COLOUR = option("--colour", choices=("red", "green"), help="which")
NODE = argument("node_id", metavar="ID", help="the node")


@pytest.mark.parametrize(
    ("params", "words", "fault"),
    [
        (
            [FILE],
            ["--join-token", "s3cret"],
            "there is no option --join-token; did you mean --join-token-file?",
        ),
        (
            [FILE],
            ["--join-token=s3cret"],
            "there is no option --join-token; did you mean --join-token-file?",
        ),
        ([FILE], ["--join-token-file"], "--join-token-file needs a value"),
        ([FILE, COUNT], ["--join-token-file", "--count"], "--join-token-file needs a value"),
        ([COUNT], ["--count", "0"], "--count N: 0 is not at least 1"),
        ([COUNT], ["--count", "few"], "--count N: 'few' is no whole number"),
        ([COLOUR], ["--colour", "blue"], "--colour {red,green}: 'blue' is not one of 'red', 'green'."),
        ([NODE], [], "ID is missing"),
        ([NODE], ["a", "b"], "it takes no more arguments, but got 'b'"),
        ([COUNT], ["b", "c"], "it takes no argument, but got 'b'"),
    ],
)
def test_a_mistake_is_a_sentence_with_the_next_step(
    params: list[object], words: list[str], fault: str
) -> None:
    assert mistaken(params, *words) == fault


def test_what_is_not_given_is_none_false_or_an_empty_list() -> None:
    params = [FILE, option("--json", help="JSON", flag=True), option("--label", help="one", repeatable=True)]
    asked = given(params)
    assert (asked.join_token_file, asked.json, asked.label) == (None, False, [])
    assert given(params, "--label", "a", "--label", "b").label == ["a", "b"]


def test_what_stands_behind_the_first_argument_may_belong_to_another_command() -> None:
    rest = argument("command", metavar="COMMAND", help="what to run", several=True, optional=True)
    made = command(NODE, rest, passes_on=True)
    with made.make_context(made.path, ["job-1", "--", "python", "--json"]) as ctx:
        assert made.values(ctx) == {"node_id": "job-1", "command": ["--", "python", "--json"]}


def test_the_program_ends_as_its_command_ends() -> None:
    assert run(ROOT, ["completion", "bash"], None) == 0


def test_numbers_and_labels_are_read() -> None:
    assert (whole_number("-5"), positive_number("1"), label_pair("rack=7=b"), label_pair("zone=")) == (
        -5,
        1,
        ("rack", "7=b"),
        ("zone", ""),
    )


@pytest.mark.parametrize(("text", "hint"), [("zone", "zone=a"), ("=a", "zone=a"), ("", "zone=a")])
def test_what_is_no_label_is_refused_with_how_to_write_one(text: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        label_pair(text)
