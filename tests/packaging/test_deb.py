"""The .deb of both halves: its files, their owners, and its control data."""

import ast
import gzip
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.packaging.contents import deb, entries_of_deb, files_of_deb, of_deb
from tests.system.packages import BUILT_AT_SECONDS, ROOT

pytestmark = pytest.mark.timeout(900)

HALVES = ("gpu-agent", "gpu-registry")
OURS = (
    *("/etc/gpu-agent/", "/usr/bin/gpu-agent", "/usr/lib/gpu-agent/", "/usr/lib/systemd/system/gpu-"),
    *(
        "/usr/lib/sysusers.d/gpu-",
        "/usr/lib/tmpfiles.d/gpu-",
        "/usr/share/bash-completion/completions/gpu-agent",
    ),
    *(
        "/usr/share/doc/gpu-",
        "/usr/share/fish/vendor_completions.d/gpu-agent",
        "/usr/share/lintian/overrides/gpu-",
    ),
    *("/usr/share/man/", "/usr/share/python3/runtime.d/gpu-", "/usr/share/zsh/vendor-completions/_gpu-agent"),
)
PROGRAMS = {
    "/usr/bin/gpu-agent",
    "/usr/lib/gpu-agent/byte-compile",
    "/usr/share/python3/runtime.d/gpu-agent.rtupdate",
}


@pytest.fixture(autouse=True)
def dpkg(need: Callable[[str, str], None]) -> None:
    need("dpkg-deb", "dpkg")


@pytest.fixture(params=HALVES)
def component(request: pytest.FixtureRequest, packages: Path) -> Path:
    return deb(packages, request.param)


def test_everything_is_roots_and_nobody_else_may_write_it(component: Path) -> None:
    for name, entry in entries_of_deb(component).items():
        assert entry.owner == "0:0", name
        executable = entry.is_folder or name in PROGRAMS
        assert entry.mode == (0o755 if executable else 0o644), name


def test_every_file_lies_where_only_we_put_files(component: Path) -> None:
    assert [name for name in files_of_deb(component) if not name.startswith(OURS)] == []


def test_nothing_is_compiled_for_one_python_yet(component: Path) -> None:
    assert [name for name in files_of_deb(component) if name.endswith(".pyc")] == []


def test_no_file_tells_where_it_was_built(component: Path) -> None:
    here = str(ROOT).encode()
    assert [name for name, content in files_of_deb(component).items() if here in content] == []


def test_every_file_has_the_time_that_was_stated(component: Path) -> None:
    times = {entry.at_seconds for name, entry in entries_of_deb(component).items()}
    assert times == {BUILT_AT_SECONDS}


def test_the_settings_are_what_dpkg_asks_about(packages: Path) -> None:
    assert of_deb(deb(packages, "gpu-agent"), "--info", "conffiles") == "/etc/gpu-agent/agent.toml\n"
    assert of_deb(deb(packages, "gpu-registry"), "--info", "conffiles") == "/etc/gpu-agent/registry.toml\n"


def test_the_two_halves_share_no_file(packages: Path) -> None:
    agent, registry = (files_of_deb(deb(packages, component)).keys() for component in HALVES)
    assert agent & registry == set()


def test_the_registry_wants_the_agent_of_its_own_version(packages: Path) -> None:
    version = of_deb(deb(packages, "gpu-agent"), "--field", "Version").strip()
    depends = of_deb(deb(packages, "gpu-registry"), "--field", "Depends").strip()
    assert depends == f"gpu-agent (= {version}), libc6 (>= 2.28)"


def test_what_a_machine_without_a_network_must_have_is_said_where_that_is_promised(packages: Path) -> None:
    wanted = of_deb(deb(packages, "gpu-agent"), "--field", "Depends")
    there = {"libc6", "libgcc-s1", "systemd"}
    names = {re.split(r"[ |(]", one.strip())[0] for one in wanted.split(",")} - there
    assert names == {"python3", "tzdata"}
    for page in ("README.md", "packaging/README.md"):
        (promise,) = [
            part
            for part in (ROOT / page).read_text(encoding="utf-8").split("\n\n")
            if "without a network" in part
        ][:1]
        assert all(f"`{name}`" in promise or name in promise for name in names), page


@pytest.mark.parametrize("python", ["311", "312", "313", "314"])
def test_what_is_compiled_is_there_for_every_python(packages: Path, python: str) -> None:
    compiled = [name for name in files_of_deb(deb(packages, "gpu-agent")) if name.endswith(".so")]
    for library in ("pydantic_core", "websockets"):
        assert any(f"/{library}/" in name and f"cpython-{python}-" in name for name in compiled), library
    assert any("/psutil/" in name and ".abi3." in name for name in compiled)
    of_the_registry = files_of_deb(deb(packages, "gpu-registry"))
    for library in ("httptools", "msgspec", "uvloop"):
        assert any(f"/{library}/" in name and f"cpython-{python}-" in name for name in of_the_registry), (
            library
        )


def test_what_is_compiled_runs_on_the_c_library_that_the_package_asks_for(component: Path) -> None:
    asked = (2, 28)
    for name, content in files_of_deb(component).items():
        if name.endswith(".so"):
            wanted = re.findall(rb"GLIBC_(\d+)\.(\d+)", content)
            assert all((int(major), int(minor)) <= asked for major, minor in wanted), name
    assert f"libc6 (>= {asked[0]}.{asked[1]})" in of_deb(component, "--field", "Depends")


def test_it_brings_manual_pages_and_completions(packages: Path) -> None:
    files = files_of_deb(deb(packages, "gpu-agent"))
    for page in ("man1/gpu-agent.1", "man1/gpu-agent-run.1", "man5/agent.toml.5", "man5/registry.toml.5"):
        assert ".TH" in gzip.decompress(files[f"/usr/share/man/{page}.gz"]).decode(), page
    for completion in (
        "bash-completion/completions/gpu-agent",
        "zsh/vendor-completions/_gpu-agent",
        "fish/vendor_completions.d/gpu-agent.fish",
    ):
        assert b"gpu-agent" in files[f"/usr/share/{completion}"], completion


def test_the_launcher_can_say_what_is_missing_to_a_python_that_is_too_old(packages: Path) -> None:
    """What that Python cannot read would be a SyntaxError instead of a sentence."""
    text = files_of_deb(deb(packages, "gpu-agent"))["/usr/bin/gpu-agent"].decode()
    ast.parse(text, feature_version=(3, 7))


def test_every_maintainer_script_ends_at_its_first_error(component: Path) -> None:
    for script in ("postinst", "prerm", "postrm"):
        assert of_deb(component, "--info", script).startswith("#!/bin/sh\nset -e\n"), script


def test_the_pages_come_with_the_agent_to_read_in_a_terminal_and_in_a_browser(packages: Path) -> None:
    listed = files_of_deb(deb(packages, "gpu-agent"))
    pages = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    for page in pages:
        assert f"/usr/share/doc/gpu-agent/html/{page.with_suffix('.html')}" in listed
        assert f"/usr/share/doc/gpu-agent/{page}" in listed
    for file in (ROOT / "docs" / "monitoring").iterdir():
        assert f"/usr/share/doc/gpu-agent/html/monitoring/{file.name}" in listed
    assert any("/doc/gpu-agent/html/assets/" in name for name in listed)
