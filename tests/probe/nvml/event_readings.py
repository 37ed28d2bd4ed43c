"""Readings with events, by a child with the fake library."""

from typing import Any

from tests.nvml_fake.child import ChildUnderTest


def events_of(child: ChildUnderTest, **more: object) -> list[dict[str, int]]:
    """What each GPU's events were at one reading."""
    return [gpu.get("events", {}) for gpu in read_with_events(child, **more)]


def read_with_events(child: ChildUnderTest, **more: object) -> list[dict[str, Any]]:
    gpus: list[dict[str, Any]] = child.read(events=True, **more)["gpus"]
    return gpus
