import json
from typing import get_args

import pytest

from gpu_agent.node.socket.requests import (
    ASKS,
    Drain,
    JobStart,
    Question,
    Refusal,
    Status,
    answer,
    read,
    refuse,
)


def line(**fields: object) -> bytes:
    return json.dumps({"protocol": 1, **fields}).encode()


def refused(words: bytes) -> Refusal:
    found = read(words)
    assert isinstance(found, Refusal), found
    return found


def test_every_question_is_named_once() -> None:
    asks = [get_args(kind.model_fields["ask"].annotation)[0] for kind in get_args(Question)]
    assert tuple(asks) == ASKS


def test_a_question_is_read_and_what_a_newer_program_adds_is_ignored() -> None:
    assert read(line(ask="status", colour="blue")) == Status(ask="status")
    assert read(line(ask="job_start", job_id="j", pid=7)) == JobStart(ask="job_start", job_id="j", pid=7)
    assert read(line(ask="drain", deadline_seconds=60)) == Drain(ask="drain", deadline_seconds=60)


@pytest.mark.parametrize(
    "words",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"[" * 10_000,
        b'{"a":' * 3000,
        line(ask="job_start"),
        line(ask="job_start", job_id=7),
        line(ask="job_start", job_id="j", pid=0),
        line(ask="job_start", job_id="j", pid=True),
        line(ask="job_start", job_id="j", pid=2**31),
        line(ask="drain", deadline_seconds=-1),
        line(ask="drain", deadline_seconds="soon"),
        line(ask="drain", reason=""),
        line(ask="drain", reason="x" * 5000),
        b'{"protocol": 1, "ask": "drain", "deadline_seconds": NaN}',
        b'{"protocol": 1, "ask": "drain", "deadline_seconds": 1e999}',
    ],
)
def test_what_is_no_question_is_refused_in_words(words: bytes) -> None:
    assert refused(words).code == "malformed"


@pytest.mark.parametrize("protocol", [0, 2, "1", True, None, [1]])
def test_another_protocol_is_refused_with_the_one_that_is_spoken(protocol: object) -> None:
    found = refused(line(protocol=protocol, ask="status"))
    assert (found.code, "protocol 1" in found.message) == ("unsupported_protocol", True)


@pytest.mark.parametrize("ask", ["dance", None, 7, ["status"], {}])
def test_an_unknown_question_is_answered_with_those_that_there_are(ask: object) -> None:
    found = refused(line(ask=ask))
    assert found.code == "unknown_question"
    assert all(one in found.message for one in ASKS)


def test_answers_and_refusals_are_one_line_each() -> None:
    assert json.loads(answer({"x": "a\nb"})) == {"protocol": 1, "ok": True, "answer": {"x": "a\nb"}}
    assert json.loads(refuse(Refusal("forbidden", "no\nway"))) == {
        "protocol": 1,
        "ok": False,
        "code": "forbidden",
        "message": "no\nway",
    }
    assert answer({"x": "a\nb"}).count(b"\n") == refuse(Refusal("c", "a\nb")).count(b"\n") == 1
