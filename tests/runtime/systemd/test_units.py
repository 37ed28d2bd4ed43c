from pathlib import Path

import pytest

from gpu_agent.runtime.systemd.units import (
    COMPONENTS,
    Component,
    UnwritablePathError,
    conf_file,
    example_settings,
    quoted_program,
    shipped_units,
    unit_files,
    written_by_version,
)

PROGRAM = Path("/opt/gpu-agent/bin/gpu-agent")


@pytest.mark.parametrize("component", COMPONENTS.values(), ids=COMPONENTS)
def test_the_unit_is_the_packages_own_but_for_its_program(component: Component) -> None:
    unit = unit_files(component, PROGRAM, "1.2.3", source=shipped_units())[component.unit_file]
    packaged = (shipped_units() / component.unit).read_text(encoding="utf-8")
    head, written = unit.split("[Unit]", 1)
    assert "[Unit]" + written.replace(f"={PROGRAM} ", "=/usr/bin/gpu-agent ") == packaged
    assert f"ExecStart={PROGRAM} " in written
    assert "/usr/bin/gpu-agent" not in written
    assert all(line.startswith("#") for line in head.splitlines())


@pytest.mark.parametrize("component", COMPONENTS.values(), ids=COMPONENTS)
def test_every_file_names_its_writer(component: Component) -> None:
    for text in unit_files(component, PROGRAM, "1.2.3", source=shipped_units()).values():
        assert written_by_version(text) == "1.2.3"
    assert written_by_version((shipped_units() / component.unit).read_text(encoding="utf-8")) is None


def test_files_for_users_and_folders_come_along_where_there_are_any(tmp_path: Path) -> None:
    component = COMPONENTS["agent"]
    (tmp_path / component.unit).write_text("[Service]\nExecStart=/usr/bin/gpu-agent run\n")
    assert set(unit_files(component, PROGRAM, "1", source=tmp_path)) == {component.unit_file}
    (tmp_path / "gpu-agent.sysusers.conf").write_text("u gpu-agent -\n")
    (tmp_path / "gpu-agent.tmpfiles.conf").write_text("d /run/gpu-agent\n")
    files = unit_files(component, PROGRAM, "1", source=tmp_path)
    assert files[conf_file(component, "sysusers")].endswith("u gpu-agent -\n")
    assert files[conf_file(component, "tmpfiles")].endswith("d /run/gpu-agent\n")


@pytest.mark.parametrize("component", COMPONENTS.values(), ids=COMPONENTS)
def test_there_are_settings_to_begin_with(component: Component) -> None:
    assert example_settings(component, source=shipped_units()).startswith("#")


@pytest.mark.parametrize(
    ("path", "written"),
    [
        ("/opt/a/bin/gpu-agent", "/opt/a/bin/gpu-agent"),
        ("/opt/100%/gpu-agent", "/opt/100%%/gpu-agent"),
        ("/opt/my venv/gpu-agent", '"/opt/my venv/gpu-agent"'),
    ],
)
def test_a_path_is_written_so_that_systemd_reads_it_back(path: str, written: str) -> None:
    assert quoted_program(Path(path)) == written


@pytest.mark.parametrize("path", ['/opt/"/gpu-agent', "/opt/'/x", "/opt/a\\b/x", "/opt/a\nUser=root/x"])
def test_a_path_that_could_say_something_else_to_systemd_is_refused(path: str) -> None:
    with pytest.raises(UnwritablePathError, match="/opt/gpu-agent"):
        quoted_program(Path(path))
