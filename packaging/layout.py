"""Where each file of a package lies on a machine, with its mode and its time.

It copies and writes into a stage, a folder that stands for the machine's root: what lies there is packed.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import manuals
import papers
import private_tree

RELEASE = "1"
"""Which packaging of one version this is, as both distributions count it."""

_HERE = Path(__file__).parent
_HOME = Path("usr/lib/gpu-agent")
_RPM_ARCH = {"amd64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is built, and where."""

    root: Path
    """The checkout."""
    work: Path
    """Takes everything that is made on the way."""
    arch: str
    """As Debian calls it."""
    version: str
    """As the program states it."""
    at_seconds: int
    """The time that every file gets."""

    def tree(self, component: str) -> Path:
        """Where the libraries of one half are gathered."""
        return self.work / "tree" / component


def package_version(version: str) -> str:
    """Spell a Python version so that dpkg and rpm sort it alike: a candidate comes before its release."""
    return re.sub(r"\.?(a|b|rc|dev)(\d+)", r"~\1\2", version)


def file_name(plan: Plan, package: str, packager: str) -> str:
    """Name a package's file as its distribution does."""
    arch, version = plan.arch, package_version(plan.version)
    if packager == "deb":
        return f"{package}_{version}-{RELEASE}_{arch}.deb"
    return f"{package}-{version}-{RELEASE}.{_RPM_ARCH[arch]}.rpm"


def prepare(plan: Plan) -> None:
    """Fetch the libraries, and build the program itself under its version."""
    shutil.rmtree(plan.work / "tree", ignore_errors=True)
    for pins in ("agent", "registry"):
        private_tree.lay(plan.tree(pins), pins, arch=plan.arch, work=plan.work)
    source = _source(plan)
    private_tree.lay_program(plan.tree("agent"), source, arch=plan.arch, work=plan.work)
    manuals.write(plan.root, source / "agent", plan.work / "share", at_seconds=plan.at_seconds)
    site = [sys.executable, "-m", "tools.site", str(plan.work / "html")]
    subprocess.run(site, cwd=plan.root, check=True, stdout=subprocess.DEVNULL)


def _source(plan: Plan) -> Path:
    """Copy what the program's wheel is made of, so that it can bear another version than the checkout's."""
    source = plan.work / "source"
    shutil.rmtree(source, ignore_errors=True)
    for name in ("agent", "systemd"):
        shutil.copytree(plan.root / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(plan.root / name, source / name)
    stated = source / "agent/gpu_agent/version.py"
    text = stated.read_text(encoding="utf-8")
    stated.write_text(re.sub(r'(?m)^(__version__ = ").+"$', rf'\g<1>{plan.version}"', text), encoding="utf-8")
    return source


def lay_out(plan: Plan, package: str, packager: str) -> Path:
    """Lay one package's files out for one distribution; returns the stage."""
    stage = plan.work / packager / package / "root"
    shutil.rmtree(stage.parent, ignore_errors=True)
    if package == "gpu-agent":
        _copy_tree(plan.tree("agent"), stage / _HOME / "lib")
        _lay_launcher(stage, packager)
        _lay_manuals(plan, stage, packager)
    else:
        _copy_tree(plan.tree("registry"), stage / _HOME / "registry")
    _lay_service(plan, stage, package)
    _lay_papers(plan, stage, package, packager=packager)
    _settle(stage, plan.at_seconds)
    return stage


def _lay_launcher(stage: Path, packager: str) -> None:
    files = _HERE / "files"
    _copy(files / "gpu-agent", stage / "usr/bin/gpu-agent", mode=0o755)
    _copy(files / "byte-compile", stage / _HOME / "byte-compile", mode=0o755)
    if packager == "deb":
        _copy(files / "rtupdate", stage / "usr/share/python3/runtime.d/gpu-agent.rtupdate", mode=0o755)


def _lay_manuals(plan: Plan, stage: Path, packager: str) -> None:
    for place, content in manuals.files(plan.work / "share", packager=packager):
        _write(stage / place, content)


def _lay_service(plan: Plan, stage: Path, package: str) -> None:
    systemd = plan.root / "systemd"
    component = package.removeprefix("gpu-")
    _copy(systemd / f"{package}.service", stage / f"usr/lib/systemd/system/{package}.service")
    _copy(systemd / f"{component}.toml.example", stage / f"etc/gpu-agent/{component}.toml")
    for kind in ("sysusers", "tmpfiles"):
        source = systemd / f"{package}.{kind}.conf"
        if source.exists():
            _copy(source, stage / f"usr/lib/{kind}.d/{package}.conf")


def _lay_papers(plan: Plan, stage: Path, package: str, *, packager: str) -> None:
    folder = stage / "usr/share/doc" / package
    changes = (plan.root / "CHANGELOG.md").read_text(encoding="utf-8")
    described = [*stage.rglob("*.dist-info"), *(papers.site_makers() if package == "gpu-agent" else ())]
    copyright_text = papers.copyright_text(described).encode()
    version = f"{package_version(plan.version)}-{RELEASE}"
    (stage.parent / "changelog.yaml").write_text(
        papers.changelog(version, at_seconds=plan.at_seconds), encoding="utf-8"
    )
    if packager == "deb":
        _write(folder / "copyright", copyright_text)
        _write(folder / "changelog.gz", papers.gzipped(changes))
        _copy(_HERE / "files" / f"{package}.lintian", stage / "usr/share/lintian/overrides" / package)
    else:
        _write(stage / "usr/share/licenses" / package / "copyright", copyright_text)
        _write(folder / "CHANGELOG.md", changes.encode())
    if package == "gpu-agent":
        _copy(plan.root / "README.md", folder / "README.md")
        docs = plan.root / "docs"
        for source in sorted(docs.rglob("*.md")):
            _copy(source, folder / source.relative_to(docs))
        _copy_tree(plan.work / "html", folder / "html")


def _copy_tree(source: Path, target: Path) -> None:
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        _copy(path, target / path.relative_to(source))


def _copy(source: Path, target: Path, *, mode: int = 0o644) -> None:
    _write(target, source.read_bytes(), mode=mode)


def _write(target: Path, content: bytes, *, mode: int = 0o644) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    target.chmod(mode)


def _settle(stage: Path, at_seconds: int) -> None:
    """Give everything the same time, and folders the usual mode whatever the builder's umask is."""
    for path in [stage, *stage.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)
        os.utime(path, (at_seconds, at_seconds), follow_symlinks=False)
