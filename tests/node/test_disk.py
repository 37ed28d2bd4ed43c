import threading
from pathlib import Path

import pytest

from gpu_agent.node.disk import DISK_SECONDS, bounded, keep, load
from gpu_agent.node.identity import FILE, IdentityError, hold
from gpu_agent.session.actions import ForgetIdentity, SaveIdentity


async def test_an_identity_is_kept_and_read_again(tmp_path: Path) -> None:
    with hold(tmp_path) as identity:
        load(identity)
        await keep(identity, SaveIdentity("node-1", "gpun_token"))
    with hold(tmp_path) as identity:
        load(identity)
        assert (identity.identity.node_id, identity.identity.node_token) == ("node-1", "gpun_token")


async def test_a_forgotten_identity_leaves_a_copy_that_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "gpu_agent")
    with hold(tmp_path) as identity:
        load(identity)
        await keep(identity, SaveIdentity("node-1", None))
        await keep(identity, ForgetIdentity("node-1"))
        assert identity.identity.node_id is None
    assert "identity_forgotten" in caplog.messages
    (record,) = [one for one in caplog.records if one.getMessage() == "identity_forgotten"]
    assert record.__dict__["fields"]["kept_as"] == str(tmp_path / f"{FILE}.conflict-1")


def test_an_identity_that_cannot_be_read_is_told_of_and_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).write_text("{")
    with hold(tmp_path) as identity:
        load(identity)
        assert identity.identity.node_id is None
    assert "identity_corrupt" in caplog.messages


async def test_what_the_disk_answers_is_handed_on() -> None:
    assert await bounded("identity", lambda: 7) == 7


async def test_a_disk_that_fails_is_told_of_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def full() -> int:
        raise IdentityError("no space left on the device")

    assert await bounded("identity", full) is None
    (record,) = [one for one in caplog.records if one.getMessage() == "disk_failed"]
    assert record.__dict__["fields"] == {"what": "identity", "problem": "no space left on the device"}


async def test_a_disk_that_hangs_holds_the_agent_up_for_so_long_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    free = threading.Event()
    assert await bounded("identity", free.wait) is None
    free.set()
    (record,) = [one for one in caplog.records if one.getMessage() == "disk_failed"]
    assert record.__dict__["fields"]["problem"] == f"no answer within {DISK_SECONDS:g} s"
