import shutil
import ssl
from pathlib import Path

import pytest
from websockets.asyncio.server import ServerConnection

from gpu_agent.node.link import knock
from gpu_agent.node.proxy import Proxy
from gpu_agent.session.events import Connected, ConnectFailed, Disconnected
from tests.connect_proxy import ConnectProxy
from tests.node.a_link import answering, certificate_at, linked, refuse, say_goodbye, served_by


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
async def test_tls_is_spoken_with_registries_whose_certificate_is_trusted_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = certificate_at(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    async with served_by(say_goodbye, ssl=context) as url:
        secure = url.replace("ws://127.0.0.1", "wss://localhost")
        async with linked(secure) as (_, heard):
            failed = await heard.next()
        assert isinstance(failed, ConnectFailed)
        assert "was signed by itself alone" in failed.detail
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        async with linked(secure) as (_, heard):
            assert await heard.next() == Connected()
            assert isinstance(await heard.next(), Disconnected)


async def test_a_link_goes_through_the_proxy_that_it_is_given_encrypted_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = certificate_at(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    async with ConnectProxy(user="me:s3cret") as proxy, served_by(say_goodbye, ssl=context) as url:
        secure = url.replace("ws://127.0.0.1", "wss://localhost")
        async with linked(secure, proxy=Proxy.parse(proxy.url("me:s3cret@"))) as (_, heard):
            assert await heard.next() == Connected()
            assert isinstance(await heard.next(), Disconnected)
        assert [asked.partition(":")[0] for asked in proxy.asked] == ["localhost"]


async def test_the_environment_names_no_proxy_for_a_link(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WS_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "SOCKS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with served_by(say_goodbye) as url, linked(url) as (_, heard):
        assert await heard.next() == Connected()


async def test_a_proxy_that_opens_no_way_fails_the_attempt_by_its_own_name_and_without_a_status() -> None:
    """Its 407 is no word of the registry's about our token."""
    async with ConnectProxy(user="me:s3cret") as proxy:
        wrong = Proxy.parse(proxy.url("me:wrong@"))
        async with linked("ws://registry.invalid:8080/ws/node", "gpun_x", proxy=wrong) as (_, heard):
            failed = await heard.next()
    assert isinstance(failed, ConnectFailed)
    assert failed.http_status is None
    assert f"the proxy http://me:[redacted]@127.0.0.1:{proxy.port} opens no way" in failed.detail


async def test_who_knocks_is_let_in_and_leaves_without_a_word() -> None:
    heard: list[object] = []

    async def listen(connection: ServerConnection) -> None:
        heard.extend([frame async for frame in connection])

    async with served_by(listen) as url:
        answer = await knock(url, "s3cret")
    assert (answer.failure, answer.words, heard) == (None, "", [])
    assert answer.date is not None


async def test_who_knocks_and_is_refused_hears_the_status_and_the_words() -> None:
    async with served_by(refuse, process_request=answering(401)) as url:
        answer = await knock(url, None)
    assert answer.failure is not None
    assert (answer.failure.http_status, answer.words) == (401, "no")


async def test_who_knocks_where_nobody_is_hears_why() -> None:
    answer = await knock("ws://127.0.0.1:9/ws/node", None)
    assert answer.failure is not None
    assert "cannot be reached" in answer.failure.detail
