import contextlib
import socket
import threading
from pathlib import Path

import pytest

from gpu_agent.local.connection import (
    MAX_REQUEST_BYTES,
    Connection,
    LocalError,
    NoAgentError,
    RefusedError,
    ask,
)
from tests.local.foreign_server import answering_with
from tests.node.control_harness import serving


def test_a_question_is_answered_and_several_over_one_connection(tmp_path: Path) -> None:
    with serving(tmp_path / "s") as served, Connection(served.path) as conversation:
        assert conversation.ask("status")["node_id"] == "node-A"
        assert conversation.ask("job_list") == {"in_flight": []}


def test_a_refusal_is_raised_with_its_code(tmp_path: Path) -> None:
    with serving(tmp_path / "s") as served, pytest.raises(RefusedError) as refused:
        ask("job_finish", path=served.path, job_id="unknown")
    assert refused.value.code == "unknown_job"


def test_a_refusal_before_the_request_is_read(tmp_path: Path) -> None:
    refusal = b'{"ok": false, "code": "busy", "message": "later"}\n'
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        with Connection(tmp_path / "s") as conversation:
            with listener.accept()[0] as connection:
                connection.sendall(refusal)
            with pytest.raises(RefusedError, match="later"):
                conversation.ask("status")


def test_where_no_agent_is_the_sentence_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NoAgentError, match=r"no agent answers at .*--socket"):
        ask("status", path=tmp_path / "s")


def test_a_socket_that_was_left_behind_is_no_agent(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
    with pytest.raises(NoAgentError, match="no agent answers"):
        ask("status", path=tmp_path / "s")


@pytest.mark.parametrize(
    "words",
    [b"hello\n", b"[]\n", b"[" * 200_000 + b"\n", b'{"ok": true, "answer": 7}\n', b'{"ok": true}\n'],
    ids=["words", "list", "deep", "number", "nothing"],
)
def test_who_talks_otherwise_is_no_agent(tmp_path: Path, words: bytes) -> None:
    with answering_with(tmp_path / "s", words), pytest.raises(NoAgentError, match="no agent of this kind"):
        ask("status", path=tmp_path / "s")


def test_who_says_nothing_is_waited_for_so_long(tmp_path: Path) -> None:
    with answering_with(tmp_path / "s", b""), pytest.raises(NoAgentError, match="does not answer"):
        ask("status", path=tmp_path / "s", patience_seconds=0.1)


def test_who_breaks_off_is_said_to_have_gone(tmp_path: Path) -> None:
    with answering_with(tmp_path / "s", b'{"ok'), pytest.raises(NoAgentError, match="went away"):
        ask("status", path=tmp_path / "s")


def test_a_question_that_is_too_long_is_not_sent(tmp_path: Path) -> None:
    with serving(tmp_path / "s") as served, pytest.raises(RefusedError, match="at most"):
        ask("job_start", path=served.path, job_id="x" * MAX_REQUEST_BYTES)


def test_a_path_that_can_be_none_is_a_sentence() -> None:
    with pytest.raises(NoAgentError, match="no path of a socket"):
        ask("status", path=Path("a\0b" * 100) / "s")


def test_an_answer_of_many_pieces_is_put_together(tmp_path: Path) -> None:
    long = b'{"ok": true, "answer": {"x": "' + b"y" * 300_000 + b'"}}\n'
    with answering_with(tmp_path / "s", long):
        assert len(ask("status", path=tmp_path / "s")["x"]) == 300_000


def test_where_many_connect_at_once_one_waits_for_a_place(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as crowd:
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)
        crowd.enter_context(Connection(tmp_path / "s"))
        with pytest.raises(NoAgentError, match="does not answer"):
            Connection(tmp_path / "s", patience_seconds=0.2)
        room = threading.Timer(0.3, lambda: crowd.enter_context(listener.accept()[0]))
        room.start()
        crowd.enter_context(Connection(tmp_path / "s", patience_seconds=20))
        room.join()


def test_both_faults_are_told_apart_and_caught_together() -> None:
    assert issubclass(NoAgentError, LocalError)
    refused = RefusedError("not you", code="forbidden")
    assert isinstance(refused, LocalError)
    assert (str(refused), refused.code, refused.not_now) == ("not you", "forbidden", False)
    assert RefusedError("later", code="busy").not_now
