import sys
import zoneinfo
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from pydantic import ValidationError

from gpu_agent.node.limit_settings import OwnersLimits
from gpu_agent.node.settings import load
from gpu_agent.runtime.layers import SettingsError

URL = "ws://10.0.0.1:8080/ws/node"


def loaded(folder: Path, text: str = "") -> OwnersLimits:
    path = folder / "agent.toml"
    path.write_text(text)
    return load({"registry_url": URL}, config=path).public_jobs


def test_what_is_not_set_asks_for_nothing(tmp_path: Path) -> None:
    limits = loaded(tmp_path)
    assert limits == OwnersLimits()
    assert (limits.schedule, limits.max_temperature_c, limits.pause_while_in_use) == ((), None, False)


def test_a_table_of_the_file_is_read_and_a_variable_replaces_one_key_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPU_AGENT_PUBLIC_JOBS__MAX_TEMPERATURE_C", "70")
    limits = loaded(tmp_path, '[public_jobs]\nschedule = ["sat-sun"]\nmax_temperature_c = 80\n')
    assert (limits.schedule, limits.max_temperature_c) == (("sat-sun",), 70)


def test_lists_are_written_with_signs_between_in_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPU_AGENT_PUBLIC_JOBS__SCHEDULE", "mon,tue 18:00-08:00; sat-sun;")
    monkeypatch.setenv("GPU_AGENT_PUBLIC_JOBS__OWN_PROGRAMS", "ollama, vllm")
    limits = loaded(tmp_path)
    assert limits.schedule == ("mon,tue 18:00-08:00", "sat-sun")
    assert limits.own_programs == ("ollama", "vllm")


def test_a_fault_names_the_line_of_the_key(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"agent\.toml:2: public_jobs\.schedule\.0: .*'fry' is no day"):
        loaded(tmp_path, '[public_jobs]\nschedule = ["mon-fry"]\n')


def test_an_unknown_key_of_the_table_names_its_nearest(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"agent\.toml:2: 'max_temperature' .* 'max_temperature_c'"):
        loaded(tmp_path, "[public_jobs]\nmax_temperature = 80\n")


@pytest.mark.parametrize("name", ["Mars/Olympus", "../../etc/passwd", "", "x\0y"])
def test_a_time_zone_that_the_machine_does_not_know_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="write it like Europe/Berlin"):
        OwnersLimits(time_zone=name)


def test_a_machine_without_time_zones_is_told_apart_from_a_wrong_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tzdata", None)
    zoneinfo.reset_tzpath([tmp_path])
    ZoneInfo.clear_cache()
    try:
        with pytest.raises(ValidationError, match=r"this machine has no time zones; install .* tzdata"):
            OwnersLimits(time_zone="Europe/Berlin")
    finally:
        zoneinfo.reset_tzpath()
