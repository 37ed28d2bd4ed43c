import shutil
import subprocess
from pathlib import Path

import pytest

from gpu_agent.cli.declaration import Command, Group
from gpu_agent.cli.groups import ROOT
from tools.cli_reference import commands
from tools.man_pages import main, pages

PAGES = pages(date="2026-01-31")
MANDOC, MAN = shutil.which("mandoc"), shutil.which("man")


def test_every_command_and_every_way_to_one_has_a_page_and_so_have_both_files() -> None:
    def walk(group: Group) -> list[str]:
        inner = [one for one in group.entries.values() if isinstance(one, Group)]
        names = [f"{group.path} {name}" for name, one in group.entries.items() if not isinstance(one, Group)]
        return [group.path, *names, *(name for one in inner for name in walk(one))]

    of_commands = {name.replace(" ", "-") + ".1" for name in walk(ROOT)}
    assert set(PAGES) == {*of_commands, "agent.toml.5", "registry.toml.5"}


@pytest.mark.parametrize("command", [command for _, command in commands()], ids=lambda one: one.path)
def test_a_page_names_every_option_of_its_command(command: Command) -> None:
    page = PAGES[f"{command.path.replace(' ', '-')}.1"]
    options = [one for options in command.subjects.values() for one in options]
    assert all(one.opts[-1].replace("-", "\\-") in page for one in options)


@pytest.mark.skipif(MANDOC is None, reason="no mandoc on this machine")
@pytest.mark.parametrize("name", PAGES)
def test_mandoc_finds_nothing_wrong_with_a_page(name: str) -> None:
    linted = subprocess.run(
        [MANDOC or "", "-Tlint", "-Wwarning"], input=PAGES[name], capture_output=True, text=True, check=False
    )
    assert linted.stdout == ""


@pytest.mark.skipif(MAN is None, reason="no man on this machine")
def test_man_shows_a_page_as_it_is_meant(tmp_path: Path) -> None:
    (tmp_path / "gpu-agent-run.1").write_text(PAGES["gpu-agent-run.1"], encoding="utf-8")
    shown = subprocess.run(
        [MAN or "", "--warnings", "-P", "cat", "-l", str(tmp_path / "gpu-agent-run.1")],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/bin:/bin", "MANWIDTH": "80", "LC_ALL": "C.UTF-8", "MANROFFOPT": "-c"},
    )
    assert shown.stderr == ""
    plain = subprocess.run(
        ["col", "-b"], input=shown.stdout, capture_output=True, text=True, check=True
    ).stdout
    assert "gpu-agent-run - run the agent: probe, register, send heartbeats" in plain
    assert "--log-level {debug,info,warning,error}" in plain
    assert "gpu-agent run --registry wss://registry.example:8080" in plain


def test_the_same_source_makes_the_same_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1769817600")
    assert main([str(tmp_path / "man")]) == 0
    assert {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "man").iterdir()} == PAGES
