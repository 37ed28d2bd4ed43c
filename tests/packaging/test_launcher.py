"""The packages' launcher, on libraries that lie in this checkout instead of below /usr/lib."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pydantic
import pytest

from tests.waiting import patience

ROOT = Path(__file__).parents[2]
PLACE = 'HOME = "/usr/lib/gpu-agent"'
PRINT_ENVIRONMENT = "import json, os, sys; print(json.dumps([dict(os.environ), sys.path]))"


@pytest.fixture
def launcher(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    (home / "lib").symlink_to(ROOT / "agent")
    (home / "registry").symlink_to(Path(pydantic.__file__).parents[1])
    text = (ROOT / "packaging/files/gpu-agent").read_text()
    assert PLACE in text
    made = tmp_path / "gpu-agent"
    made.write_text(text.replace(PLACE, f"HOME = {str(home)!r}"))
    return made


@pytest.mark.parametrize("own", [{}, {"PYTHONPATH": "/srv/mine", "PYTHONUNBUFFERED": "1"}])
def test_the_command_of_a_job_sees_its_callers_python_and_not_the_packages(
    launcher: Path, tmp_path: Path, own: dict[str, str]
) -> None:
    others = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    script = tmp_path / "train" / "train.py"
    script.parent.mkdir()
    script.write_text(PRINT_ENVIRONMENT)
    words = ["job", "run", "--socket", str(tmp_path / "none"), "job-1", "--", sys.executable, str(script)]
    done = subprocess.run(
        [sys.executable, "-IS", str(launcher), *words],
        check=True,
        capture_output=True,
        text=True,
        timeout=patience(60),
        env={**others, **own},
    )
    environ, path = json.loads(done.stdout)
    assert {name: value for name, value in environ.items() if "PYTHON" in name} == own
    assert path[0] == str(script.parent)
    assert not [place for place in path if place.startswith(str(tmp_path / "home"))]
