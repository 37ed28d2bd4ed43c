from gpu_agent.session.actions import Credential
from gpu_agent.session.attempts import Attempts
from gpu_agent.session.events import ConnectFailed
from gpu_agent.session.settings import SessionSettings

_REFUSED = ConnectFailed("HTTP 401", http_status=401)


def _attempts(*, has_token: bool = False) -> Attempts:
    return Attempts(SessionSettings(), has_token=has_token, draw=lambda: 1.0)


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
    attempts.next_delay(0.0)
    assert attempts.credential is Credential.BEST


def test_a_refused_credential_is_explained_with_the_next_step() -> None:
    why, blamed = _attempts().explain(_REFUSED)
    assert blamed
    assert "ask its operator for a join token" in why
    assert _attempts().explain(ConnectFailed("no route to host")) == ("no route to host", False)
    assert _attempts().explain(ConnectFailed("a file", lasting=True)) == ("a file", True)


def test_only_two_minutes_of_being_registered_reset_the_delays() -> None:
    attempts = _attempts()
    attempts.next_delay(0)
    attempts.registered(0, new_token=False)
    assert attempts.next_delay(119.9) == 2
    attempts.registered(200, new_token=False)
    assert attempts.next_delay(320) == 1


def test_an_open_socket_that_was_never_acknowledged_proves_nothing() -> None:
    attempts = _attempts()
    attempts.registered(0, new_token=False)
    attempts.connected()
    attempts.next_delay(500)
    assert attempts.next_delay(1000) == 2


def test_a_new_token_can_fall_back_later() -> None:
    attempts = _attempts()
    attempts.registered(0, new_token=True)
    assert attempts.fall_back_to_join_token(_REFUSED)


def test_an_absurd_retry_after_is_clamped_to_an_hour() -> None:
    assert _attempts().next_delay(0, retry_after=1e300) == 3601
