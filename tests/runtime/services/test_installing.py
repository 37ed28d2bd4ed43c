import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gpu_agent.runtime.services.installing import Place, Program, RefusedError, installation, removal
from gpu_agent.runtime.services.reach import User
from gpu_agent.runtime.services.steps import Remove, RemoveEmpty, Run, Write, carry_out
from gpu_agent.runtime.services.unit_files import HALVES, Half, conf_file

AGENT = HALVES["agent"]
PROGRAM = Program(Path("/bin/sh"), "1.0", ())
ANYBODY = User("gpu-agent")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    source = tmp_path / "systemd"
    source.mkdir()
    (source / AGENT.unit).write_text("[Unit]\n\n[Service]\nExecStart=/usr/bin/gpu-agent run\n")
    (source / "gpu-agent.sysusers.conf").write_text('u gpu-agent - "GPU node agent"\n')
    (source / "agent.toml.example").write_text("# settings\n")
    return Place(tmp_path / "root", source, 0)


def put(place: Place, path: Path, text: str = "mine\n") -> Path:
    file = place.at(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def write_all(place: Place, half: Half = AGENT, program: Program = PROGRAM) -> None:
    steps = installation(half, program, place=place, user=ANYBODY).steps
    carry_out([step for step in steps if isinstance(step, Write)], lambda _: None)


def test_a_bare_machine_gets_unit_and_settings_and_systemd_is_told(place: Place) -> None:
    plan = installation(AGENT, PROGRAM, place=place, user=ANYBODY)
    written = [step.path for step in plan.steps if isinstance(step, Write)]
    assert {place.at(AGENT.unit_file), place.at(AGENT.settings_file)} <= set(written)
    assert plan.steps[-1] == Run(("systemctl", "daemon-reload"))
    assert (plan.changed, plan.new_settings) == (True, True)


def test_users_are_made_before_systemd_is_told(place: Place) -> None:
    runs = [
        step.words
        for step in installation(AGENT, PROGRAM, place=place, user=ANYBODY).steps
        if isinstance(step, Run)
    ]
    assert runs[0] == ("systemd-sysusers", str(place.at(conf_file(AGENT, "sysusers"))))


def test_a_second_time_nothing_is_written(place: Place) -> None:
    write_all(place)
    plan = installation(AGENT, PROGRAM, place=place, user=ANYBODY)
    assert not plan.changed
    assert not any(isinstance(step, Write) for step in plan.steps)


def test_settings_that_are_there_stay(place: Place) -> None:
    settings = put(place, AGENT.settings_file)
    write_all(place)
    assert settings.read_text() == "mine\n"
    settings.unlink()
    settings.symlink_to("nowhere")
    assert not installation(AGENT, PROGRAM, place=place, user=ANYBODY).new_settings


def test_another_version_brings_the_unit_up_to_date(place: Place) -> None:
    write_all(place)
    newer = Program(PROGRAM.path, "2.0", ())
    plan = installation(AGENT, newer, place=place, user=ANYBODY)
    assert plan.changed
    write_all(place, program=newer)
    assert "of version 2.0." in place.at(AGENT.unit_file).read_text()


def linked(place: Place) -> None:
    place.at(AGENT.unit_file).parent.mkdir(parents=True)
    place.at(AGENT.unit_file).symlink_to(os.devnull)


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda place: put(place, AGENT.unit_file), "was not written by `gpu-agent service install`"),
        (lambda place: put(place, conf_file(AGENT, "sysusers")), "was not written by"),
        (linked, "is a link to /dev/null"),
        (lambda place: put(place, AGENT.packaged_unit_files[0]), "a package has brought this service"),
        (lambda place: put(place, AGENT.packaged_unit_files[1]), "systemctl enable --now gpu-agent"),
    ],
    ids=["a unit", "a file for users", "masked", "packaged", "packaged, in /lib"],
)
def test_what_others_have_put_there_is_refused(
    place: Place, prepare: Callable[[Place], object], said: str
) -> None:
    prepare(place)
    with pytest.raises(RefusedError, match=said):
        installation(AGENT, PROGRAM, place=place, user=ANYBODY)


def test_a_program_out_of_reach_is_refused_with_the_folder(place: Place, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "gpu-agent").write_text("")
    with pytest.raises(RefusedError, match=r"cannot get at .*python3 -m venv /opt/gpu-agent"):
        installation(AGENT, Program(closed / "gpu-agent", "1", ()), place=place, user=ANYBODY)


def test_a_part_of_the_program_out_of_reach_is_named(place: Place, tmp_path: Path) -> None:
    part = tmp_path / "python"
    part.write_text("")
    part.chmod(0o600)
    with pytest.raises(RefusedError, match=rf"cannot get at {part}, which /bin/sh needs: closed to it is "):
        installation(AGENT, Program(Path("/bin/sh"), "1", (part,)), place=place, user=ANYBODY)


def test_a_path_that_no_unit_can_name_is_refused(place: Place) -> None:
    with pytest.raises(RefusedError, match="which no unit can name"):
        installation(AGENT, Program(Path('/opt/"/x'), "1", ()), place=place, user=ANYBODY)


def test_without_systemd_or_root_it_is_refused(place: Place) -> None:
    with pytest.raises(RefusedError, match="not run by systemd"):
        place.refuse_without_systemd()
    place.at(Path("run/systemd/system")).mkdir(parents=True)
    place.refuse_without_systemd()
    place.refuse_anybody_but_root("x")
    with pytest.raises(RefusedError, match="sudo gpu-agent x"):
        Place(place.root, place.source, 1000).refuse_anybody_but_root("gpu-agent x")


def test_what_was_made_is_removed_and_what_is_the_owners_stays(place: Place) -> None:
    write_all(place)
    state = put(place, AGENT.state_dir / "identity.json").parent
    drop_in = put(place, AGENT.drop_ins / "mine.conf").parent
    plan = removal(AGENT, place, purge=False)
    assert plan.steps[0] == Run(("systemctl", "disable", "--now", AGENT.unit))
    removed = [step.path for step in plan.steps if isinstance(step, Remove)]
    assert place.at(AGENT.unit_file) in removed
    assert plan.kept == (place.at(AGENT.settings_file), state, drop_in)
    assert not set(removed) & set(plan.kept)


def test_a_purge_takes_settings_token_and_state_too(place: Place) -> None:
    write_all(place)
    put(place, AGENT.state_dir / "identity.json")
    token = put(place, Path("etc/gpu-agent/join-token"))
    other = put(place, HALVES["registry"].settings_file)
    plan = removal(AGENT, place, purge=True)
    carry_out([step for step in plan.steps if not isinstance(step, Run)], lambda _: None)
    assert not place.at(AGENT.state_dir).exists()
    assert not token.exists()
    assert other.exists()
    assert plan.kept == ()
    assert RemoveEmpty(other.parent) in plan.steps


def test_what_was_never_made_needs_no_removal(place: Place) -> None:
    plan = removal(AGENT, place, purge=False)
    assert (plan.steps, plan.changed) == ((), False)


def test_a_unit_of_ours_that_hides_a_packages_is_to_be_removed_first(place: Place) -> None:
    write_all(place)
    put(place, AGENT.packaged_unit_files[0])
    with pytest.raises(RefusedError, match="hides it: remove that with `gpu-agent service uninstall agent`"):
        installation(AGENT, PROGRAM, place=place, user=ANYBODY)


def test_a_packages_service_is_not_removed_but_ours_beside_it_is(place: Place) -> None:
    put(place, AGENT.packaged_unit_files[0])
    with pytest.raises(RefusedError, match="apt-get remove gpu-agent"):
        removal(AGENT, place, purge=False)
    put(place, AGENT.unit_file, "# Written by `gpu-agent service install` of version 1.\n")
    assert removal(AGENT, place, purge=False).changed


def test_somebody_elses_unit_is_not_removed(place: Place) -> None:
    put(place, AGENT.unit_file)
    with pytest.raises(RefusedError, match="was not written by"):
        removal(AGENT, place, purge=True)
