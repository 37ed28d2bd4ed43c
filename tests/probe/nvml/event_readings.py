"""What the child hears of the fake library while it listens, in a test."""

from typing import Any

from tests.nvml_fake.child import ChildUnderTest


def heard(child: ChildUnderTest, **more: object) -> list[dict[str, int]]:
    """What each GPU's events were at one reading."""
    return [gpu.get("events", {}) for gpu in listened(child, **more)]


def listened(child: ChildUnderTest, **more: object) -> list[dict[str, Any]]:
    gpus: list[dict[str, Any]] = child.read(events=True, **more)["gpus"]
    return gpus
