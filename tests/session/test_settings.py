import pytest

from gpu_agent.session.settings import SessionSettings


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
