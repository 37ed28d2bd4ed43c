"""What may be asked over the local socket: one line of JSON, read strictly, unknown fields ignored.

It decides nothing about who may ask what. A line that is no question comes back as a refusal, in
words for whoever wrote it.
"""

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from gpu_agent.local.conversation import PROTOCOL
from gpu_agent.wire.fields import Text

Pid = Annotated[int, Field(ge=1, le=2**31 - 1)]
LONGEST_DRAIN_SECONDS = 10 * 365 * 86400.0


class _Question(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)


class Status(_Question):
    """How everything stands."""

    ask: Literal["status"]


class Why(_Question):
    """Which jobs this node would be refused now, as far as the node knows."""

    ask: Literal["why"]


class Refresh(_Question):
    """Probe again, and tell the registry all of it."""

    ask: Literal["refresh"]


class Drain(_Question):
    """Have the machine emptied, and stay so."""

    ask: Literal["drain"]
    reason: Annotated[Text, Field(min_length=1)] | None = None
    deadline_seconds: Annotated[float, Field(ge=0, le=LONGEST_DRAIN_SECONDS)] | None = None


class Resume(_Question):
    """Take the machine back, and have it register."""

    ask: Literal["resume"]


class JobStart(_Question):
    """A job is in flight, until its connection ends, or with `pid` that process."""

    ask: Literal["job_start"]
    job_id: str
    pid: Pid | None = None
    own_pid: Pid | None = None
    """The asker's own number, by which it shows whether it counts processes as the agent does."""


class JobFinish(_Question):
    """A job is not in flight any more."""

    ask: Literal["job_finish"]
    job_id: str


class JobList(_Question):
    """Which jobs are in flight."""

    ask: Literal["job_list"]


Question = Status | Why | Refresh | Drain | Resume | JobStart | JobFinish | JobList


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why something is not done: a code for programs, a sentence for people."""

    code: str
    message: str


ASKS = ("status", "why", "refresh", "drain", "resume", "job_start", "job_finish", "job_list")

_QUESTION: TypeAdapter[Question] = TypeAdapter(Annotated[Question, Field(discriminator="ask")])


def read(line: bytes) -> Question | Refusal:
    """Read one line."""
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        return Refusal("malformed", "a question is one line of JSON")
    if not isinstance(document, dict):
        return Refusal("malformed", "a question is a JSON object")
    if document.get("protocol") != PROTOCOL or document["protocol"] is True:
        return Refusal("unsupported_protocol", f"this agent speaks protocol {PROTOCOL}; say so in `protocol`")
    if document.get("ask") not in ASKS:
        return Refusal("unknown_question", f"`ask` is one of {', '.join(ASKS)}")
    return _read(document)


def answer(document: dict[str, Any]) -> bytes:
    """Write an answer as a line."""
    return _line({"protocol": PROTOCOL, "ok": True, "answer": document})


def refuse(refusal: Refusal) -> bytes:
    """Write a refusal as a line."""
    return _line({"protocol": PROTOCOL, "ok": False, "code": refusal.code, "message": refusal.message})


def _read(document: dict[str, Any]) -> Question | Refusal:
    try:
        return _QUESTION.validate_python(document)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(str(step) for step in fault["loc"][1:]) or "it"
        return Refusal("malformed", f"{where}: {fault['msg']}")


def _line(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"
