import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from gpu_agent.runtime.systemd.install import (
    AccessDenied,
    Machine,
    Program,
    RefusedError,
    Remove,
    RemoveEmpty,
    Run,
    Step,
    StepError,
    User,
    Write,
    find_user,
    first_inaccessible,
    plan_install,
    plan_uninstall,
    run_program,
    run_steps,
)
from gpu_agent.runtime.systemd.units import COMPONENTS, Component, conf_file

AGENT = COMPONENTS["agent"]
PROGRAM = Program(Path("/bin/sh"), "1.0", ())
ANYBODY = User("gpu-agent")


@pytest.fixture
def place(tmp_path: Path) -> Machine:
    source = tmp_path / "systemd"
    source.mkdir()
    (source / AGENT.unit).write_text("[Unit]\n\n[Service]\nExecStart=/usr/bin/gpu-agent run\n")
    (source / "gpu-agent.sysusers.conf").write_text('u gpu-agent - "GPU node agent"\n')
    (source / "agent.toml.example").write_text("# settings\n")
    return Machine(tmp_path / "root", source, 0)


def put(place: Machine, path: Path, text: str = "mine\n") -> Path:
    file = place.at(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def write_all(place: Machine, component: Component = AGENT, program: Program = PROGRAM) -> None:
    steps = plan_install(component, program, place=place, user=ANYBODY).steps
    run_steps([step for step in steps if isinstance(step, Write)], lambda _: None)


def test_a_bare_machine_gets_unit_and_settings_and_systemd_is_reloaded(place: Machine) -> None:
    plan = plan_install(AGENT, PROGRAM, place=place, user=ANYBODY)
    written = [step.path for step in plan.steps if isinstance(step, Write)]
    assert {place.at(AGENT.unit_file), place.at(AGENT.settings_file)} <= set(written)
    assert plan.steps[-1] == Run(("systemctl", "daemon-reload"))
    assert (plan.changed, plan.new_settings) == (True, True)


def test_users_are_made_before_systemd_is_reloaded(place: Machine) -> None:
    runs = [
        step.words
        for step in plan_install(AGENT, PROGRAM, place=place, user=ANYBODY).steps
        if isinstance(step, Run)
    ]
    assert runs[0] == ("systemd-sysusers", str(place.at(conf_file(AGENT, "sysusers"))))


def test_a_second_time_nothing_is_written(place: Machine) -> None:
    write_all(place)
    plan = plan_install(AGENT, PROGRAM, place=place, user=ANYBODY)
    assert not plan.changed
    assert not any(isinstance(step, Write) for step in plan.steps)


def test_settings_that_are_there_stay(place: Machine) -> None:
    settings = put(place, AGENT.settings_file)
    write_all(place)
    assert settings.read_text() == "mine\n"
    settings.unlink()
    settings.symlink_to("nowhere")
    assert not plan_install(AGENT, PROGRAM, place=place, user=ANYBODY).new_settings


def test_another_version_brings_the_unit_up_to_date(place: Machine) -> None:
    write_all(place)
    newer = Program(PROGRAM.path, "2.0", ())
    plan = plan_install(AGENT, newer, place=place, user=ANYBODY)
    assert plan.changed
    write_all(place, program=newer)
    assert "of version 2.0." in place.at(AGENT.unit_file).read_text()


def linked(place: Machine) -> None:
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
    place: Machine, prepare: Callable[[Machine], object], said: str
) -> None:
    prepare(place)
    with pytest.raises(RefusedError, match=said):
        plan_install(AGENT, PROGRAM, place=place, user=ANYBODY)


def test_a_program_out_of_reach_is_refused_with_the_folder(place: Machine, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "gpu-agent").write_text("")
    with pytest.raises(RefusedError, match=r"cannot get at .*python3 -m venv /opt/gpu-agent"):
        plan_install(AGENT, Program(closed / "gpu-agent", "1", ()), place=place, user=ANYBODY)


def test_a_part_of_the_program_out_of_reach_is_named(place: Machine, tmp_path: Path) -> None:
    part = tmp_path / "python"
    part.write_text("")
    part.chmod(0o600)
    with pytest.raises(RefusedError, match=rf"cannot get at {part}, which /bin/sh needs: closed to it is "):
        plan_install(AGENT, Program(Path("/bin/sh"), "1", (part,)), place=place, user=ANYBODY)


def test_a_path_that_no_unit_can_name_is_refused(place: Machine) -> None:
    with pytest.raises(RefusedError, match="which no unit can name"):
        plan_install(AGENT, Program(Path('/opt/"/x'), "1", ()), place=place, user=ANYBODY)


def test_without_systemd_or_root_it_is_refused(place: Machine) -> None:
    with pytest.raises(RefusedError, match="not run by systemd"):
        place.require_systemd()
    place.at(Path("run/systemd/system")).mkdir(parents=True)
    place.require_systemd()
    place.require_root("x")
    with pytest.raises(RefusedError, match="sudo gpu-agent x"):
        Machine(place.root, place.source, 1000).require_root("gpu-agent x")


def test_what_was_made_is_removed_and_what_is_the_owners_stays(place: Machine) -> None:
    write_all(place)
    state = put(place, AGENT.state_dir / "identity.json").parent
    drop_in = put(place, AGENT.drop_ins / "mine.conf").parent
    plan = plan_uninstall(AGENT, place, purge=False)
    assert plan.steps[0] == Run(("systemctl", "disable", "--now", AGENT.unit))
    removed = [step.path for step in plan.steps if isinstance(step, Remove)]
    assert place.at(AGENT.unit_file) in removed
    assert plan.remaining == (place.at(AGENT.settings_file), state, drop_in)
    assert not set(removed) & set(plan.remaining)


def test_a_purge_takes_settings_token_and_state_too(place: Machine) -> None:
    write_all(place)
    put(place, AGENT.state_dir / "identity.json")
    token = put(place, Path("etc/gpu-agent/join-token"))
    other = put(place, COMPONENTS["registry"].settings_file)
    plan = plan_uninstall(AGENT, place, purge=True)
    run_steps([step for step in plan.steps if not isinstance(step, Run)], lambda _: None)
    assert not place.at(AGENT.state_dir).exists()
    assert not token.exists()
    assert other.exists()
    assert plan.remaining == ()
    assert RemoveEmpty(other.parent) in plan.steps


def test_what_was_never_made_needs_no_removal(place: Machine) -> None:
    plan = plan_uninstall(AGENT, place, purge=False)
    assert (plan.steps, plan.changed) == ((), False)


def test_a_unit_of_ours_that_hides_a_packages_is_to_be_removed_first(place: Machine) -> None:
    write_all(place)
    put(place, AGENT.packaged_unit_files[0])
    with pytest.raises(RefusedError, match="hides it: remove that with `gpu-agent service uninstall agent`"):
        plan_install(AGENT, PROGRAM, place=place, user=ANYBODY)


def test_a_packages_service_is_not_removed_but_ours_beside_it_is(place: Machine) -> None:
    put(place, AGENT.packaged_unit_files[0])
    with pytest.raises(RefusedError, match="apt-get remove gpu-agent"):
        plan_uninstall(AGENT, place, purge=False)
    put(place, AGENT.unit_file, "# Written by `gpu-agent service install` of version 1.\n")
    assert plan_uninstall(AGENT, place, purge=False).changed


def test_somebody_elses_unit_is_not_removed(place: Machine) -> None:
    put(place, AGENT.unit_file)
    with pytest.raises(RefusedError, match="was not written by"):
        plan_uninstall(AGENT, place, purge=True)


UNKNOWN_USER = User("gpu-agent")
OPEN = "[Service]\nProtectHome=read-only\n"
ABOVE = frozenset(Path(__file__).resolve().parents)


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """A program that all may reach from `tmp_path` on; what is above it belongs to the test."""
    folder = tmp_path / "home" / "venv"
    folder.mkdir(parents=True)
    program = folder / "gpu-agent"
    program.write_text("")
    program.chmod(0o755)
    for place in (program.parent, program.parent.parent):
        place.chmod(0o755)
    return program


def below(found: AccessDenied | None, folder: Path) -> Path | None:
    """The place that was found, where it is not one above the test's own folder."""
    return found.place if found is not None and found.place.is_relative_to(folder) else None


def owner_of(folder: Path) -> User:
    """A user who gets as far as the test's own folder, which is the test's user's."""
    return User("gpu-agent", folder.stat().st_uid)


def test_a_program_that_all_may_reach_is_reached() -> None:
    assert first_inaccessible([Path("/bin/sh")], UNKNOWN_USER, unit=OPEN) is None


def test_a_folder_that_is_closed_to_others_is_named(venv: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.chmod(0o700)
    others = User("gpu-agent", os.geteuid() + 1)
    tmp_path.chmod(0o755)
    found = first_inaccessible([venv], others, unit=OPEN)
    assert found is not None
    assert below(found, tmp_path) in (home, None)
    assert "mode 0700" in str(found)


def test_the_owner_gets_in_where_others_do_not(venv: Path, tmp_path: Path) -> None:
    (tmp_path / "home").chmod(0o700)
    assert below(first_inaccessible([venv], owner_of(tmp_path), unit=OPEN), tmp_path) is None


def test_a_program_that_cannot_be_read_is_named(venv: Path, tmp_path: Path) -> None:
    venv.chmod(0o055)
    assert below(first_inaccessible([venv], owner_of(tmp_path), unit=OPEN), tmp_path) == venv


def test_where_a_link_leads_counts_too(venv: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(venv)
    venv.parent.chmod(0o055)
    assert below(first_inaccessible([link], owner_of(tmp_path), unit=OPEN), tmp_path) == venv.parent


def test_what_is_not_there_is_not_reached(tmp_path: Path) -> None:
    found = first_inaccessible([tmp_path / "absent"], owner_of(tmp_path), unit=OPEN)
    assert below(found, tmp_path) in (tmp_path / "absent", None)


@pytest.mark.parametrize(
    ("path", "unit", "wall"),
    [
        ("/home/me/venv/bin/x", "ProtectHome=yes", "/home"),
        ("/root/venv/bin/x", "ProtectHome=tmpfs", "/root"),
        ("/tmp/venv/bin/x", "PrivateTmp=yes", "/tmp"),  # noqa: S108 - a name alone
        ("/var/tmp/venv/bin/x", "PrivateTmp=disconnected", "/var/tmp"),  # noqa: S108 - a name alone
    ],
)
def test_what_the_unit_hides_is_not_reached(path: str, unit: str, wall: str) -> None:
    found = first_inaccessible([Path(path)], UNKNOWN_USER, unit=f"[Service]\n# ProtectHome=no\n{unit}\n")
    assert found is not None
    assert found.place == Path(wall)
    assert unit.partition("=")[0] in str(found)


def test_a_user_of_this_machine_is_known_by_number() -> None:
    root = find_user("root")
    assert (root.uid, 0 in root.gids) == (0, True)
    assert find_user("nobody-of-that-name") == User("nobody-of-that-name")


def test_a_file_is_written_whole_with_its_mode_whatever_the_mask(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.conf"
    Write(path, "text\n").carry_out()
    assert path.read_text() == "text\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [one.name for one in path.parent.iterdir()] == ["b.conf"]


def test_folders_that_are_made_on_the_way_are_open_to_all_whatever_the_mask(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    before = os.umask(0o077)
    try:
        Write(tmp_path / "etc" / "gpu-agent" / "agent.toml", "").carry_out()
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(one.stat().st_mode) for one in (tmp_path, *tmp_path.rglob("*"))]
    assert modes == [0o750, 0o755, 0o755, 0o644]


def test_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "link"
    victim.write_text("theirs")
    path.symlink_to(victim)
    Write(path, "ours").carry_out()
    assert (victim.read_text(), path.is_symlink(), path.read_text()) == ("theirs", False, "ours")


def test_removing_takes_a_link_and_not_what_it_leads_to(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_text("")
    (tmp_path / "link").symlink_to(folder)
    Remove(tmp_path / "link").carry_out()
    assert (folder / "file").exists()
    Remove(folder).carry_out()
    assert not folder.exists()
    Remove(folder).carry_out()


def test_a_folder_with_something_in_it_stays(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "mine").write_text("")
    RemoveEmpty(folder).carry_out()
    (folder / "mine").unlink()
    RemoveEmpty(folder).carry_out()
    assert not folder.exists()
    RemoveEmpty(folder).carry_out()


def test_a_program_that_fails_is_reported_with_its_last_line() -> None:
    with pytest.raises(StepError, match=r"`sh -c .*` failed: no such luck"):
        Run(("sh", "-c", "echo first; echo no such luck >&2; exit 3")).carry_out()
    Run(("sh", "-c", "exit 3"), may_fail=True).carry_out()


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(StepError, match="this machine has no no-such-program"):
        run_program(("no-such-program",))


def test_the_first_step_that_fails_ends_the_walk(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done: list[Step] = []
    steps = [
        Write(tmp_path / "one", "1"),
        Write(tmp_path / "file" / "two", "2"),
        Write(tmp_path / "three", "3"),
    ]
    with pytest.raises(StepError, match=r"cannot write .*two"):
        run_steps(steps, done.append)
    assert done == steps[:1]
    assert not (tmp_path / "three").exists()
