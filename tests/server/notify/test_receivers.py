"""Receivers on real sockets: they fail, hang, die and come back, and each event arrives, in order."""

import json
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from gpu_agent.registry import alarms
from gpu_agent.registry.actions import Refusal
from gpu_agent.registry.quoting import LONGEST_SENTENCE
from gpu_agent.runtime.tls.contexts import server_context
from gpu_agent.server.health import status_line
from gpu_agent.server.metrics import exposition
from gpu_agent.server.notify import command
from gpu_agent.server.notify import webhook as posting
from gpu_agent.server.notify.settings import ReceiverSettings
from gpu_agent.server.service import RegistryService
from gpu_agent.store.base import Store
from gpu_agent.store.memory import MemoryStore
from gpu_agent.wire.notification import Notification
from tests.alarm_receiver import SECRET, AlarmWebhook, answer, webhook
from tests.authority import Authority
from tests.connect_proxy import ConnectProxy
from tests.server.api_harness import serving
from tests.server.harness import node, running, until

pytestmark = pytest.mark.usefixtures("quick")
EVENTS = ("node_cordoned", "node_uncordoned")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alarms, "FIRST_RETRY_SECONDS", 0.05)
    monkeypatch.setattr(alarms, "MOST_RETRY_SECONDS", 0.2)


@pytest.fixture
async def hook() -> AsyncIterator[AlarmWebhook]:
    async with webhook() as hook:
        yield hook


def to(url: str, **more: object) -> ReceiverSettings:
    return ReceiverSettings.model_validate(
        {"name": "ops", "url": url, "events": EVENTS, "group_seconds": 0, **more}
    )


def private(path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(text)
    return path


@asynccontextmanager
async def alarming(
    *receivers: ReceiverSettings, store: Store | None = None
) -> AsyncIterator[RegistryService]:
    async with running(store=store) as service:
        service.notifier.start(receivers)
        yield service


async def cordon(service: RegistryService, node_id: str, *, times: int = 1) -> list[int]:
    """Let so many wanted events happen; returns their ids."""
    ids = []
    for number in range(times):
        assert not isinstance(await service.cordon(node_id, reason=f"reason {number}"), Refusal)
        ids.append(service.event_log.last_id)
        assert await service.uncordon(node_id) is None
        ids.append(service.event_log.last_id)
    return ids


async def test_each_event_is_a_signed_document_that_names_it(hook: AlarmWebhook, tmp_path: Path) -> None:
    secret = private(tmp_path / "secret", f"{SECRET}\n")
    signed = to(hook.url("/hook?team=a"), secret_file=secret)
    async with alarming(signed) as service, node(service) as peer:
        await peer.register(hostname="rack1-n7")
        ids = await cordon(service, peer.node_id)
        await until(lambda: len(hook.taken) == 2, what="both events arrive")
    first = hook.taken[0]
    assert (first.target, first.headers["content-type"]) == (
        "/hook?team=a",
        "application/json; charset=utf-8",
    )
    assert hook.ids == ids
    assert all(one.is_signed() for one in hook.taken)
    assert not first.is_signed("another secret")
    document = Notification.model_validate(first.document)
    assert (document.receiver, document.delivery_id) == ("ops", f"ops:{ids[0]}-{ids[0]}")
    assert document.delivery_id == first.headers["x-gpu-agent-delivery"]
    assert document.text == document.events[0].text == "rack1-n7: cordoned: reason 0"
    assert document.events[0].event.node_id == peer.node_id


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        (answer("500 Oops"), "127.0.0.1 answers HTTP 500"),
        (answer("429 Slow", "Retry-After: 0"), "127.0.0.1 answers HTTP 429"),
        (
            answer("404 No"),
            "127.0.0.1 answers HTTP 404: it does not know the URL: was the webhook removed there?",
        ),
        (
            answer("302 There", "Location: http://elsewhere/secret"),
            "127.0.0.1 answers HTTP 302 and names another address: write that one",
        ),
        ("hang", "127.0.0.1 did not answer within 0.5 s"),
        ("endless head", "no answer of 127.0.0.1: the head of the answer has no end"),
        ("close", "no answer of 127.0.0.1: the connection was closed"),
        (
            "SSH-2.0-OpenSSH_9.2\r\n",
            "no answer of 127.0.0.1: the answer is no HTTP (Expected HTTP/, RTSP/ or ICE/)",
        ),
    ],
)
async def test_a_receiver_that_fails_gets_every_event_later_and_shows_why_until_then(
    hook: AlarmWebhook,
    fault: str,
    problem: str,
    *,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level("INFO")
    if fault == "hang":
        monkeypatch.setattr(posting, "ATTEMPT_SECONDS", 0.5)
    hook.faults.append(fault)
    async with alarming(to(hook.url("/secret-path"))) as service, node(service) as peer:
        await peer.register()
        ids = await cordon(service, peer.node_id, times=3)
        seen = await until(lambda: service.notifier.views()[0].problem, what="the receiver fails")
        assert seen == problem
        assert status_line(service.health, "here").startswith("no alarms reach ops; ")
        assert service.health.ready
        alarms_check = service.health.readiness()[-1]
        assert (alarms_check.name, alarms_check.ok, alarms_check.detail) == (
            "alarms",
            True,
            "no alarms reach ops",
        )
        await until(lambda: len(hook.ids) >= len(ids), what="each event arrives")
        await until(lambda: not service.notifier.views()[0].waiting, what="nothing waits")
        assert list(dict.fromkeys(hook.ids)) == ids
        (view,) = service.notifier.views()
        assert (view.position, view.waiting, view.failures) == (ids[-1], 0, 0)
        metrics = (await exposition(service.health)).decode()
    assert f'gpu_registry_notify_messages_total{{receiver="ops"}} {len(ids)}.0' in metrics
    if fault != "hang":  # on a busy machine another attempt may take too long
        assert 'gpu_registry_notify_failures_total{receiver="ops"} 1.0' in metrics
    names = [one.message for one in caplog.records if one.message.startswith("notify")]
    assert names == ["notify_failed", "notify_recovered"]
    assert "secret" not in caplog.text


async def test_a_test_message_that_is_taken_sends_at_once_what_waits(
    hook: AlarmWebhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alarms, "MOST_RETRY_SECONDS", 3600.0)
    hook.faults.append(answer("404 No"))
    async with alarming(to(hook.url())) as service, node(service) as peer:
        await peer.register()
        ids = await cordon(service, peer.node_id)
        await until(lambda: service.notifier.views()[0].problem, what="the receiver fails")
        tried = await service.notifier.test("ops")
        assert tried is not None
        assert tried.delivered
        await until(lambda: hook.ids == ids, what="what waited arrives")


async def test_a_message_that_comes_late_says_what_the_node_is_by_now() -> None:
    async with webhook() as hook:
        pass  # its port, and nobody listens there
    receiver = to(hook.url(), events=["node_status_changed:registering"])
    async with alarming(receiver) as service, node(service) as peer:
        await peer.register(hostname="rack1-n7")
        await until(lambda: service.notifier.views()[0].problem, what="the receiver fails")
        assert await service.remove(peer.node_id) is None
        async with webhook(known=hook):
            await until(lambda: hook.taken, what="it is back")
    (shown,) = Notification.model_validate(hook.taken[0].document).events
    assert shown.text == "rack1-n7: new → registering: registered (by now removed)"
    assert shown.status_now is None


async def test_an_endless_answer_is_an_answer(hook: AlarmWebhook) -> None:
    hook.faults.extend(["endless"] * 2)
    async with alarming(to(hook.url())) as service, node(service) as peer:
        await peer.register()
        ids = await cordon(service, peer.node_id)
        await until(lambda: service.notifier.views()[0].position == ids[-1], what="both are delivered")
    assert hook.ids == ids


async def test_a_receiver_that_was_dead_gets_all_that_happened_in_one_message_where_it_groups() -> None:
    async with webhook() as hook:
        pass  # its port, and nobody listens there
    receiver = to(hook.url(), group_seconds=0.5)
    async with alarming(receiver) as service, node(service) as peer:
        await peer.register()
        ids = await cordon(service, peer.node_id, times=10)
        await until(lambda: service.notifier.views()[0].failures > 1, what="it is tried again")
        async with webhook(known=hook):
            await until(lambda: hook.ids, what="it is back")
            await until(lambda: service.notifier.views()[0].waiting == 0, what="nothing waits")
    assert hook.ids == ids
    assert len(hook.taken) == 1
    assert hook.taken[0].document["text"].startswith("20 events of 1 node, the first: ")


async def test_a_registry_that_starts_again_goes_on_behind_what_was_delivered(hook: AlarmWebhook) -> None:
    store = _Kept()
    async with alarming(to(hook.url()), store=store) as service, node(service) as peer:
        await peer.register()
        ids = await cordon(service, peer.node_id)
        await until(lambda: service.notifier.views()[0].position == ids[-1], what="both are delivered")
        await service.settled()
    async with alarming(store=store) as service:  # it has no receivers for a while
        ids += await cordon(service, peer.node_id)
    async with alarming(to(hook.url()), store=store) as service:
        ids += await cordon(service, peer.node_id)
        await until(lambda: service.notifier.views()[0].position == ids[-1], what="all are delivered")
    assert hook.ids == ids


async def test_under_another_name_a_receiver_begins_with_what_comes(hook: AlarmWebhook) -> None:
    async with alarming() as service, node(service) as peer:
        await peer.register()
        await cordon(service, peer.node_id)
        service.notifier.start((to(hook.url(), name="new"),))
        ids = await cordon(service, peer.node_id)
        await until(lambda: len(hook.ids) == 2, what="the new events arrive")
        assert hook.ids == ids


async def test_settings_that_change_take_effect_and_lose_no_event(hook: AlarmWebhook) -> None:
    async with webhook() as second, alarming(to(hook.url())) as service, node(service) as peer:
        await peer.register()
        hook.faults.extend(["hang"] * 100)
        ids = await cordon(service, peer.node_id)
        await until(lambda: hook.requests, what="the first message is on its way")
        service.notifier.start((to(second.url()),))
        ids += await cordon(service, peer.node_id)
        await until(lambda: len(second.ids) == len(ids), what="all arrive at the second")
        assert second.ids == ids


async def test_a_receiver_that_wants_more_from_now_on_gets_nothing_of_before(hook: AlarmWebhook) -> None:
    store = _Kept()
    async with alarming(to(hook.url(), events=["claim_lost"]), store=store) as service, node(service) as peer:
        await peer.register()
        await cordon(service, peer.node_id)
        last = service.event_log.last_id
        await until(lambda: service.notifier.views()[0].position == last, what="all were looked at")
        service.notifier.start((to(hook.url()),))
        ids = await cordon(service, peer.node_id)
        await until(lambda: hook.ids == ids, what="what came then")
        service.notifier.start((to(hook.url(), events=["claim_lost"]),))
        await cordon(service, peer.node_id)
        last = service.event_log.last_id
        await until(lambda: service.notifier.views()[0].position == last, what="all were looked at")
    async with alarming(to(hook.url()), store=store) as service:
        await until(lambda: service.notifier.views()[0].position >= last, what="nothing of before is left")
    assert hook.ids == ids


async def test_only_nodes_of_the_receiver_with_its_labels_and_events(hook: AlarmWebhook) -> None:
    wants = to(hook.url(), hostnames=["rack1-*"], labels={"zone": "a"}, events=["node_c*"])
    async with alarming(wants) as service:
        for hostname, zone in (("rack1-a", "b"), ("rack2-a", "a"), ("rack1-b", "a")):
            async with node(service) as peer:
                await peer.register(hostname=hostname, labels={"zone": zone})
                await cordon(service, peer.node_id)
        await until(lambda: hook.taken, what="one arrives")
        position = service.event_log.last_id
        await until(lambda: service.notifier.views()[0].position == position, what="all were looked at")
    assert [one.document["text"] for one in hook.taken] == ["rack1-b: cordoned: reason 0"]


async def test_a_webhook_with_tls_is_believed_by_its_authority_alone(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with webhook(tls=server_context(authority.issue())) as hook:
        url = hook.url(scheme="https")
        async with alarming(to(url), to(url, name="knows", ca_file=authority.file)) as service:
            known = await service.notifier.test("knows")
            unknown = await service.notifier.test("ops")
    assert known is not None
    assert known.delivered
    assert unknown is not None
    assert (unknown.problem or "").startswith("the certificate of 127.0.0.1 is not trusted")


async def test_messages_pass_the_proxy_that_the_receiver_names_and_show_its_password_to_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority(tmp_path)
    async with (
        webhook(tls=server_context(authority.issue("hooks.example"))) as hook,
        ConnectProxy(user="me:pass word", to="127.0.0.1") as proxy,
    ):
        url = f"https://hooks.example:{hook.port}/hook"
        file = private(tmp_path / "proxy", proxy.url("me:pass%20word@"))
        knows = to(url, ca_file=authority.file, proxy_file=file)
        unknown = to(url, name="unknown", ca_file=authority.file, proxy=proxy.url())
        async with alarming(knows, unknown) as service, node(service) as peer, serving(service) as api:
            await peer.register()
            ids = await cordon(service, peer.node_id)
            await until(lambda: hook.ids == ids, what="the messages arrive through the proxy")
            await until(lambda: service.notifier.views()[1].problem, what="the proxy refuses the other")
            file.write_text(proxy.url("me:wrong%20word@"))
            wrong = await service.notifier.test("ops")
            shown = (await api.get("/v1/receivers")).text + caplog.text
    assert set(proxy.asked) == {f"hooks.example:{hook.port}"}
    assert wrong is not None
    assert f"the proxy http://me:[redacted]@127.0.0.1:{proxy.port} opens no tunnel" in (wrong.problem or "")
    assert "it asks for a user and a password" in shown
    assert "word" not in shown.replace("password", "").replace("PASSWORD", "")


async def test_a_proxy_carries_no_message_that_it_could_read(hook: AlarmWebhook, tmp_path: Path) -> None:
    async with ConnectProxy() as proxy:
        file = private(tmp_path / "url", hook.url())
        receiver = ReceiverSettings(name="ops", url_file=file, proxy=proxy.url())
        async with alarming(receiver) as service:
            refused = await service.notifier.test("ops")
    assert refused is not None
    assert "only encrypted messages" in (refused.problem or "")
    assert not proxy.asked


async def test_a_command_reads_the_message_and_nothing_of_our_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPU_REGISTRY_TOKEN", "gpuo_secret")
    got = tmp_path / "got"
    script = f"cat > {got}.part; env > {tmp_path}/env; mv {got}.part {got}"
    receiver = ReceiverSettings(name="ops", command=("sh", "-c", script), events=EVENTS, group_seconds=0.5)
    async with alarming(receiver) as service, node(service) as peer:
        await peer.register()
        ids = await cordon(service, peer.node_id)
        await until(got.exists, what="the command has run")
    assert json.loads(got.read_text())["event_ids"] == ids
    assert "GPU_REGISTRY" not in (tmp_path / "env").read_text()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("false",), "the command false failed with exit status 1"),
        (("/nonexistent/x",), "the command /nonexistent/x cannot be started (No such file or directory)"),
        (("sh", "-c", "sleep 60 & wait"), "the command sh did not end within 0.5 s"),
    ],
)
async def test_a_command_that_fails_says_how(
    words: tuple[str, ...], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "sleep" in words[-1]:
        monkeypatch.setattr(command, "COMMAND_SECONDS", 0.5)
    async with alarming(ReceiverSettings(name="ops", command=words)) as service:
        outcome = await service.notifier.test("ops")
    assert outcome is not None
    assert (outcome.delivered, outcome.problem) == (False, problem)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo first; echo 'no route to pager' >&2; echo; exit 3", "no route to pager"),
        ("printf 'a\\033[31mb\\n'; exit 1", "a\N{REPLACEMENT CHARACTER}[31mb"),
        ("yes | head -c 300000; printf '%02000d' 7; exit 1", None),
        ("exit 1", ""),
        ("(sleep 5 &) ; echo gone; exit 1", "gone"),
    ],
)
async def test_the_last_line_of_a_command_that_fails_is_in_the_log_alone(
    script: str, said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    receiver = ReceiverSettings(name="ops", command=("sh", "-c", script), events=EVENTS, group_seconds=0)
    async with alarming(receiver) as service, node(service) as peer:
        await peer.register()
        await cordon(service, peer.node_id)
        await until(lambda: service.notifier.views()[0].problem, what="the command fails")
        (view,) = service.notifier.views()
    (failed,) = [one for one in caplog.records if one.message == "notify_failed"]
    output = str(failed.__dict__["fields"].get("output", ""))
    if said is None:
        assert len(output) <= LONGEST_SENTENCE + 1
        assert output.startswith("0000")
    else:
        assert output == said
    assert view.problem in {f"the command sh failed with exit status {code}" for code in (1, 3)}


async def test_a_secret_that_others_may_read_is_not_used(hook: AlarmWebhook, tmp_path: Path) -> None:
    file = private(tmp_path / "slack.url", hook.url("/services/T0/B0/secret"))
    receiver = ReceiverSettings(name="ops", url_file=file, format="slack")
    async with alarming(receiver) as service:
        file.chmod(file.stat().st_mode | stat.S_IROTH)
        refused = await service.notifier.test("ops")
        file.chmod(0o600)
        taken = await service.notifier.test("ops")
    assert refused is not None
    assert "chmod o-rwx" in (refused.problem or "")
    assert taken is not None
    assert taken.delivered
    assert hook.taken[0].target == "/services/T0/B0/secret"
    assert hook.taken[0].document["text"].startswith("this is a test")


async def test_a_thousand_events_that_wait_cost_no_more_than_their_bound(
    hook: AlarmWebhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alarms, "MOST_WAITING", 20)
    hook.faults.append(answer("500 Oops"))
    async with alarming(to(hook.url(), group_seconds=0.3)) as service, node(service) as peer:
        await peer.register()
        ids = await cordon(service, peer.node_id, times=20)
        await until(lambda: hook.taken, what="it takes a message")
        await until(lambda: service.notifier.views()[0].position == ids[-1], what="nothing waits")
    names = [one["event"]["event"] for request in hook.taken for one in request.document["events"]]
    missed = sum(
        one["event"]["fields"]["count"]
        for request in hook.taken
        for one in request.document["events"]
        if one["event"]["event"] == "events_missed"
    )
    assert names[0] == "events_missed"
    assert missed + len(hook.ids) == len(ids)
    assert hook.ids[-1] == ids[-1]


async def test_the_api_lists_receivers_and_tries_one(hook: AlarmWebhook) -> None:
    async with (
        alarming(to(hook.url("/secret"))) as service,
        serving(service) as api,
    ):
        listed = (await api.get("/v1/receivers")).json()["receivers"]
        assert [(one["name"], one["format"], one["target"], one["state"]) for one in listed] == [
            ("ops", "json", f"http://127.0.0.1:{hook.port}", "idle")
        ]
        tried = await api.post("/v1/receivers/ops/test", json={})
        assert tried.json()["delivered"] is True
        assert hook.taken[0].document["test"] is True
        absent: httpx.Response = await api.post("/v1/receivers/other/test", json={})
        assert (absent.status_code, absent.json()["code"]) == (404, "UNKNOWN_RECEIVER")


class _Kept(MemoryStore):
    """A store that outlives its registry."""

    def close(self) -> None:
        """Stay open."""
