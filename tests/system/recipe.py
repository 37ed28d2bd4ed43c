"""A Containerfile carried out without a container engine: its steps, one by one, on copies of a Debian root.

It does what the instructions of our own recipe mean, and refuses every other, so that none is passed over.
What it cannot show: layers, the base image (a root by debootstrap stands for it), an engine's own options.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_LONGEST_STEP_SECONDS = 300.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_FROM_OUTSIDE = re.compile(r"(PIP_(INDEX_URL|EXTRA_INDEX_URL|TRUSTED_HOST)|(HTTPS?|NO)_PROXY)", re.IGNORECASE)
"""What `--build-arg` would hand in where the way to PyPI is another."""
_AUTHORITIES = "run/authorities.pem"


class UnknownInstructionError(Exception):
    """The recipe has a line that this stands for nothing of."""


@dataclass(slots=True, kw_only=True)
class Image:
    """What a recipe came to: files, and what is said about running them."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    user: str = "0:0"
    volumes: list[str] = field(default_factory=list)
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    stop_signal: str = ""

    def volume_folders(self, into: Path) -> dict[str, Path]:
        """A folder for each volume, owned as in the image, as engines do; by where the inside sees it."""
        made: dict[str, Path] = {}
        for place in self.volumes:
            like = (self.root / place.removeprefix("/")).stat()
            made[place] = into / place.strip("/").replace("/", "-")
            made[place].mkdir()
            made[place].chmod(like.st_mode & 0o7777)
            os.chown(made[place], like.st_uid, like.st_gid)
        return made


def instructions(recipe: str) -> Iterator[tuple[str, str]]:
    """Each instruction and what it says, comments and line breaks gone."""
    lines = [line for line in recipe.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        name, _, said = line.strip().partition(" ")
        yield name.upper(), said.strip()


class Builder:
    """Carries a recipe out, in `scratch`; every stage begins with a copy of `base`."""

    def __init__(self, base: Path, context: Path, scratch: Path) -> None:
        self._base = base
        self._context = context
        self._scratch = scratch
        self._stages: dict[str, Image] = {}
        self._arguments: dict[str, str] = {}
        self._image = Image(root=scratch)

    def built(self, recipe: str) -> Image:
        """Carry out every instruction; the last stage is the image."""
        for name, said in instructions(recipe):
            step = getattr(self, f"_do_{name.lower()}", None)
            if step is None:
                raise UnknownInstructionError(f"{name} {said}")
            step(said)
        return self._image

    def _do_arg(self, said: str) -> None:
        name, _, value = said.partition("=")
        self._arguments[name] = value

    def _do_from(self, said: str) -> None:
        words = said.split()
        base = words[0].replace("${BASE}", self._arguments["BASE"])
        if not base.endswith("debian:trixie-slim"):
            raise UnknownInstructionError(f"FROM {base}: a root of Debian 13 stands for no other")
        name = words[2] if len(words) == 3 else str(len(self._stages))
        root = self._scratch / name
        subprocess.run(["cp", "--archive", "--reflink=auto", self._base, root], check=True, timeout=120)
        shutil.copyfile("/etc/resolv.conf", root / "etc/resolv.conf")
        # A mirror that is busy for a moment fails no test.
        (root / "etc/apt/apt.conf.d/retries").write_text('Acquire::Retries "3";\n', encoding="ascii")
        self._stages[name] = self._image = Image(root=root)

    def _do_run(self, said: str) -> None:
        root = self._image.root
        variables = {"PATH": _PATH, **self._image.environment, **_handed_in(root)}
        done = subprocess.run(
            [
                *("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child"),
                *(f"--mount-proc={root}/proc", "chroot", str(root), "env", "--ignore-environment"),
                *(f"{name}={value}" for name, value in variables.items()),
                *("/bin/sh", "-c", said),
            ],
            check=False,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=_LONGEST_STEP_SECONDS,
        )
        (root / _AUTHORITIES).unlink(missing_ok=True)
        assert done.returncode == 0, f"RUN {said}\nended with {done.returncode}:\n{done.stdout}{done.stderr}"

    def _do_copy(self, said: str) -> None:
        words = said.split()
        source = self._context
        left_out: tuple[str, ...] = ("__pycache__",)  # by the recipe's .dockerignore
        if words[0].startswith("--from="):
            source = self._stages[words.pop(0).removeprefix("--from=")].root
            left_out = ()
        *names, place = words
        target = self._image.root / place.removeprefix("/")
        for name in names:
            _copy(source / name.removeprefix("/"), target, into=place.endswith("/"), left_out=left_out)

    def _do_env(self, said: str) -> None:
        for word in shlex.split(said):
            name, _, value = word.partition("=")
            self._image.environment[name] = value

    def _do_user(self, said: str) -> None:
        self._image.user = said

    def _do_volume(self, said: str) -> None:
        self._image.volumes = json.loads(said)

    def _do_healthcheck(self, said: str) -> None:
        self._image.health = json.loads(said.partition(" CMD ")[2])

    def _do_stopsignal(self, said: str) -> None:
        self._image.stop_signal = said

    def _do_entrypoint(self, said: str) -> None:
        self._image.entrypoint = json.loads(said)

    def _do_cmd(self, said: str) -> None:
        self._image.command = json.loads(said)


def _handed_in(root: Path) -> dict[str, str]:
    """Let a step find its way to PyPI as this process does."""
    given = {name: value for name, value in os.environ.items() if _FROM_OUTSIDE.fullmatch(name)}
    authorities = os.environ.get("PIP_CERT")
    if authorities is not None:
        shutil.copyfile(authorities, root / _AUTHORITIES)
        given["PIP_CERT"] = f"/{_AUTHORITIES}"
    return given


def _copy(source: Path, target: Path, *, into: bool, left_out: tuple[str, ...]) -> None:
    if source.is_dir():
        unwanted = shutil.ignore_patterns(*left_out)
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True, ignore=unwanted)
        return
    file = target / source.name if into else target
    file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, file)


def options(image: Image, more: Mapping[str, str]) -> list[str]:
    """nspawn's options for the image's user and variables, and for `more`, as `--env` sets them."""
    variables = {"PATH": _PATH, **image.environment, **more}
    number = image.user.partition(":")[0]
    entries = (image.root / "etc/passwd").read_text(encoding="ascii").splitlines()
    name = next(entry.split(":")[0] for entry in entries if entry.split(":")[2] == number)
    return [f"--user={name}", *(f"--setenv={key}={value}" for key, value in variables.items())]
