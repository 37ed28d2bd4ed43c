import socket
import time
from email.utils import formatdate

import pytest

from gpu_agent.node.proxy import Proxy
from gpu_agent.node.rehearsal import STEPS
from gpu_agent.runtime.findings import Finding, Verdict
from gpu_agent.server.tokens import NewToken
from tests.connect_proxy import REFUSED, ConnectProxy
from tests.node.walking import NOBODYS, answering, walked
from tests.programs import free_port
from tests.server.harness import node, running, url


async def test_a_join_token_that_a_registry_knows_is_accepted_and_not_spent() -> None:
    async with running(auth_on=True) as service:
        made = await service.tokens.create_join(uses=1)
        assert isinstance(made, NewToken)
        found = await walked(url(service), join=made.token)
        assert found["credential"] == Finding("credential", Verdict.OK, "the join token is accepted")
        assert [found[name].verdict for name in ("DNS", "TCP", "WebSocket", "clock")] == [Verdict.OK] * 4
        assert found["TLS"].verdict is Verdict.SKIPPED
        async with node(service, token=made.token) as first:
            await first.become_ready()
        assert len(list(service.nodes())) == 1


async def test_a_node_token_goes_first_and_a_refused_one_is_told_of() -> None:
    async with running(auth_on=True) as service:
        made = await service.tokens.create_join(uses=None)
        assert isinstance(made, NewToken)
        async with node(service, token=made.token) as first:
            own = (await first.register())["node_token"]
        found = await walked(url(service), node=own, join=made.token)
        assert found["credential"].detail == "the node token is accepted"
        found = await walked(url(service), node=NOBODYS, join=made.token)
    assert found["credential"].verdict is Verdict.WARN
    assert "the join token is accepted; the node token is refused" in found["credential"].detail


async def test_a_token_that_nobody_knows_fails_in_the_registrys_own_words() -> None:
    async with running(auth_on=True) as service:
        found = await walked(url(service), join=NOBODYS)
    assert found["credential"].verdict is Verdict.FAIL
    assert "does not know that token" in found["credential"].detail
    assert "ask" not in found["credential"].detail, "the advice stands once, as what mends it"
    assert "/etc/gpu-agent/join-token" in (found["credential"].mend or "")
    assert NOBODYS not in repr(found)
    assert found["clock"].verdict is Verdict.OK


async def test_where_a_token_is_asked_for_and_there_is_none_the_way_to_one_is_told() -> None:
    async with running(auth_on=True) as service:
        found = await walked(url(service))
    assert found["credential"].verdict is Verdict.FAIL
    assert "gpu-agent registry token create" in (found["credential"].mend or "")


async def test_a_registry_that_asks_for_no_token_is_told_of_and_shown_none() -> None:
    async with running() as service:
        found = await walked(url(service), join=NOBODYS)
    assert found["credential"].verdict is Verdict.WARN
    assert "auth is off" in found["credential"].detail


async def test_a_name_that_nobody_has_ends_the_way_and_the_rest_says_why() -> None:
    found = await walked("ws://no-such-host.invalid:8080/ws/node")
    assert found["DNS"].verdict is Verdict.FAIL
    assert "no-such-host.invalid cannot be looked up" in found["DNS"].detail
    assert {found[name].detail for name in STEPS[1:]} == {"not tried, since DNS failed"}


async def test_a_closed_port_is_told_with_what_may_be_behind_it() -> None:
    found = await walked(f"ws://127.0.0.1:{free_port()}/ws/node")
    assert "(Connection refused)" in found["TCP"].detail
    assert found["DNS"].detail == "127.0.0.1 is an address already"
    assert found["WebSocket"].detail == "not tried, since TCP failed"


async def test_a_host_that_does_not_answer_costs_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpu_agent.node.reaching.CONNECT_SECONDS", 0.05)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        held = [socket.socket() for _ in range(4)]
        for one in held:
            one.setblocking(False)  # noqa: FBT003 - the socket module's own signature
            one.connect_ex(address)
        found = await walked(f"ws://127.0.0.1:{address[1]}/ws/node")
        for one in held:
            one.close()
    assert "no answer" in found["TCP"].detail


async def test_what_is_no_registry_fails_at_the_handshake() -> None:
    async with answering("404 Not Found") as port:
        found = await walked(f"ws://127.0.0.1:{port}/elsewhere")
    assert found["WebSocket"].verdict is Verdict.FAIL
    assert "HTTP 404" in found["WebSocket"].detail
    assert "/ws/node" in (found["WebSocket"].mend or "")


async def test_a_registry_that_is_full_is_waited_for_and_shown_no_token() -> None:
    async with answering("503 Service Unavailable", Retry_After="7") as port:
        found = await walked(f"ws://127.0.0.1:{port}/ws/node", join=NOBODYS)
    assert found["WebSocket"].verdict is Verdict.WARN
    assert "come again in 7 s" in found["WebSocket"].detail
    assert found["credential"].verdict is Verdict.SKIPPED


@pytest.mark.parametrize(("seconds", "side"), [(-90, "ahead of"), (90, "behind")])
async def test_a_clock_that_is_wrong_is_told_by_how_much(seconds: float, side: str) -> None:
    async with answering("401 Unauthorized", Date=formatdate(time.time() + seconds, usegmt=True)) as port:
        found = await walked(f"ws://127.0.0.1:{port}/ws/node")
    assert found["clock"].verdict is Verdict.WARN
    assert side in found["clock"].detail


async def test_an_answer_without_a_time_says_nothing_of_clocks() -> None:
    async with answering("401 Unauthorized") as port:
        found = await walked(f"ws://127.0.0.1:{port}/ws/node")
    assert found["clock"].verdict is Verdict.SKIPPED


async def test_a_proxy_that_is_away_is_told_of_as_such() -> None:
    found = await walked("ws://registry.invalid/ws/node", Proxy("127.0.0.1", free_port()))
    assert found["TCP"].verdict is Verdict.FAIL
    assert "the proxy http://127.0.0.1:" in found["TCP"].detail


@pytest.mark.parametrize(("scheme", "step"), [("wss", "TLS"), ("ws", "WebSocket")])
async def test_a_proxy_that_opens_no_way_is_what_is_to_be_mended(scheme: str, step: str) -> None:
    async with ConnectProxy(answer=REFUSED) as proxy:
        found = await walked(f"{scheme}://registry.invalid/ws/node", Proxy.parse(proxy.url()))
    assert found[step].verdict is Verdict.FAIL
    assert f"the proxy http://127.0.0.1:{proxy.port} opens no way" in found[step].detail
