"""A Debian that is not booted and has no network: packages are installed as in a chroot."""

import time
from collections.abc import Mapping
from pathlib import Path

from tests.system.enclosure import Done, Enclosure

_NOT_OF_A_PACKAGE = (
    "/proc",
    "/sys",
    "/dev",
    "/run",
    "/home",
    "/srv",
    "/var/log",
    "/var/cache",
    "/var/lib/dpkg",
)
"""Where the kernel, dpkg itself and this test have files."""


class OfflineDebian(Enclosure):
    """Its files are an overlay's, gone when it ends."""

    def __init__(self, root: Path, scratch: Path, *, shared: Mapping[str, Path]) -> None:
        words = ("--private-network", "--as-pid2", "sleep", "infinity")
        super().__init__(root, scratch, *words, first="(sd-stubinit)", shared=shared)

    def dpkg(self, *words: str, check: bool = True) -> Done:
        """Run dpkg without its questions."""
        return self.run("dpkg", "--force-confold", *words, check=check, within_seconds=240)

    def install(self, folder: str) -> float:
        """Install all packages of a folder there, or upgrade to them; gives the seconds that it took."""
        files = sorted(f"{folder}/{file.name}" for file in self.path(folder).glob("*.deb"))
        began = time.monotonic()
        self.dpkg("--install", *files)
        return time.monotonic() - began

    def state_of(self, package: str) -> str:
        """What dpkg holds a package for: `install ok installed`, or another."""
        asked = ("dpkg-query", "--show", "--showformat=${Status}", package)
        return self.run(*asked, check=False).stdout or "unknown"

    def files(self) -> set[str]:
        """All files and folders there that a package, or its program, may have made."""
        apart = " -o ".join(f"-path {place}" for place in _NOT_OF_A_PACKAGE)
        found = self.run("sh", "-c", f"find / \\( {apart} \\) -prune -o -print").stdout
        return set(found.splitlines())

    def digests(self, folder: str) -> str:
        """What the files of a folder hold, as one text that differs when any of them does."""
        return self.run("sh", "-c", f"find {folder} -type f -exec sha256sum {{}} + | sort -k 2").stdout
