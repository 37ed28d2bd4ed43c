import asyncio
import logging
import ssl
import threading
from pathlib import Path
from typing import Any

import pytest

from gpu_agent.runtime.certificate import read_file
from gpu_agent.runtime.pins import pin_of
from gpu_agent.runtime.tasks import MOST_LEFT_BEHIND
from gpu_agent.runtime.tls_contexts import OwnCertificate, TlsFileError
from gpu_agent.server import tls
from gpu_agent.server.tls import Encryption, TlsFiles
from tests.authority import Authority
from tests.server.harness import until


class Installed:
    """The files that a registry is told of, and what is put into their places."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder / "authority")
        self.own = OwnCertificate(folder / "registry.pem", folder / "registry.key")

    def put(self, made: OwnCertificate) -> None:
        assert made.key_file is not None
        assert self.own.key_file is not None
        made.key_file.replace(self.own.key_file)
        made.cert_file.replace(self.own.cert_file)


@pytest.fixture
def installed(tmp_path: Path) -> Installed:
    made = Installed(tmp_path)
    made.put(made.authority.issue(to_days=60))
    return made


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, dict[str, Any]]]:
    return [(one.getMessage(), vars(one)["fields"]) for one in caplog.records]


@pytest.fixture(autouse=True)
def _everything_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


async def test_a_renewed_certificate_is_taken_when_asked_and_told(
    installed: Installed, caplog: pytest.LogCaptureFixture
) -> None:
    encryption = Encryption(TlsFiles(own=installed.own))
    before = encryption.context
    installed.put(installed.authority.issue(to_days=200.5))
    assert await encryption.reload()
    assert encryption.context is not before
    assert encryption.ends_at == read_file(installed.own.cert_file).ends_at
    fields = {"file": str(installed.own.cert_file), "days": 200, "pin": encryption.pin}
    assert told(caplog) == [("certificate_loaded", fields)]
    assert encryption.pin == pin_of(read_file(installed.own.cert_file))


async def test_files_that_did_not_change_are_not_read_again_unasked(installed: Installed) -> None:
    encryption = Encryption(TlsFiles(own=installed.own))
    before = encryption.context
    assert await encryption.reload(asked=False)
    assert encryption.context is before
    assert await encryption.reload()
    assert encryption.context is not before


@pytest.mark.parametrize("wrong", ["garbage", "half", "expired", "gone", "readable for all"])
async def test_one_that_cannot_be_used_changes_nothing_and_is_told_once(
    installed: Installed, wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    encryption = Encryption(TlsFiles(own=installed.own))
    before = encryption.context
    assert installed.own.key_file is not None
    match wrong:
        case "garbage":
            installed.own.cert_file.write_text("nothing")
        case "half":
            installed.authority.issue().cert_file.replace(installed.own.cert_file)
        case "expired":
            installed.put(installed.authority.issue(from_days=-9, to_days=-1))
        case "gone":
            installed.own.cert_file.unlink()
        case _:
            installed.own.key_file.chmod(0o644)
            installed.own.cert_file.touch()
    for _ in range(3):
        await encryption.reload(asked=False)
    assert encryption.context is before
    ((event, fields),) = told(caplog)
    assert event == "certificate_unusable"
    assert fields["days"] == 59
    assert str(installed.own.cert_file.parent) in fields["problem"]
    installed.put(installed.authority.issue())
    assert await encryption.reload(asked=False)
    assert encryption.context is not before


async def test_the_files_are_looked_after_in_the_background(
    installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "LOOK_SECONDS", 0.02)
    encryption = Encryption(TlsFiles(own=installed.own))
    before = encryption.context
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(encryption.watch())
        installed.put(installed.authority.issue())
        await until(lambda: encryption.context is not before, what="another certificate")
        watching.cancel()


@pytest.mark.parametrize(("to_days", "days"), [(13.5, 13), (0.5, 0), (-0.5, -1)])
async def test_an_end_that_is_near_or_past_is_told_once_a_day(
    installed: Installed,
    to_days: float,
    days: int,
    *,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(tls, "LOOK_SECONDS", 0.001)
    installed.put(installed.authority.issue(to_days=to_days))
    encryption = Encryption(TlsFiles(own=installed.own))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await encryption.watch()
    assert told(caplog) == [("certificate_ends", {"file": str(installed.own.cert_file), "days": days})]


async def test_one_that_lasts_is_not_told_of(installed: Installed, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await Encryption(TlsFiles(own=installed.own)).watch()
    assert told(caplog) == []


async def test_a_disk_that_does_not_answer_leaves_what_is_there(
    installed: Installed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    encryption = Encryption(TlsFiles(own=installed.own))
    monkeypatch.setattr(tls, "READ_SECONDS", 0.0)
    assert not await encryption.reload()
    assert "does not answer" in told(caplog)[0][1]["problem"]


async def test_a_disk_that_hangs_for_long_holds_a_few_threads_and_is_read_again_once_it_answers(
    installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    encryption = Encryption(TlsFiles(own=installed.own))
    answers, looked_at = threading.Event(), tls._stamp
    with monkeypatch.context() as hung:
        hung.setattr(tls, "READ_SECONDS", 0.01)
        hung.setattr(tls, "_stamp", lambda files: (answers.wait(60), looked_at(files))[1])
        assert not any([await encryption.reload(asked=False) for _ in range(3 * MOST_LEFT_BEHIND)])
        holding = [thread for thread in threading.enumerate() if thread.name == "tls-files, left behind"]
        assert len(holding) == MOST_LEFT_BEHIND
        answers.set()
    for thread in holding:
        await asyncio.to_thread(thread.join)
    assert await encryption.reload()


def test_whom_to_ask_for_a_certificate_is_part_of_it(installed: Installed) -> None:
    files = TlsFiles(own=installed.own, client_ca_file=installed.authority.file)
    assert Encryption(files).context.verify_mode is ssl.CERT_REQUIRED
    assert files.files == (*installed.own.files, installed.authority.file)


def test_a_start_without_a_certificate_says_what_to_mend(tmp_path: Path) -> None:
    with pytest.raises(TlsFileError, match="cannot be read"):
        Encryption(TlsFiles(own=OwnCertificate(tmp_path / "absent.pem")))
