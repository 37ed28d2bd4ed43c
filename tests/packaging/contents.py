"""What lies in a package, file by file, whether it is a .deb or an .rpm."""

import io
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.system.packages import ARCH, CURRENT
from tests.waiting import patience

OF_RPM = {"amd64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One file or folder of a package."""

    is_folder: bool
    mode: int
    owner: str
    at_seconds: int


def deb(folder: Path, package: str) -> Path:
    """The .deb of a half."""
    return folder / f"{package}_{CURRENT}-1_{ARCH}.deb"


def rpm(folder: Path, package: str) -> Path:
    """The .rpm of a half."""
    return folder / f"{package}-{CURRENT}-1.{OF_RPM[ARCH]}.rpm"


@cache
def files_of_deb(file: Path) -> Mapping[str, bytes]:
    """The content of each file, by its place on a machine."""
    with _opened(file) as tar:
        members = [member for member in tar if member.isfile()]
        return {member.name.removeprefix("."): _content(tar, member) for member in members}


@cache
def entries_of_deb(file: Path) -> Mapping[str, Entry]:
    """Each file and folder by its place; a link, or a device, is refused: no package of ours has any."""
    found: dict[str, Entry] = {}
    with _opened(file) as tar:
        for member in tar:
            assert member.isfile() or member.isdir(), member.name
            owner = f"{member.uid}:{member.gid}"
            name = member.name.removeprefix(".") or "/"
            found[name] = Entry(member.isdir(), member.mode, owner, int(member.mtime))
    return found


@cache
def entries_of_rpm(file: Path) -> Mapping[str, Entry]:
    """The same of an .rpm, as rpm reads it."""
    asked = r"[%{FILEMODES:octal} %{FILEUSERNAME}:%{FILEGROUPNAME} %{FILEMTIMES} %{FILENAMES}\n]"
    found: dict[str, Entry] = {}
    for line in of_rpm(file, "--queryformat", asked).splitlines():
        mode, owner, at_seconds, name = line.split(" ", 3)
        kind, rest = divmod(int(mode, 8), 0o10000)
        assert kind in (0o10, 0o4), name
        found[name] = Entry(kind == 0o4, rest, owner, int(at_seconds))
    return found


def of_deb(file: Path, *words: str) -> str:
    """What dpkg-deb says of a package."""
    return _said("dpkg-deb", words[0], str(file), *words[1:])


def of_rpm(file: Path, *words: str) -> str:
    """What rpm says of a package."""
    return _said("rpm", "--query", "--package", "--nosignature", str(file), *words)


def _opened(file: Path) -> tarfile.TarFile:
    done = subprocess.run(
        ["dpkg-deb", "--fsys-tarfile", file], check=True, capture_output=True, timeout=patience(60)
    )
    return tarfile.open(fileobj=io.BytesIO(done.stdout))


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    opened = tar.extractfile(member)
    assert opened is not None
    return opened.read()


def _said(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=patience(60)).stdout
