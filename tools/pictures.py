"""The pictures of docs/: terminals of 80x24 and 120x40, with what the program shows in a small fleet.

    python -m tools.pictures [NAME …]   all of them, or those of these names; what `make pictures` does

Everything in them happened: a registry, three agents with simulated GPUs, and the commands. Each is drawn as
SVG, for the pages, and as PNG by the machine's own chromium, for whatever shows no SVG.
"""

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from tools import diagram
from tools.terminal import Size, drawing, shown, used_lines

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "assets" / "pictures"
SIZES = (Size(80, 24), Size(120, 40))
_READY_SECONDS = 60.0
_PNG_PIXELS = 2
"""To a pixel of the SVG, so that letters stay sharp."""
_PNG_COLOURS = 128
"""Of a terminal, edges of letters included; a picture of all its colours is three times as large."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine of the fleet."""

    hostname: str
    simulate: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)


REGISTRY = Machine("gpu-registry")
MACHINES = (
    Machine("gpu-01", "8xH100-80GB; models: chat-70b=llm, whisper-large-v3=asr"),
    Machine("gpu-02", "8xH100-80GB:lost#4; models: chat-70b=llm"),
    Machine("gpu-03", "4xL40S-48GB; models: whisper-large-v3=asr", {"GPU_AGENT_ACCEPT_PUBLIC_JOBS": "true"}),
)


@dataclass(frozen=True, slots=True)
class Scene:
    """A command and its picture's name."""

    name: str
    typed: str
    """As a person types it; a hostname in braces stands for that machine's node id."""
    on: Machine | None = None
    """Where; else on the registry's machine."""
    seconds: float = 0.0
    """Of a page that stays until Ctrl-C: when it is drawn."""


BEFORE = (
    "gpu-agent registry claim create train-7 --gpus 6 --node {gpu-01} --ttl 1h",
    "gpu-agent registry claim create asr-1 --node {gpu-03} --ttl 1h",
    "gpu-agent registry node drain {gpu-03} --reason 'new fans' --deadline 1h",
)
"""What the operator and a scheduler did before."""
SCENES = (
    Scene(
        "probe", "gpu-agent probe", Machine("gpu-07", "4xH100-80GB:degraded#2:lost#4; models: chat-70b=llm")
    ),
    Scene("node-list", "gpu-agent registry node list"),
    Scene("node-list-watch", "gpu-agent registry node list --watch", seconds=6),
    Scene("node-show", "gpu-agent registry node show {gpu-02}"),
    Scene("explain-job", "gpu-agent registry explain job --gpus 8 --model chat-70b"),
    Scene("explain-node", "gpu-agent registry explain node {gpu-02}"),
    Scene("claim-list", "gpu-agent registry claim list"),
    Scene("event-list", "gpu-agent registry event list"),
    Scene("status", "gpu-agent status", MACHINES[1]),
    Scene("doctor", "gpu-agent doctor", MACHINES[1]),
)


class Fleet:
    """A registry, its agents and a claim, as real processes whose files lie in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._nodes_port, self._operators_port = _free_port(), _free_port()
        self._common = {"HOME": str(folder), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
        (folder / "bin").mkdir()
        program = folder / "bin" / "gpu-agent"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m gpu_agent.cli "$@"\n', encoding="utf-8")
        program.chmod(0o755)
        self._common["PATH"] = f"{program.parent}:{self._common['PATH']}"

    def start(self, stack: ExitStack) -> None:
        """Start all of it, and wait until each node has come to its status."""
        listen = (
            f"--node-listen 127.0.0.1:{self._nodes_port} --operator-listen 127.0.0.1:{self._operators_port}"
        )
        self._serve(stack, f"gpu-agent registry serve --allow-simulated {listen}", REGISTRY)
        self._until("gpu-agent registry token create --uses 9 --out join.token")
        for machine in MACHINES:
            self._serve(stack, "gpu-agent run", machine)
        self._until("test $(gpu-agent registry node list --json | grep -c '\"ready\"') -ge 3")
        for command in BEFORE:
            self._until(self._filled(command))

    def run(self, scene: Scene, size: Size) -> str:
        """Draw one scene; of a page that has ended the lines that it used."""
        typed = self._filled(scene.typed)
        on = scene.on or REGISTRY
        screen = shown(_on(on, typed), size, env=self._environment(on), typed=typed, seconds=scene.seconds)
        lines = None if scene.seconds else used_lines(screen)
        return drawing(screen, f"{on.hostname}: {size.columns}x{size.lines}", lines=lines)

    def _environment(self, machine: Machine) -> dict[str, str]:
        names = {
            "GPU_REGISTRY_STATE_DIR": self._folder / "gpu-registry",
            "GPU_REGISTRY_SERVER": f"http://127.0.0.1:{self._operators_port}",
            "GPU_AGENT_STATE_DIR": self._folder / machine.hostname,
            "GPU_AGENT_REGISTRY_URL": f"ws://127.0.0.1:{self._nodes_port}",
            "GPU_AGENT_JOIN_TOKEN_FILE": self._folder / "join.token",
            "GPU_AGENT_SIMULATE": machine.simulate,
        }
        stated = {name: str(value) for name, value in names.items() if value}
        return {**self._common, **stated, **machine.settings}

    def _filled(self, command: str) -> str:
        """Put node ids for hostnames in braces."""

        def node_id(found: re.Match[str]) -> str:
            identity = (self._folder / found[1] / "identity.json").read_text(encoding="utf-8")
            return str(json.loads(identity)["node_id"])

        return re.sub(r"\{([a-z0-9-]+)\}", node_id, command)

    def _serve(self, stack: ExitStack, command: str, machine: Machine) -> None:
        with (self._folder / f"{machine.hostname}.log").open("wb") as log:
            words = _on(machine, command)
            program = subprocess.Popen(
                words, env=self._environment(machine), cwd=self._folder, stdout=log, stderr=log
            )
        stack.callback(program.wait, 20)
        stack.callback(program.terminate)

    def _until(self, command: str) -> None:
        """Run a command of the operator's until it succeeds."""
        until = time.monotonic() + _READY_SECONDS
        while True:
            words, environment = _on(REGISTRY, command), self._environment(REGISTRY)
            done = subprocess.run(
                words, env=environment, cwd=self._folder, capture_output=True, text=True, check=False
            )
            if done.returncode == 0:
                return
            if time.monotonic() > until:
                logs = "".join(log.read_text(encoding="utf-8")[-800:] for log in self._folder.glob("*.log"))
                raise TimeoutError(f"{command}: {done.stdout}{done.stderr}\n{logs}")
            time.sleep(0.2)


def _on(machine: Machine, command: str) -> list[str]:
    """Run it under the machine's name, in a namespace of its own; it leaves this machine's name alone."""
    mapped = [] if os.geteuid() == 0 else ["--map-root-user"]
    named = f"hostname {machine.hostname} && exec {command}" if command.startswith("gpu-agent") else command
    return ["unshare", "--uts", *mapped, "sh", "-c", named]


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def main() -> int:
    """Draw them."""
    parser = argparse.ArgumentParser(description="Draw the pictures of docs/.")
    parser.add_argument("names", nargs="*", help="these scenes alone")
    arguments = parser.parse_args()
    if shutil.which("chromium") is None:
        print("chromium is missing. On Debian: apt-get install -y --no-install-recommends chromium")
        return 1
    drawn = draw(arguments.names)
    for file in (*drawn, *write_png(drawn)):
        print(file)
    return 0


def draw(names: Sequence[str]) -> list[Path]:
    """Draw the scenes of these names, or all; returns the files."""
    diagram.main()
    FOLDER.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.gettempdir()) / "fleet"  # its name is in the pictures
    folder.mkdir(mode=0o700)
    drawn: list[Path] = []
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        fleet = Fleet(folder)
        fleet.start(stack)
        for scene in SCENES:
            for size in SIZES if not names or scene.name in names else ():
                picture = FOLDER / f"{scene.name}-{size.columns}x{size.lines}.svg"
                picture.write_text(fleet.run(scene, size), encoding="utf-8")
                drawn.append(picture)
    return drawn


def write_png(pictures: Iterable[Path]) -> Iterator[Path]:
    """Write SVG files as PNG beside them, and yield each."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(device_scale_factor=_PNG_PIXELS)
        for picture in pictures:
            file = picture.with_suffix(".png")
            page.set_content(f"<body style='margin: 0'>{picture.read_text(encoding='utf-8')}")
            shot = Image.open(BytesIO(page.locator("svg").screenshot()))
            few = shot.convert("RGB").quantize(  # by coverage: a red word that stands once stays red
                _PNG_COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
            )
            few.save(file, optimize=True)
            yield file
        browser.close()


if __name__ == "__main__":
    sys.exit(main())
