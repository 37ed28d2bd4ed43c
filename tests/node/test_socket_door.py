from pathlib import Path

import pytest

from gpu_agent.node.settings import AgentSettings, load
from gpu_agent.node.socket.peer import own_uid
from gpu_agent.node.socket_door import opened
from tests.node.an_agent import reachable_folder
from tests.node.another_user import needs_root


def settings(**more: object) -> AgentSettings:
    return load({"registry_url": "ws://r", **more})


def test_it_stands_with_the_state_where_no_other_place_is_stated(tmp_path: Path) -> None:
    with opened(settings(), tmp_path) as door:
        assert door is not None
        assert door.house.uid == own_uid()
        assert door.house.group == (tmp_path / "agent.sock").lstat().st_gid
    with opened(settings(socket=str(tmp_path / "other")), tmp_path):
        assert [path.name for path in tmp_path.iterdir() if path.is_socket()] == ["other"]


@pytest.mark.parametrize(
    ("more", "why"), [({}, "is no socket"), ({"socket_group": "nobodies-own"}, "there is no group")]
)
def test_without_a_socket_the_agent_goes_on_and_says_why(
    more: dict[str, object], why: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "agent.sock").write_text("in the way")
    with opened(settings(**more), tmp_path) as door:
        assert door is None
    (said,) = [record for record in caplog.records if record.message == "local_socket_unavailable"]
    assert why in said.fields["problem"]  # type: ignore[attr-defined]  # our own
    assert (tmp_path / "agent.sock").read_text() == "in the way"


@needs_root
def test_a_group_that_cannot_get_to_the_socket_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def told() -> list[str]:
        return [record.message for record in caplog.records]

    with reachable_folder() as folder:
        with opened(settings(socket_group="54321", socket=str(folder / "s")), tmp_path):
            assert "local_socket_out_of_reach" not in told()
        shut = folder / "shut"
        shut.mkdir(mode=0o700)
        with opened(settings(socket=str(shut / "s")), tmp_path):
            assert "local_socket_out_of_reach" not in told()
        with opened(settings(socket_group="54321", socket=str(shut / "s")), tmp_path):
            assert "local_socket_out_of_reach" in told()
    (said,) = [record for record in caplog.records if record.message == "local_socket_out_of_reach"]
    assert f"may not enter {shut}" in said.fields["problem"]  # type: ignore[attr-defined]  # our own
