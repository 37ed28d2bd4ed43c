"""The manual pages and the shells' completions of a package, written by the program that it holds.

Both packages are one command, so all of them come with `gpu-agent`. It says nothing of its own.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import papers

MANUAL = Path("usr/share/man")
_SHELLS = ("bash", "zsh", "fish")
_COMPLETIONS: Mapping[str, Mapping[str, str]] = {
    "deb": {
        "bash": "usr/share/bash-completion/completions/gpu-agent",
        "zsh": "usr/share/zsh/vendor-completions/_gpu-agent",
        "fish": "usr/share/fish/vendor_completions.d/gpu-agent.fish",
    },
    "rpm": {
        "bash": "usr/share/bash-completion/completions/gpu-agent",
        "zsh": "usr/share/zsh/site-functions/_gpu-agent",
        "fish": "usr/share/fish/vendor_completions.d/gpu-agent.fish",
    },
}


def write(root: Path, source: Path, folder: Path, *, at_seconds: int) -> None:
    """Have the program write them into `folder`. It is imported from `source`, `root` is the checkout."""
    said = {"PYTHONPATH": os.pathsep.join([str(source), str(root)]), "SOURCE_DATE_EPOCH": str(at_seconds)}
    shutil.rmtree(folder, ignore_errors=True)
    _told(["-m", "tools.man_pages", str(folder / "man")], said)
    for shell in _SHELLS:
        (folder / shell).write_bytes(_told(["-m", "gpu_agent.cli", "completion", shell], said))


def files(folder: Path, *, packager: str) -> Iterator[tuple[Path, bytes]]:
    """Yield each file's place on a machine, and its content."""
    for page in sorted((folder / "man").iterdir()):
        section = page.suffix.removeprefix(".")
        yield MANUAL / f"man{section}" / f"{page.name}.gz", papers.gzipped(page.read_text(encoding="utf-8"))
    for shell, place in _COMPLETIONS[packager].items():
        yield Path(place), (folder / shell).read_bytes()


def places(stage: Path) -> Iterator[Path]:
    """Find them again in a stage, relative to it."""
    folders = [MANUAL, *(Path("usr/share") / name for name in ("bash-completion", "zsh", "fish"))]
    for folder in folders:
        yield from (path.relative_to(stage) for path in sorted((stage / folder).rglob("*")) if path.is_file())


def _told(words: list[str], variables: Mapping[str, str]) -> bytes:
    asked = [sys.executable, *words]
    return subprocess.run(asked, env={**os.environ, **variables}, check=True, stdout=subprocess.PIPE).stdout
