"""The wheel as a worker image installs it: base dependencies only, in an environment of its own."""

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.waiting import patience

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a fresh environment with the wheel in it."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT)], check=True)
    venv.create(folder / "venv", with_pip=True)
    binaries = folder / "venv" / "bin"
    wheel = next(folder.glob("gpu_agent-*.whl"))
    subprocess.run([str(binaries / "python"), "-m", "pip", "install", "--quiet", str(wheel)], check=True)
    return binaries


def run(binaries: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(binaries / "gpu-agent"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=patience(30),
    )


def test_the_base_install_probes_and_previews_a_registration(installed: Path) -> None:
    probed = run(installed, "probe", "--json", "--simulate", "2xL4-24GB")
    assert probed.returncode == 0, probed.stderr
    assert len(json.loads(probed.stdout)["gpus"]) == 2
    preview = run(installed, "probe", "--register-preview", "--simulate", "2xL4-24GB")
    assert json.loads(preview.stdout)["type"] == "node_register"


def test_the_base_install_names_the_extra_that_the_registry_needs(installed: Path) -> None:
    refused = run(installed, "registry", "serve")
    assert refused.returncode == 4
    assert "gpu-agent[registry]" in refused.stderr


def test_the_wheel_contains_the_units_and_example_settings_of_a_service(installed: Path) -> None:
    site = next((installed.parent / "lib").glob("python*/site-packages"))
    for file in (ROOT / "systemd").iterdir():
        assert (site / "gpu_agent" / "systemd" / file.name).read_bytes() == file.read_bytes()
    refused = run(installed, "service", "install", "--dry-run")
    if not Path("/run/systemd/system").is_dir():
        assert (refused.returncode, refused.stderr.count("\n")) == (4, 1)
        assert "not run by systemd" in refused.stderr


def test_the_wheel_holds_the_package_and_nothing_else(installed: Path) -> None:
    site = next((installed.parent / "lib").glob("python*/site-packages"))
    ours = {
        path.name for path in site.iterdir() if path.name.split("-")[0] in ("gpu_agent", "agent", "tests")
    }
    assert {name for name in ours if not name.endswith(".dist-info")} == {"gpu_agent"}
    assert (site / "gpu_agent" / "py.typed").exists()
