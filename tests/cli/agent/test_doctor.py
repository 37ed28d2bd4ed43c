import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gpu_agent.cli.agent.doctor import doctor_schema
from tests.cli.terminal import OnTerminal
from tests.e2e.place import Place, made_by_command
from tests.nvml_fake.control import FakeNvml
from tests.programs import COMMAND, free_port
from tests.waiting import patience


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as running:
        yield Place(tmp_path, running)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    machine = FakeNvml(tmp_path, gpus=8)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, value in machine.environment().items():
        monkeypatch.setenv(name, value)
    return machine


def examined(*words: object, **environment: str) -> tuple[int, dict[str, Any], str]:
    """Run the doctor; its exit code, its findings by name, and all that it said."""
    done = subprocess.run(
        [*COMMAND, "doctor", "--json", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=patience(60),
        check=False,
        env={**os.environ, **environment},
    )
    document = json.loads(done.stdout)
    jsonschema.validate(document, doctor_schema())
    assert document["ok"] is (done.returncode == 0)
    return done.returncode, {one["check"]: one for one in document["checks"]}, done.stdout + done.stderr


def test_a_machine_that_is_well_passes_against_a_true_registry(place: Place, fake: FakeNvml) -> None:
    registry = place.registry()
    token = made_by_command(place, registry, "token", "create")
    file = place.folder / "join.token"
    file.touch(mode=0o600)
    file.write_text(token)
    state = place.folder / "state"
    code, found, said = examined(
        "--registry", registry.node_url, "--join-token-file", file, "--state-dir", state
    )
    assert code == 0, said
    assert found["NVML"]["detail"].endswith("8 GPUs, driver 570.124.06, CUDA 12.8")
    assert found["credential"]["detail"] == "the join token is accepted"
    assert token not in said
    assert place.nodes(registry) == []
    assert not state.exists()
    assert fake.callers()


def test_a_machine_that_runs_is_examined_beside_its_agent(place: Place, tmp_path: Path) -> None:
    registry = place.registry()
    agent = place.agent(registry, "a", join_token=made_by_command(place, registry, "token", "create"))
    place.await_ready(registry)
    (place.folder / "a.token").unlink()
    code, found, said = examined(
        *("--registry", registry.node_url, "--state-dir", tmp_path / "a", "--simulate", "1xT4-16GB")
    )
    assert code == 0, said
    assert found["state directory"]["detail"].endswith(f"an agent runs on it (process {agent.pid})")
    assert found["credential"]["detail"] == "the node token is accepted"
    assert place.node_token("a") not in said
    assert not agent.ended


def test_beside_an_agent_with_other_settings_it_names_these_and_fails_nothing(
    place: Place, tmp_path: Path
) -> None:
    registry = place.registry()
    place.agent(registry, "a", join_token=made_by_command(place, registry, "token", "create"))
    place.await_ready(registry)
    code, found, said = examined("--state-dir", tmp_path / "a", GPU_AGENT_STATE_DIR=str(tmp_path / "a"))
    assert (code, found["agent"]["verdict"], found["settings"]["verdict"]) == (0, "ok", "warn"), said
    assert f"`--registry {registry.node_url}` and `--simulate`" in found["settings"]["detail"]
    assert "NVML" not in found


def test_a_refused_token_fails_and_is_not_shown(place: Place) -> None:
    registry = place.registry()
    bad = "gpuj_00000000_abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG"
    code, found, said = examined(
        *("--registry", registry.node_url, "--state-dir", place.folder / "s", "--simulate", "1xT4-16GB"),
        GPU_AGENT_JOIN_TOKEN=bad,
    )
    assert (code, found["credential"]["verdict"]) == (1, "fail")
    assert bad not in said


def test_a_registry_that_is_not_there_fails_at_its_step(tmp_path: Path) -> None:
    url = f"ws://127.0.0.1:{free_port()}/"
    code, found, _ = examined("--registry", url, "--state-dir", tmp_path / "s", "--simulate", "1xT4-16GB")
    assert (code, found["TCP"]["verdict"], found["WebSocket"]["verdict"]) == (1, "fail", "skipped")


def test_of_several_addresses_each_is_checked_and_one_that_fails_is_a_warning_beside_one_that_works(
    place: Place,
) -> None:
    registry = place.registry()
    place.agent(registry, "a", join_token=made_by_command(place, registry, "token", "create"))
    place.await_ready(registry)
    dead = f"ws://127.0.0.1:{free_port()}/ws/node"
    words = ("--state-dir", place.folder / "a", "--simulate", "1xT4-16GB")
    code, _, said = examined("--registry", f"{dead},{registry.node_url}", *words)
    checks = json.loads(said)["checks"]
    (first, second) = [place for place, one in enumerate(checks) if one["check"] == "registry"]
    of_dead = {one["check"]: one["verdict"] for one in checks[first:second]}
    of_true = {one["check"]: one["verdict"] for one in checks[second:]}
    assert (code, checks[first]["detail"], checks[second]["detail"]) == (0, dead, registry.node_url)
    assert (of_dead["TCP"], of_dead["credential"]) == ("warn", "skipped")
    assert (of_true["TCP"], of_true["credential"]) == ("ok", "ok")
    other = f"ws://127.0.0.1:{free_port()}/ws/node"
    code, found, _ = examined("--registry", f"{dead},{other}", *words)
    assert (code, found["TCP"]["verdict"]) == (1, "fail")


def test_without_a_registry_the_machine_is_examined_all_the_same(tmp_path: Path) -> None:
    code, found, _ = examined("--state-dir", tmp_path / "s", "--simulate", "1xT4-16GB")
    assert (code, found["registry"]["verdict"], found["state directory"]["verdict"]) == (1, "fail", "ok")


def test_a_wrong_configuration_fails_and_the_machine_is_examined_all_the_same(tmp_path: Path) -> None:
    configuration = tmp_path / "agent.toml"
    configuration.write_text("modle_directories = []\n")
    code, found, _ = examined("--config", configuration, "--simulate", "1xT4-16GB")
    assert code == 1
    assert "model_directories" in found["configuration"]["detail"]
    assert found["GPUs"]["verdict"] == "warn"
    assert found["registry"]["verdict"] == "skipped"


def test_a_driver_that_hangs_costs_its_deadline_and_no_more(fake: FakeNvml, tmp_path: Path) -> None:
    fake.set("hang", "nvmlDeviceGetCount_v2", "*")
    began = time.monotonic()
    code, found, _ = examined("--state-dir", tmp_path / "s")
    assert code == 1
    assert "nvml_hung" in found["NVML"]["detail"]
    assert time.monotonic() - began < patience(12)
    fake.unset("hang")


def test_it_writes_no_file(fake: FakeNvml, tmp_path: Path) -> None:
    fake.unset("log")
    before = set(tmp_path.rglob("*"))
    examined("--state-dir", tmp_path / "state", "--registry", f"ws://127.0.0.1:{free_port()}/")
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("fake")
def test_a_person_at_a_terminal_gets_a_coloured_line_for_each_with_its_fix() -> None:
    with OnTerminal("doctor", "--state-dir", "/nonexistent/gpu-agent") as terminal:
        assert terminal.wait() == 1
        shown = terminal.shown
    assert "\x1b[32mOK" in shown
    assert "\x1b[1;31mFAIL" in shown
    assert "fix: " in shown
