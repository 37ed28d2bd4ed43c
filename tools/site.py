"""The site of docs/: pages that work from the disk and ask no other host for anything.

    python -m tools.site [FOLDER]       into dist/html, or into that folder; what `make docs` does

The builder reads `mkdocs.yml` and fails at a link that leads nowhere. What it makes besides and no page uses
is removed, so that packages carry the pages and little else.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
SITE = ROOT / "dist" / "html"
_UNUSED = (
    "404.html",  # what a web server answers, with absolute links
    "search.json",  # search.js holds the same, for pages on a disk
    "sitemap.xml",
    "assets/stylesheets/modern",  # the other theme
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def build(folder: Path, *, source: Path = ROOT) -> str:
    """Build the site of a checkout; returns what is wrong with it, nothing where all is well."""
    with tempfile.TemporaryDirectory() as scratch:
        # The builder writes its cache beside its settings, and follows no links.
        shutil.copy(source / "mkdocs.yml", scratch)
        shutil.copytree(source / "docs", Path(scratch) / "docs")
        command = [sys.executable, "-m", "zensical", "build", "--strict"]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return _COLOUR.sub("", done.stderr + done.stdout).partition("Traceback")[0]
        built = Path(scratch) / "dist" / "html"
        for name in _UNUSED:
            place = built / name
            shutil.rmtree(place) if place.is_dir() else place.unlink()
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(built, folder)
    return ""


def main() -> int:
    """Build it."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else SITE
    faults = build(folder)
    print(faults or f"{folder}/index.html: {len(list(folder.rglob('*.html')))} pages")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
