"""The image of `packaging/container/`: its recipe carried out, and what it makes run as an engine runs it."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.nvml_fake.build import build
from tests.nvml_fake.control import FakeNvml
from tests.programs import Registry
from tests.system.enclosure import Enclosure
from tests.system.packages import ROOT
from tests.system.recipe import Builder, Image, UnknownInstructionError, instructions, options
from tests.system.roots import NoRootError, debian
from tests.waiting import patience

pytestmark = pytest.mark.timeout(900)

RECIPE = ROOT / "packaging" / "container" / "Containerfile"
USER = 10001


@pytest.fixture(scope="module")
def image(obstacle: str | None, tmp_path_factory: pytest.TempPathFactory) -> Image:
    if obstacle is not None:
        pytest.skip(obstacle)
    try:
        base = debian("trixie")
    except NoRootError as error:
        pytest.skip(str(error))
    return Builder(base, ROOT, tmp_path_factory.mktemp("image")).built(RECIPE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the NVIDIA toolkit puts into a container, by where: the library, and here what stands for GPUs."""
    folder = tmp_path_factory.mktemp("driver")
    folder.chmod(0o755)  # the agent is not root
    FakeNvml(folder, gpus=2)
    return {"/srv/driver": folder, "/srv/library": build(folder / "library")}


@contextmanager
def running(
    image: Image, registry: Registry, scratch: Path, *, driver: dict[str, Path]
) -> Iterator[Enclosure]:
    shared = {**driver, **image.volume_folders(scratch)}
    arguments = options(
        image,
        {
            "GPU_AGENT_REGISTRY_URL": registry.node_url,
            "LD_LIBRARY_PATH": "/srv/library",
            "NVML_FAKE_CONTROL": "/srv/driver/nvml-fake.control",
        },
    )
    words = (*arguments, "--read-only", *image.entrypoint, *image.command)
    with Enclosure(image.root, scratch, *words, first="gpu-agent", shared=shared) as started:
        yield started


def test_a_recipe_with_an_instruction_that_nobody_carries_out_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownInstructionError, match="ONBUILD"):
        Builder(tmp_path, tmp_path, tmp_path).built("ARG BASE=x\nONBUILD RUN true\n")


def test_comments_and_continued_lines_are_read_as_engines_read_them() -> None:
    recipe = "# said\nRUN one \\\n # between\n && two\n\nUSER 1:1\n"
    assert [(name, said.split()) for name, said in instructions(recipe)] == [
        ("RUN", ["one", "&&", "two"]),
        ("USER", ["1:1"]),
    ]


def test_the_agent_is_pid_1_works_reaps_and_ends_at_sigterm(
    image: Image, driver: dict[str, Path], tmp_path: Path
) -> None:
    assert image.stop_signal == "SIGTERM"
    with Registry() as registry, running(image, registry, tmp_path, driver=driver) as started:
        node = registry.await_ready(1, within_seconds=60)[0]
        assert [gpu["name"] for gpu in node["gpus"]] == ["NVIDIA H100 80GB HBM3"] * 2
        first = psutil.Process(started.leader)
        assert first.uids().effective == first.gids().effective == USER
        program = first.children()[0]
        started.run("sh", "-c", "for orphan in 1 2 3; do (sleep 0.1 &); done")
        started.until(lambda: first.children() == [program], within_seconds=10, what="no zombies")
        os.kill(started.leader, signal.SIGTERM)
        assert started.wait(patience(5)) == 0, started.console()
        gone = registry.await_status(node["node_id"], "offline", within_seconds=2)
        assert gone["reason_code"] == "unregistered"


def test_the_health_check_holds_while_the_agent_answers_even_without_a_registry(
    image: Image, driver: dict[str, Path], tmp_path: Path
) -> None:
    with Registry() as registry, running(image, registry, tmp_path, driver=driver) as started:
        registry.await_ready(1, within_seconds=60)
        assert checked(started, image) == 0
        registry.send(signal.SIGKILL)
        registry.wait(patience(5))
        assert checked(started, image) == 0
        for process in psutil.Process(started.leader).children(recursive=True):
            process.suspend()
        assert checked(started, image) != 0


def checked(started: Enclosure, image: Image) -> int:
    """Do what an engine does from time to time; gives the exit code."""
    variables = [f"{name}={value}" for name, value in image.environment.items()]
    who = (f"--reuid={USER}", f"--regid={USER}", "--clear-groups")
    words = ("timeout", "10", "setpriv", *who, "env", *variables, *image.health)
    return started.run(*words, check=False).returncode


def test_the_image_runs_other_commands_too(image: Image, driver: dict[str, Path], tmp_path: Path) -> None:
    words = (*options(image, {}), "--private-network", "--as-pid2", "sleep", "infinity")
    with Enclosure(image.root, tmp_path, *words, first="(sd-stubinit)", shared=driver) as started:
        report = json.loads(started.run("gpu-agent", "probe", "--simulate", "1xL4-24GB", "--json").stdout)
        assert len(report["gpus"]) == 1
