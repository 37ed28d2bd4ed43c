from pathlib import Path

import pytest

from tools import style_gate
from tools.style_gate import Module, areas_of, broken_rules, hits_in, modules_of


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with a package of two modules; what a test writes there is found by the gate."""
    monkeypatch.setattr(style_gate, "ROOT", tmp_path)
    write(tmp_path, "pyproject.toml", "[project]\ndependencies = []\noptional-dependencies = {}\n")
    write(tmp_path, "agent/gpu_agent/large.py", "import gpu_agent.small\n" + "X = 1\n" * 300)
    write(tmp_path, "agent/gpu_agent/small.py", "Y = 1\n")
    return tmp_path


def write(checkout: Path, path: str, text: str) -> None:
    file = checkout / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def files_of(checkout: Path) -> list[Path]:
    return [path.relative_to(checkout) for path in sorted(checkout.rglob("*")) if path.is_file()]


def broken(checkout: Path) -> str:
    files = files_of(checkout)
    return "\n".join(broken_rules(modules_of(files), areas_of(files), files))


def test_a_small_module_with_one_importer_belongs_into_it(checkout: Path) -> None:
    assert "small.py has 1 lines and gpu_agent.large alone imports it: move it there" in broken(checkout)


def test_a_small_module_with_two_importers_stays(checkout: Path) -> None:
    write(checkout, "agent/gpu_agent/other.py", "from gpu_agent import small\n" + "X = 1\n" * 300)
    assert "move it there" not in broken(checkout)


def test_a_command_is_a_module_of_its_own(checkout: Path) -> None:
    command = "COMMANDS: Commands = {}\n"
    write(checkout, "agent/gpu_agent/small.py", f"Y = 1\n\n\n{command}")
    assert "move it there" not in broken(checkout)


def test_a_module_over_the_ceiling_is_to_be_split(checkout: Path) -> None:
    write(checkout, "agent/gpu_agent/large.py", "X = 1\n" * 701)
    assert "large.py has 701 lines, 700 is the ceiling" in broken(checkout)


def test_a_docstring_that_says_nothing_is_refused(checkout: Path) -> None:
    write(checkout, "tests/test_x.py", 'X = ""\n\n\ndef test_x():\n    """It holds."""\n')
    assert "empty docstring" not in broken(checkout)
    write(checkout, "tests/test_x.py", '""""""\n\nX = 1\n')
    assert "tests/test_x.py has an empty docstring: write a sentence, or leave it out" in broken(checkout)


def test_a_file_above_a_mebibyte_is_refused_whatever_it_is(checkout: Path) -> None:
    (checkout / "thing.whl").write_bytes(bytes(1 << 20))
    assert "thing.whl" not in broken(checkout)
    (checkout / "thing.whl").write_bytes(bytes((1 << 20) + 1))
    assert "thing.whl has 1,048,577 bytes" in broken(checkout)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("the roster_of_nodes", ["roster"]),
        ("class SwitchboardTest", ["Switchboard"]),
        ("healthy_beats: int", []),
        ("a heartbeat upbeat", []),
        ("UNKEPT", ["UNKEPT"]),
    ],
)
def test_words_are_found_inside_names_too(checkout: Path, line: str, words: list[str]) -> None:
    write(checkout, "docs/page.md", f"{line}\n")
    known = {**style_gate.METAPHORS, **style_gate.VAGUE}
    assert [hit.word for hit in hits_in([Path("docs/page.md")], known)] == words


def test_a_word_comes_with_the_one_that_replaces_it(checkout: Path) -> None:
    write(checkout, "docs/page.md", "the doorkeeper\n")
    assert "docs/page.md:1: doorkeeper: the doorkeeper (write: node_auth)" in broken(checkout)


def test_a_dependency_that_no_module_imports_is_to_be_removed(checkout: Path) -> None:
    write(
        checkout,
        "pyproject.toml",
        '[project]\ndependencies = ["redis>=5"]\noptional-dependencies = {}\n',
    )
    assert "requires redis, and no module imports it" in broken(checkout)


def test_a_module_knows_its_importers(checkout: Path) -> None:
    small: Module = next(one for one in modules_of(files_of(checkout)) if one.name == "gpu_agent.small")
    assert small.importers == {"gpu_agent.large"}


def test_words_of_no_page_may_stand_there_as_code_alone(checkout: Path) -> None:
    write(checkout, "docs/page.md", "a stranger\n`verdict` is a field\n```\nverdict\n```\n")
    write(checkout, "agent/gpu_agent/large.py", "VERDICT = 1\n" * 70)
    said = broken(checkout)
    assert "docs/page.md:1: stranger: a stranger (write: unknown peer)" in said
    assert "verdict" not in said.lower()


def test_the_changelog_may_name_old_words_as_code_alone(checkout: Path) -> None:
    write(checkout, "CHANGELOG.md", "`doorkeeper` is `node_auth`\nthe anteroom\n")
    said = broken(checkout)
    assert "doorkeeper" not in said
    assert "CHANGELOG.md:2: anteroom" in said
