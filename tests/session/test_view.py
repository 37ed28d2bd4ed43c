from gpu_agent.session.events import Disconnected, Started
from gpu_agent.session.story import State
from tests.session.played import play, ready


def test_before_anything_happened_everything_is_unknown() -> None:
    view = play().machine.view
    assert (view.state, view.node_id, view.verdict, view.sequence) == (State.IDLE, None, None, 0)
    assert (view.next_attempt_at, view.last_refusal, view.interval_seconds) == (None, None, None)


def test_a_view_is_a_picture_and_does_not_change_afterwards() -> None:
    session = play()
    before = session.machine.view
    assert session >> Started()
    assert before.state is State.IDLE


def test_the_view_shows_the_verdict_the_rhythm_and_the_next_attempt() -> None:
    session = ready()
    view = session.machine.view
    assert (view.state, view.node_id, view.interval_seconds, view.sequence) == (
        State.REGISTERED,
        "node-A",
        15,
        1,
    )
    assert view.verdict is not None
    assert (view.verdict.status, view.verdict.reason) == ("ready", "so")
    assert session >> Disconnected(1001, "")
    assert session.machine.view.next_attempt_at == session.now + 0.5
