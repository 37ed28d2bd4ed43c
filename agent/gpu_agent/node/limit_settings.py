"""The table `[public_jobs]`: when and how far the owner of a machine lets jobs of the public pool in.

It checks what was written and judges nothing: `limits` does.
"""

from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_settings import NoDecode

from gpu_agent.node.schedule import parse
from gpu_agent.node.setting_values import Names

LONGEST_PAUSE_SECONDS = 86_400.0


def _entries(value: object) -> object:
    """Accept `a; b` where a list of hours is meant: a variable has no lists."""
    if not isinstance(value, str):
        return value
    return tuple(entry.strip() for entry in value.split(";") if entry.strip())


def _of_a_week(entry: str) -> str:
    parse([entry])
    return entry


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(_unknown_zone()) from None
    return name


def _unknown_zone() -> str:
    try:
        ZoneInfo("UTC")
    except ZoneInfoNotFoundError:  # as in many slim images
        return "this machine has no time zones; install its package tzdata, or `pip install tzdata`"
    return "this machine knows no such time zone; write it like Europe/Berlin"


class OwnersLimits(BaseModel):
    """What must hold for public jobs to be let in, besides `accept_public_jobs`.

    What is not set asks for nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schedule: Annotated[
        tuple[Annotated[str, AfterValidator(_of_a_week)], ...], BeforeValidator(_entries), NoDecode
    ] = ()
    """Hours of the week, local time; none are all."""
    time_zone: Annotated[str, AfterValidator(_zone)] | None = None
    """Whose local time; None takes the machine's."""
    max_temperature_c: Annotated[float, Field(ge=20, le=120, allow_inf_nan=False)] | None = None
    """From this temperature of the hottest GPU on, no public job is let in."""
    min_free_memory_mb: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """So much must be free on at least one usable GPU."""
    pause_while_in_use: bool = False
    """Whether somebody else's work on a GPU keeps public jobs out."""
    own_programs: Names = ()
    """Programs that are not somebody else, by name, with all that they start."""
    resume_after_seconds: Annotated[float, Field(ge=0, le=LONGEST_PAUSE_SECONDS, allow_inf_nan=False)] = 60.0
    """How long a reading must be well again before public jobs are let in again."""
