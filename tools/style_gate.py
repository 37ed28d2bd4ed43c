"""The project's rules that no linter knows: sizes of files, satellites, words, unused dependencies.

    python -m tools.style_gate              figures, then what breaks a rule; exit code 1 where something does
    python -m tools.style_gate --words      every line with a word that the glossary replaces
    python -m tools.style_gate --satellites every small module with at most one importer

A satellite is a module of few lines that one module imports: it belongs into that module, unless it is a
boundary. Merging two subjects, or padding a module, is worse than a satellite.
"""

import argparse
import ast
import re
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = "gpu_agent"

MAX_LINES = 700
MIN_LINES = 60
"""A module below this with at most one importer is a satellite."""
MIN_MEAN_LINES = 140
MAX_FILE_BYTES = 1 << 20
"""No file of the project is larger: a build, a recording or a database was added by mistake."""
BOUNDARIES: Mapping[str, str] = {
    "gpu_agent.libraries": "it must be loaded before all that its importer loads",
    "gpu_agent": "the package itself: the version is read without imports",
    "gpu_agent.version": "the build reads it",
    "gpu_agent.__main__": "`python -m gpu_agent`",
    "gpu_agent.cli.__main__": "the entry point",
    "gpu_agent.server.gateway.__main__": "the entry point of a gateway process",
    "gpu_agent.probe.nvml.binding": "the one door to pynvml",
    "gpu_agent.probe.nvml.child": "a program of its own",
    "gpu_agent.wire.schema": "the door to all JSON Schemas",
}
"""Small modules that stay by themselves, and why. So does a command of the CLI, which is one file."""
METAPHORS: Mapping[str, str] = {
    "switchboard": "node_listener",
    "doorkeeper": "node_auth",
    "anteroom": "pending_connections",
    "rations": "rate_limit",
    "errands": "messages",
    "holdings": "memory budget",
    "appointments": "retry schedule",
    "chronicle": "event log",
    "clerk": "effects executor",
    "roster": "node table",
    "headcount": "counters",
    "quieting": "log_limit",
    "minting": "token issuing",
    "adrift": "awaiting the store",
    "unkept": "unstored",
    "objections": "exclusion reasons",
    "rehearsal": "connectivity check",
    "strays": "unknown variables",
    "ailment": "liveness problem",
    "ailing": "not live",
    "ails": "has a liveness problem",
    "complaints": "errors",
    "unruly": "fuzz",
    "theatre": "harness",
    "whoever": "the user, the caller, the operator",
    "anew": "again",
    **dict.fromkeys(("heed", "heeds", "heeded", "heeding"), "follow"),
    **dict.fromkeys(("forgives", "forgiven"), "tolerate"),
    **dict.fromkeys(("mend", "mends", "mended", "mending"), "fix"),
    **dict.fromkeys(("wish", "wishes", "wished"), "desired state, request"),
}
"""Words of a picture that no engineer searches for, and what is meant. They stand nowhere."""
PROSE: Mapping[str, str] = {
    **dict.fromkeys(("stranger", "strangers"), "unknown peer"),
    **dict.fromkeys(("vouch", "vouches", "vouched"), "issue a certificate"),
    **dict.fromkeys(("befall", "befalls"), "happen to"),
    "goodbye": "unregister",
    "halves": "programs, components",
    "himself": "themselves",
    "oftener": "more often",
    "verdict": "status, result",
}
"""Words that stand in no page that users read, except between backquotes, where they name a field."""
VAGUE: Mapping[str, str] = {
    **dict.fromkeys(("told", "tell", "tells", "telling"), "send, report, say"),
    **dict.fromkeys(("hears", "heard"), "receive"),
    **dict.fromkeys(("beat", "beats", "beating"), "heartbeat"),
    "kept": "stored",
    "nobody": "no one, no user",
}
"""Words that have their place and are overused, and what says it better."""
MAX_VAGUE_PER_THOUSAND: Mapping[str, float] = {"code": 1.0, "docs": 0.2, "tests": 1.5}
PROTOCOL_NAMES = ("healthy_beats", "beats_needed", "beats_per_second")
"""Names of the node protocol and of its log events, which stay as they are."""
EXEMPT = ("tools/style_gate.py", "tests/tools/test_style_gate.py", "LICENSE")

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
"""Words in prose, and the parts of `snake_case` and `CamelCase` names."""
_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
"""Blocks and words of code in Markdown."""
_EMPTY_DOCSTRING = re.compile(r"^\s*r?(\"{6}|'{6})\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Module:
    """One module of the package."""

    name: str
    path: Path
    lines: int
    importers: frozenset[str]
    is_command: bool
    """Whether the CLI runs it: it adds its arguments and has a `main`."""

    @property
    def is_satellite(self) -> bool:
        """True where it belongs into its importer."""
        if self.name in BOUNDARIES or self.is_command or self.path.name == "__init__.py":
            return False
        return self.lines < MIN_LINES and len(self.importers) <= 1


@dataclass(frozen=True, slots=True)
class Hit:
    """A word that the glossary replaces."""

    path: Path
    line: int
    word: str
    text: str

    def __str__(self) -> str:
        """Write it as compilers do."""
        return f"{self.path}:{self.line}: {self.word}: {self.text.strip()[:120]}"


def listed_files() -> list[Path]:
    """Name the files of the checkout, relative to its root."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for path in map(Path, listed.splitlines()) if (ROOT / path).is_file()]


def modules_of(files: Iterable[Path]) -> list[Module]:
    """Read the package's modules, with who imports each."""
    paths = {_dotted(path): path for path in files if path.parts[0] == "agent" and path.suffix == ".py"}
    texts = {name: (ROOT / path).read_text(encoding="utf-8") for name, path in paths.items()}
    importers: dict[str, set[str]] = {name: set() for name in paths}
    for name, text in texts.items():
        for target in _imported(ast.parse(text), paths.keys()):
            if target != name:
                importers[target].add(name)
    return [
        Module(name, paths[name], text.count("\n"), frozenset(importers[name]), _is_command(text))
        for name, text in sorted(texts.items())
        if not (paths[name].name == "__init__.py" and _is_docstring_only(text))
    ]


def hits_in(files: Iterable[Path], words: Container[str], *, in_names: bool = True) -> Iterator[Hit]:
    """Find words in files; those inside names too, or only those that are not code."""
    for path in files:
        text = (ROOT / path).read_text(encoding="utf-8", errors="replace")
        if not in_names or path.name == "CHANGELOG.md":  # which lists the old names beside the new ones
            text = _CODE.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)
        for number, line in enumerate(text.splitlines(), 1):
            bare = line
            for name in PROTOCOL_NAMES:
                bare = bare.replace(name, "")
            for found in _WORD.finditer(bare):
                if found[0].lower() in words:
                    yield Hit(path, number, found[0], line)


def areas_of(files: Iterable[Path]) -> Mapping[str, list[Path]]:
    """Sort the files that people read into code, docs and tests."""
    areas: dict[str, list[Path]] = {"code": [], "docs": [], "tests": []}
    for path in files:
        if str(path) in EXEMPT:
            continue
        if path.suffix == ".md" or path.name.endswith(".toml.example"):
            areas["docs"].append(path)
        elif path.parts[0] == "tests" and path.suffix in (".py", ".txt", ".c", ".h"):
            areas["tests"].append(path)
        elif path.suffix in (".py", ".service", ".sh", ".toml") or path.name in ("Makefile", ".importlinter"):
            areas["code"].append(path)
    return areas


def unused_dependencies(modules: Iterable[Module]) -> list[str]:
    """Name the dependencies of the wheel that no module imports."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    stated = [
        *project["dependencies"],
        *(one for extra in project["optional-dependencies"].values() for one in extra),
    ]
    text = "\n".join((ROOT / module.path).read_text(encoding="utf-8") for module in modules)
    required = {re.split(r"[^a-z0-9-]", one, maxsplit=1)[0] for one in stated}
    return sorted(
        name for name in required if not re.search(rf"(?m)^\s*(?:import|from) {_import_name(name)}\b", text)
    )


def _import_name(distribution: str) -> str:
    return {"nvidia-ml-py": "pynvml"}.get(distribution, distribution.replace("-", "_"))


def _dotted(path: Path) -> str:
    parts = path.with_suffix("").parts[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(tree: ast.Module, known: Iterable[str]) -> Iterator[str]:
    names = frozenset(known)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names if one.name in names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for one in node.names:
                inner = f"{node.module}.{one.name}"
                target = inner if inner in names else node.module
                if target in names:
                    yield target


def _is_command(text: str) -> bool:
    return "\nCOMMANDS: Commands = {" in text


def _is_docstring_only(text: str) -> bool:
    return all(isinstance(node, ast.Expr) for node in ast.parse(text).body)


def _vague_rates(areas: Mapping[str, list[Path]]) -> dict[str, float]:
    rates = {}
    for area, files in areas.items():
        words = sum(
            len(_WORD.findall((ROOT / path).read_text(encoding="utf-8", errors="replace"))) for path in files
        )
        rates[area] = 1000 * sum(1 for _ in hits_in(files, VAGUE)) / max(1, words)
    return rates


def _broken_files(files: Iterable[Path]) -> Iterator[str]:
    for path in files:
        size = (ROOT / path).stat().st_size
        if size > MAX_FILE_BYTES:
            yield f"{path} has {size:,} bytes, {MAX_FILE_BYTES:,} are the most: take it out, or ignore it"
        elif path.suffix == ".py":
            text = (ROOT / path).read_text(encoding="utf-8")
            lines = text.count("\n")
            if lines > MAX_LINES:
                yield f"{path} has {lines} lines, {MAX_LINES} is the ceiling: split it by subject"
            if _EMPTY_DOCSTRING.search(text):
                yield f"{path} has an empty docstring: write a sentence, or leave it out"


def broken_rules(
    modules: list[Module], areas: Mapping[str, list[Path]], files: Iterable[Path]
) -> Iterator[str]:
    """Say what breaks a rule, one sentence each, with the next step."""
    yield from _broken_files(files)
    for module in modules:
        if module.is_satellite:
            importer = next(iter(module.importers), "no module")
            yield f"{module.path} has {module.lines} lines and {importer} alone imports it: move it there"
    total = sum(module.lines for module in modules)
    if total < MIN_MEAN_LINES * len(modules):
        mean = total / len(modules)
        yield f"{len(modules)} modules of {mean:.0f} lines on average: merge what is one subject"
    for hit in (hit for area in areas.values() for hit in hits_in(area, METAPHORS)):
        yield f"{hit} (write: {METAPHORS[hit.word.lower()]})"
    for hit in hits_in(areas["docs"], PROSE, in_names=False):
        yield f"{hit} (write: {PROSE[hit.word.lower()]})"
    for area, rate in _vague_rates(areas).items():
        if rate > MAX_VAGUE_PER_THOUSAND[area]:
            yield f"{area}: {rate:.1f} vague words in 1,000: see `python -m tools.style_gate --words`"
    for name in unused_dependencies(modules):
        yield f"pyproject.toml requires {name}, and no module imports it: remove it there"


def figures(modules: list[Module], areas: Mapping[str, list[Path]]) -> str:
    """Sum the package up in a line."""
    lines = [module.lines for module in modules]
    rates = ", ".join(f"{area} {rate:.1f}" for area, rate in _vague_rates(areas).items())
    satellites = sum(module.is_satellite for module in modules)
    return (
        f"{len(modules)} modules, {sum(lines):,} lines, median {statistics.median_low(lines)}, "
        f"largest {max(lines)}, {satellites} satellites; vague words in 1,000: {rates}"
    )


def main() -> int:
    """Print the figures, and what breaks a rule."""
    parser = argparse.ArgumentParser(description="Check the rules that no linter knows.")
    parser.add_argument(
        "--words", action="store_true", help="list every line with a word that the glossary replaces"
    )
    parser.add_argument(
        "--satellites", action="store_true", help="list small modules with at most one importer"
    )
    arguments = parser.parse_args()
    files = listed_files()
    modules, areas = modules_of(files), areas_of(files)
    if arguments.words:
        for area in areas.values():
            print(*hits_in(area, {**METAPHORS, **VAGUE}), sep="\n")
        return 0
    if arguments.satellites:
        for module in sorted(modules, key=lambda one: one.lines):
            if module.is_satellite:
                print(f"{module.lines:4} {module.path} <- {next(iter(module.importers), None)}")
        return 0
    broken = list(broken_rules(modules, areas, files))
    print(figures(modules, areas), *broken, sep="\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
