"""Build the .deb and the .rpm of both halves from this checkout: `make packages` runs it.

    python packaging/make_packages.py [--arch amd64|arm64] [--release VERSION] [--only deb|rpm] DIST

It lays out each package's files as they shall lie on a machine, then has nfpm pack them. The same checkout
gives the same bytes (SOURCE_DATE_EPOCH, else the time of the last commit). It needs the network, for wheels
whose hashes are pinned; the packages that it makes need none. It runs nothing of what it packs.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import layout
import manuals

ROOT = Path(__file__).parent.parent
HERE = Path(__file__).parent
PACKAGES = ("gpu-agent", "gpu-registry")
PACKAGERS = ("deb", "rpm")


def main() -> int:
    """Build all packages; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", choices=("amd64", "arm64"), default="amd64")
    parser.add_argument("--release", help="call it this version instead of the one in version.py")
    parser.add_argument("--only", choices=PACKAGERS, help="build these alone")
    parser.add_argument("--work", type=Path, help="the folder that takes what is made on the way")
    parser.add_argument("dist", type=Path, help="the folder that takes the packages")
    asked = parser.parse_args()
    version = asked.release or stated_version(ROOT)
    work = (asked.work or ROOT / ".cache" / "packages").resolve() / asked.arch
    plan = layout.Plan(root=ROOT, work=work, arch=asked.arch, version=version, at_seconds=epoch_seconds(ROOT))
    layout.prepare(plan)
    asked.dist.mkdir(parents=True, exist_ok=True)
    packagers = PACKAGERS if asked.only is None else (asked.only,)
    for file in all_packed(plan, packagers, dist=asked.dist.resolve()):
        print(file)
    return 0


def all_packed(plan: layout.Plan, packagers: Iterable[str], *, dist: Path) -> list[Path]:
    """Lay out and pack both halves for each distribution; returns the files."""
    pairs = [(package, packager) for package in PACKAGES for packager in packagers]
    stages = [layout.lay_out(plan, *pair) for pair in pairs]
    # Compression takes most of the time, and one processor at a time.
    with ThreadPoolExecutor() as pool:
        staged = zip(pairs, stages, strict=True)
        running = [pool.submit(packed, plan, *pair, stage=stage, dist=dist) for pair, stage in staged]
    return [done.result() for done in running]


def stated_version(root: Path) -> str:
    """Read the version where the program states it."""
    text = (root / "agent/gpu_agent/version.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    if found is None:
        raise LookupError("agent/gpu_agent/version.py states no __version__")
    return found[1]


def epoch_seconds(root: Path) -> int:
    """Say which time all files get: a stated one, else the last commit's."""
    stated = os.environ.get("SOURCE_DATE_EPOCH")
    if stated:
        return int(stated)
    words = ["git", "-c", f"safe.directory={root}", "-C", str(root), "log", "-1", "--format=%ct"]
    try:
        return int(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    except (OSError, subprocess.CalledProcessError):
        sys.exit(
            "no commit here to take the files' time from: set SOURCE_DATE_EPOCH to the seconds of a time"
        )


def packed(plan: layout.Plan, package: str, packager: str, *, stage: Path, dist: Path) -> Path:
    """Have nfpm write one package of what lies in `stage`; returns the file."""
    file = dist / layout.file_name(plan, package, packager)
    variables = {
        "PACKAGE_VERSION": layout.package_version(plan.version),
        "PACKAGE_ARCH": plan.arch,
        "SOURCE_DATE_EPOCH": str(plan.at_seconds),
    }
    shutil.copytree(HERE / "scripts", stage.parent / "scripts", dirs_exist_ok=True)
    config = stage.parent / "nfpm.yaml"
    config.write_text(configuration(package, packager, stage=stage), encoding="utf-8")
    words = ["package", "--config", str(config), "--packager", packager, "--target", str(file)]
    subprocess.run(
        [str(Path(sys.executable).with_name("nfpm")), *words],
        cwd=stage.parent,
        env={**os.environ, **variables},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return file


def configuration(package: str, packager: str, *, stage: Path) -> str:
    """Write nfpm's configuration: the package's own file, and the documents among an .rpm's files."""
    lines = [(HERE / f"{package}.yaml").read_text(encoding="utf-8")]
    for folder, kind in (("doc", "doc"), ("licenses", "license")) if packager == "rpm" else ():
        for path in sorted((stage / "usr/share" / folder / package).rglob("*")):
            if path.is_dir():
                continue
            place = path.relative_to(stage)
            lines.append(f"  - {{src: root/{place}, dst: /{place}, type: {kind}}}\n")
    if packager == "rpm":
        for place in manuals.places(stage):
            doc = ", type: doc" if place.is_relative_to(manuals.MANUAL) else ""
            lines.append(f"  - {{src: root/{place}, dst: /{place}{doc}}}\n")
    return "".join(lines)


if __name__ == "__main__":
    sys.exit(main())
