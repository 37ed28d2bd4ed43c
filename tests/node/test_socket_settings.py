import grp
import os
from pathlib import Path

import pytest

from gpu_agent.node.settings import load
from gpu_agent.node.socket_place import SocketUnavailableError
from gpu_agent.node.socket_settings import number_of, place_by_systemd
from gpu_agent.runtime.layers import SettingsError

NAMED = {"registry_url": "ws://r"}


def test_a_group_is_found_by_name_or_number() -> None:
    ours = grp.getgrgid(os.getgid())
    assert number_of(ours.gr_name, "socket_group") == ours.gr_gid
    assert number_of("54321", "socket_group") == 54321
    assert number_of(None, "socket_group") is None


def test_a_group_that_is_not_there_is_a_sentence_with_its_setting() -> None:
    with pytest.raises(SocketUnavailableError, match=r"no group 'nobodies-own'.*socket_operators"):
        number_of("nobodies-own", "socket_operators")


@pytest.mark.parametrize("group", ["", "a b", "a\n", "-x"])
def test_what_can_be_no_group_is_refused_with_the_settings(group: str) -> None:
    with pytest.raises(SettingsError, match="a group is a name or a number"):
        load({**NAMED, "socket_group": group})


def test_the_place_of_a_unit_is_taken_unless_another_is_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    assert place_by_systemd() is None
    assert load(NAMED).socket is None
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/gpu-agent:/run/more")
    assert load(NAMED).socket == Path("/run/gpu-agent/agent.sock")
    assert load({**NAMED, "socket": "/x"}).socket == Path("/x")
