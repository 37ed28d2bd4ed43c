import subprocess
import sys
from collections.abc import Iterator

import pytest

from gpu_agent.cli.command import ExitCode
from gpu_agent.cli.declaration import Command, Group
from gpu_agent.cli.groups import REGISTRY, ROOT
from gpu_agent.cli.main import main
from gpu_agent.version import __version__


def test_without_a_command_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == ExitCode.OK
    said = capsys.readouterr().out
    assert all(command in said for command in ROOT.entries)
    assert "exit codes:" in said


@pytest.mark.parametrize("words", [["probe"], ["completion"]])
def test_help_breaks_no_command_or_path_at_its_hyphen(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*words, "--help"]) == ExitCode.OK
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.endswith("gpu-")] == []
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["status"], "5  no agent answers on this machine"),
        (["registry", "node", "list"], "5  the registry could not be reached"),
    ],
)
def test_help_says_whom_a_command_asks(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--help"]) == ExitCode.OK
    assert expected in capsys.readouterr().out


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == ExitCode.OK
    assert capsys.readouterr().out == f"gpu-agent {__version__}\n"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["prob"], "did you mean `probe`?"),
        (["registry", "node5"], "did you mean `node"),
        (["nothing-like-it"], "there are: probe, doctor, run"),
        (["registry"], "say which command: node, claim, queue, explain, event, "),
        (["registry", "token"], "say which action: create, list, revoke, rotate"),
        (["registry", "claim"], "say which action: create, list, show, renew, release, run"),
        (["registry", "claims"], "did you mean `claim`?"),
        (["registry", "nodes"], "did you mean `node`?"),
        (["registry", "events", "--follow"], "did you mean `event`?"),
        (["registry", "drain", "ID"], "did you mean `registry node drain`?"),
        (["registry", "explain", "--model", "m"], "after the subject: put --model there"),
        (
            ["registry", "claim", "job-1"],
            "no action 'job-1': there are: create, list, show, renew, release, run",
        ),
        (["registry", "release", "x"], "no command 'release': did you mean `registry claim release`?"),
        (["registry", "renew", "x"], "did you mean `registry claim renew`?"),
        (["registry", "create"], "did you mean `registry claim create` or `registry token create`?"),
        (["registry", "run"], "did you mean `registry claim run`?"),
        (["serve"], "did you mean `registry serve`?"),
        (["registry", "token", "creat"], "did you mean `create`?"),
        (["registry", "token", "create", "--uses", "3", "--lable", "a=b"], "did you mean --label?"),
        (["probe", "--jsn"], "did you mean --json?"),
        (["registry", "node", "drain"], "ID"),
        (["run", "--join-token", "s3cret"], "no option --join-token; did you mean --join-token-file?"),
        (["run", "--join-token=s3cret"], "no option --join-token; did you mean --join-token-file?"),
        (["--verison"], "did you mean --version?"),
        (["--json", "probe"], "put --json there"),
        (["registry", "--server", "http://h", "node"], "after the command: put --server there"),
        (["--server", "http://h", "registry", "node", "list"], "after the command: put --server there"),
    ],
)
def test_a_mistake_is_a_sentence_with_the_next_step(
    words: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == ExitCode.CONFIGURATION
    said = capsys.readouterr().err
    assert hint in said
    assert "--help" in said
    assert "Traceback" not in said
    assert "s3cret" not in said


def paths(group: Group = ROOT, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """List the words of every command and group."""
    for name, one in group.entries.items():
        yield (*before, name)
        if isinstance(one, Group):
            yield from paths(one, (*before, name))


@pytest.mark.parametrize("words", list(paths()), ids=" ".join)
def test_every_command_has_help_that_says_what_it_does(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*words, "--help"]) == ExitCode.OK
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 5
    assert max(map(len, lines)) <= 80


def test_an_unexpected_fault_is_reported_without_a_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> int:
        raise RuntimeError("boom")

    monkeypatch.setattr("gpu_agent.cli.main._run", broken)
    assert main(["probe"]) == ExitCode.FAILED
    said = capsys.readouterr().err
    assert "boom" in said
    assert "GPU_AGENT_DEBUG" in said
    monkeypatch.setenv("GPU_AGENT_DEBUG", "1")
    with pytest.raises(RuntimeError):
        main(["probe"])


@pytest.mark.parametrize(
    "words",
    [
        ["registry", "explain", "job", "--gpus", "many"],
        ["registry", "explain", "job", "--gpus"],
        ["probe", "--config"],
        ["run", "--registry", "--simulate"],
    ],
    ids=" ".join,
)
def test_no_hint_suggests_what_was_written(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == ExitCode.CONFIGURATION
    said = capsys.readouterr().err
    assert "did you mean" not in said


def test_the_registrys_help_lists_its_actions_by_subject(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["registry", "--help"]) == ExitCode.OK
    said = capsys.readouterr().out
    assert all(f"\n{subject}:\n" in said for subject in REGISTRY.subjects)
    assert all(f"\n  {name} " in said for name in REGISTRY.entries)


@pytest.mark.parametrize(
    "words",
    [
        ["registry", "--help"],
        ["registry", "node", "list", "--help"],
        ["registry", "token", "create", "--help"],
    ],
    ids=" ".join,
)
def test_help_does_not_pay_for_what_only_the_work_needs(words: list[str]) -> None:
    """Once the facade's names came with a constant of the server, and each command took half a second."""
    program = [
        "import sys",
        "from gpu_agent.cli.main import main",
        "try: main()",
        "finally: print(*sys.modules, file=sys.stderr)",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(program), *words],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    loaded = set(done.stderr.split())
    assert "gpu_agent.cli.main" in loaded
    heavy = {"asyncio", "websockets", "psutil", "gpu_agent.server", "gpu_agent.registry"}
    assert loaded & heavy == set()


def commands(group: Group) -> Iterator[Command]:
    for name in group.entries:
        one = group.command(name)
        if isinstance(one, Group):
            yield from commands(one)
        else:
            yield one


COMMANDS = {one.path: one for one in commands(ROOT)}


@pytest.mark.parametrize("path", COMMANDS)
def test_every_option_and_argument_has_words_about_it(path: str) -> None:
    command = COMMANDS[path]
    assert all(one.help for options in command.subjects.values() for one in options)
    assert all(one.about for one in command.takes)


def test_no_code_serves_two_commands() -> None:
    works = [command._run for command in COMMANDS.values()]
    assert len(works) == len(set(works))
