import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gpu_agent.cli.client.discovery import OperatorToken, registry_listens
from gpu_agent.cli.client.http import Api
from gpu_agent.cli.command import ExitCode, Failure

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says who listens")
as_root = pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0, reason="only root can be another user"
)
OVERFLOW = 65534
LISTEN = """
import os, socket, sys
os.setuid(int(sys.argv[2]))
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
with socket.create_server((sys.argv[1], 0), family=family) as listener:
    print(listener.getsockname()[1], flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_user_listens(host: str, *, user: int = OVERFLOW) -> Iterator[int]:
    with subprocess.Popen(
        [sys.executable, "-c", LISTEN, host, str(user)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.communicate()


@contextmanager
def we_listen(host: str) -> Iterator[int]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize(
    ("listened", "meant"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "localhost"),
        ("0.0.0.0", "127.0.0.1"),
        ("::1", "[::1]"),
        ("::", "127.0.0.1"),
    ],
)
def test_our_own_registry_is_found_wherever_it_listens(listened: str, meant: str) -> None:
    with we_listen(listened) as port:
        assert registry_listens(f"http://{meant}:{port}", user=os.geteuid())


def test_a_free_port_is_no_registry() -> None:
    with we_listen("127.0.0.1") as port:
        pass
    assert not registry_listens(f"http://127.0.0.1:{port}", user=os.geteuid())


def test_another_address_of_this_machine_is_another_place() -> None:
    with we_listen("127.0.0.2") as port:
        assert not registry_listens(f"http://127.0.0.1:{port}", user=os.geteuid())


@as_root
@pytest.mark.parametrize("listened", ["127.0.0.1", "::1", "0.0.0.0", "::"])
def test_another_user_who_listens_there_is_reported_by_id(listened: str) -> None:
    with another_user_listens(listened) as port, pytest.raises(Failure, match="not sent") as refused:
        registry_listens(f"http://localhost:{port}", user=os.geteuid())
    assert f"(id {OVERFLOW})" in str(refused.value)
    assert refused.value.code is ExitCode.CONFIGURATION


@as_root
def test_the_user_who_left_the_token_may_be_another_than_who_asks() -> None:
    with another_user_listens("127.0.0.1") as port:
        assert registry_listens(f"http://127.0.0.1:{port}", user=OVERFLOW)


@as_root
@pytest.mark.parametrize(("user", "may"), [(61184, True), (65519, True), (61183, False), (1000, False)])
def test_a_systemd_services_file_may_belong_to_the_overflow_user(user: int, *, may: bool) -> None:
    with another_user_listens("127.0.0.1", user=user) as port:
        url = f"http://127.0.0.1:{port}"
        if may:
            assert registry_listens(url, user=OVERFLOW)
        else:
            with pytest.raises(Failure, match="not sent"):
                registry_listens(url, user=OVERFLOW)


@as_root
def test_no_request_is_made_to_another_user_who_listens_there() -> None:
    token = OperatorToken("gpuo_secret", "a file", written_by=os.geteuid())
    with another_user_listens("127.0.0.1") as port, pytest.raises(Failure, match="not sent"):
        Api(f"http://127.0.0.1:{port}", token=token).request("GET", "/v1/nodes")
