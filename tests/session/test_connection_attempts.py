from dataclasses import replace
from typing import Any

import pytest

from gpu_agent.session.backoff import Backoff, ConnectionAttempts
from gpu_agent.session.errors import Outcome, SessionEnd
from gpu_agent.session.types import (
    Connect,
    Connected,
    ConnectFailed,
    Credential,
    Declared,
    Disconnect,
    Disconnected,
    Event,
    Exit,
    IllegalEventError,
    Send,
    SessionSettings,
    Started,
    State,
    StopRequested,
)
from gpu_agent.wire.messages import GpuDeclaration, Hardware, NodeError
from tests.playbook import After
from tests.session.harness import (
    ACK,
    ADDRESS,
    CONNECT,
    WITH_GPU,
    WITHOUT_GPU,
    Play,
    awaiting,
    connecting,
    logged,
    play,
    ready,
    received,
    registered,
)

REFUSED = ConnectFailed("connection refused")


def test_a_fleet_does_not_arrive_as_one_the_start_is_jittered() -> None:
    started = play(SessionSettings(startup_jitter_seconds=4), dice=0.5)
    assert started >> Declared(WITH_GPU) >> Started() >> After(1.9) >> After(0.1) << CONNECT


def test_a1_without_a_gpu_nothing_connects() -> None:
    started = play()
    assert started >> Started() >> After(60)
    assert started.machine.snapshot.last_refusal == "not probed yet"
    assert started >> Declared(WITHOUT_GPU) >> Declared(WITHOUT_GPU) >> After(3600)
    assert started.machine.state is State.WAITING_GPU
    assert started.machine.snapshot.last_refusal == "no usable GPU to declare"
    assert logged(started) == ["waiting_for_gpu", "waiting_for_gpu"]


def test_a1_a_gpu_that_appears_later_registers_then() -> None:
    started = play()
    assert started >> Declared(WITHOUT_GPU) >> Started() >> After(3600)
    assert started >> Declared(WITH_GPU) << CONNECT
    assert started >> Connected() << Send


def test_a1_gpus_that_vanish_while_connecting_are_not_registered() -> None:
    opening = connecting()
    assert opening >> Declared(WITHOUT_GPU) >> Connected() << Disconnect
    assert opening.machine.state is State.WAITING_GPU


def test_a1_gpus_that_vanish_while_backing_off_wait_for_their_return() -> None:
    waiting = connecting()
    assert waiting >> REFUSED >> Declared(WITHOUT_GPU) >> After(10)
    assert waiting.machine.state is State.WAITING_GPU


def test_other_gpus_declared_meanwhile_are_tried_at_once_after_a_refusal() -> None:
    asked = awaiting()
    other = Hardware(cpu_cores=8, memory_gb=64, gpus=(GpuDeclaration(name="H100", memory_gb=80),))
    assert asked >> Declared(replace(WITH_GPU, hardware=other))
    assert asked >> received(NodeError(code="GPU_REQUIRED")) << Disconnect << CONNECT


def test_failures_back_off_by_doubling_to_the_ceiling() -> None:
    failing, delays = connecting(), []
    for _ in range(9):
        assert failing >> REFUSED
        assert failing.machine.deadline is not None
        delays.append(failing.machine.deadline - failing.now)
        assert failing >> After(delays[-1]) << CONNECT
    assert delays == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_a_lost_connection_backs_off_and_attaches_again_with_its_id() -> None:
    lost = ready()
    assert lost >> Disconnected(1006, "reset by peer") >> After(0.5) << CONNECT
    assert lost >> Connected() << (lambda action: action.message.node_id == "node-A")
    assert lost.machine.snapshot.last_refusal == "connection closed (1006): reset by peer"


def test_a_session_that_lasted_resets_the_backoff_and_a_short_one_does_not() -> None:
    for lasting, delay in ((121.0, 0.5), (30.0, 1.0)):
        session = connecting()
        assert session >> REFUSED >> After(0.5) << CONNECT >> Connected() << Send
        session >> received(ACK)
        session.pending.clear()
        session >> After(lasting)
        session.pending.clear()
        assert session >> Disconnected(1001, "")
        assert session.machine.deadline == session.now + delay


def test_401_for_a_node_token_tries_the_join_token_once_then_waits_at_the_ceiling() -> None:
    refused = connecting(node_id="node-A", has_token=True)
    answer = ConnectFailed("HTTP 401", http_status=401)
    assert refused >> answer << Connect(Credential.JOIN, address=ADDRESS)
    assert refused >> answer
    assert refused.machine.deadline == refused.now + 60
    assert "join token" in (refused.machine.snapshot.last_refusal or "")
    assert refused >> After(60) << CONNECT


def test_a_join_token_that_is_let_in_suggests_the_known_id() -> None:
    refused = connecting(node_id="node-A", has_token=True)
    assert refused >> ConnectFailed("HTTP 401", http_status=401) << Connect(Credential.JOIN, address=ADDRESS)
    assert refused >> Connected() << (lambda action: action.message.node_id == "node-A")


@pytest.mark.parametrize("failure", [{"http_status": 401}, {"http_status": 403}, {"lasting": True}])
def test_what_only_a_person_can_fix_waits_around_the_ceiling(failure: dict[str, Any]) -> None:
    refused = connecting()
    assert refused >> ConnectFailed("no", **failure)
    assert refused.machine.deadline == refused.now + 60


def test_a_full_registry_is_tried_again_no_sooner_than_it_asked() -> None:
    refused = connecting()
    assert refused >> ConnectFailed("HTTP 503", http_status=503, retry_after_seconds=20)
    assert refused.machine.deadline == refused.now + 20.5


def test_a_stop_without_a_connection_just_exits() -> None:
    assert play() >> StopRequested("bye") << Exit("bye")
    assert connecting() >> REFUSED >> StopRequested("bye", drain=True) << Exit("bye")


def test_a_stop_while_connecting_gives_the_attempt_up() -> None:
    assert connecting() >> StopRequested("bye") << Disconnect << Exit("bye")


def test_after_the_exit_nothing_matters_any_more() -> None:
    stopped = play()
    assert stopped >> StopRequested("bye") << Exit
    assert stopped >> StopRequested("bye") >> Declared(WITH_GPU) >> After(60)
    assert stopped.machine.state is State.STOPPED


def test_models_left_out_of_the_frame_are_noted_once_and_viewed() -> None:
    full = replace(WITH_GPU, left_out=("big-model",))
    started = play()
    assert started >> Declared(full) >> Declared(full)
    assert logged(started) == ["models_left_out"]
    assert started.machine.snapshot.models_left_out == ("big-model",)


@pytest.mark.parametrize(
    ("session", "event"),
    [
        (play(), Connected()),
        (play(), Disconnected(1000, "")),
        (connecting(), Started()),
        (connecting(), received(ACK)),
        (registered(), Connected()),
        (registered(), REFUSED),
    ],
)
def test_an_event_that_the_shell_must_not_send_raises_and_changes_nothing(
    session: Play, event: Event
) -> None:
    machine = session.machine
    before = machine.snapshot
    with pytest.raises(IllegalEventError, match="cannot happen now"):
        machine.handle(event, 100.0)
    assert machine.snapshot == before


def test_an_illegal_event_shows_the_last_transitions() -> None:
    with pytest.raises(IllegalEventError, match="connecting → awaiting_ack: connected"):
        registered().machine.handle(Started(), 100.0)


_REFUSED = ConnectFailed("HTTP 401", http_status=401)
_FAILED = SessionEnd(Outcome.RETRY, "no")


def _attempts(*, has_token: bool = False) -> ConnectionAttempts:
    return ConnectionAttempts(SessionSettings(), addresses=(ADDRESS,), has_token=has_token, draw=lambda: 1.0)


def test_the_startup_delay_is_a_random_part_of_its_bound() -> None:
    assert _attempts().startup_delay() == 1.0


def test_only_a_refused_node_token_falls_back_to_the_join_token() -> None:
    assert not _attempts().fall_back_to_join_token(_REFUSED)
    attempts = _attempts(has_token=True)
    assert not attempts.fall_back_to_join_token(ConnectFailed("HTTP 403", http_status=403))
    assert attempts.fall_back_to_join_token(_REFUSED)
    assert attempts.credential is Credential.JOIN
    assert not attempts.fall_back_to_join_token(_REFUSED)


def test_after_a_wait_the_best_credential_is_tried_again() -> None:
    attempts = _attempts(has_token=True)
    attempts.fall_back_to_join_token(_REFUSED)
    attempts.next_delay(_FAILED, 0.0)
    assert attempts.credential is Credential.BEST


def test_a_refused_credential_is_explained_with_the_next_step() -> None:
    why, blamed = _attempts().explain(_REFUSED, None)
    assert blamed
    assert "ask its operator for a join token" in why
    assert _attempts().explain(ConnectFailed("no route to host"), None) == ("no route to host", False)
    assert _attempts().explain(ConnectFailed("a file", lasting=True), None) == ("a file", True)


def test_a_node_whose_tokens_are_refused_names_the_command_that_keeps_its_id() -> None:
    attempts = _attempts(has_token=True)
    attempts.fall_back_to_join_token(_REFUSED)
    for failure in (_REFUSED, ConnectFailed("HTTP 403", http_status=403)):
        assert "`gpu-agent registry node readmit node-7`" in attempts.explain(failure, "node-7")[0]


def test_only_two_minutes_of_being_registered_reset_the_delays() -> None:
    attempts = _attempts()
    attempts.next_delay(_FAILED, 0)
    attempts.registered(0, new_token=False)
    assert attempts.next_delay(_FAILED, 119.9) == 2
    attempts.registered(200, new_token=False)
    assert attempts.next_delay(_FAILED, 320) == 1


def test_an_open_socket_that_was_never_acknowledged_proves_nothing() -> None:
    attempts = _attempts()
    attempts.registered(0, new_token=False)
    attempts.connected()
    attempts.next_delay(_FAILED, 500)
    assert attempts.next_delay(_FAILED, 1000) == 2


def test_a_new_token_can_fall_back_later() -> None:
    attempts = _attempts()
    attempts.registered(0, new_token=True)
    assert attempts.fall_back_to_join_token(_REFUSED)


def test_an_absurd_retry_after_is_clamped_to_an_hour() -> None:
    assert _attempts().next_delay(SessionEnd(Outcome.RETRY, "", 1e300), 0) == 3601


def _backoff(dice: float) -> Backoff:
    return Backoff(first_seconds=1, ceiling_seconds=60, draw=lambda: dice)


def test_delays_double_from_the_first_to_the_ceiling() -> None:
    backoff = _backoff(1.0)
    assert [backoff.next_delay() for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]


def test_the_jitter_is_full_from_nothing_to_the_bound() -> None:
    assert _backoff(0.0).next_delay() == 0
    assert _backoff(0.25).next_delay() == 0.25


def test_what_a_peer_asked_for_is_the_least_and_the_jitter_spreads_above_it() -> None:
    assert _backoff(0.5).next_delay(at_least=30) == 30.5


def test_after_many_refusals_a_peer_that_names_a_time_is_not_kept_waiting_a_minute_more() -> None:
    """A registry under load gives each peer a time of its own: a minute of jitter on top would undo that."""
    backoff = _backoff(1.0)
    assert [backoff.next_delay(at_least=5) for _ in range(6)] == [6, 7, 9, 13, 21, 21]
    assert backoff.next_delay() == 60


def test_a_million_failures_overflow_nothing() -> None:
    backoff = _backoff(1.0)
    for _ in range(1_000_000):
        backoff.next_delay()
    assert backoff.next_delay() == 60


def test_a_reset_starts_from_the_first_delay() -> None:
    backoff = _backoff(1.0)
    backoff.next_delay()
    backoff.next_delay()
    backoff.reset()
    assert backoff.next_delay() == 1


@pytest.mark.parametrize(("dice", "delay"), [(0.0, 45), (0.5, 60), (1.0, 75)])
def test_at_the_ceiling_the_jitter_lies_around_it(dice: float, delay: float) -> None:
    assert _backoff(dice).delay_at_ceiling() == delay
    assert _backoff(dice).delay_at_ceiling(at_least=300) == 300


def test_the_defaults_are_the_protocol_s() -> None:
    settings = SessionSettings()
    assert settings.ack_timeout_seconds == 10
    assert (settings.heartbeat_interval_seconds, settings.warmup_interval_seconds) == (15, 2)
    assert settings.fallback_interval_seconds == 10
    assert settings.drain_deadline_seconds == 600


def test_backoff_runs_from_one_second_to_one_minute_and_resets_after_two() -> None:
    settings = SessionSettings()
    assert (settings.backoff_first_seconds, settings.backoff_ceiling_seconds) == (1, 60)
    assert settings.stability_seconds == 120


def test_settings_are_frozen() -> None:
    with pytest.raises(AttributeError):
        SessionSettings().ack_timeout_seconds = 1  # type: ignore[misc]  # that is the point
