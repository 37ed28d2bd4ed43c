import asyncio
from collections.abc import Callable

import pytest

from gpu_agent.probe.attempt import Attempt, Failed, failed_sentence, silent_sentence
from gpu_agent.probe.collectors import Installed, Surroundings
from gpu_agent.wire.inventory import Gpu, GpuReport, Outcome

GPU = Gpu(uuid="X-1", name="X", memory_mb=1024)
GOOD = GpuReport(outcome=Outcome.OK, gpus=(GPU,))


class _Says:
    interface = 1

    def __init__(self, say: Callable[[], object]) -> None:
        self._say = say

    def read(self, deadline_seconds: float) -> GpuReport:
        assert deadline_seconds == 5
        return self._say()  # type: ignore[return-value]  # the point: a collector may give anything


def attempted(load: Callable[[], object]) -> GpuReport | Failed:
    return Attempt(Installed("odd", load), Surroundings()).read(5)


def saying(say: Callable[[], object]) -> Callable[[], object]:
    return lambda: lambda _: _Says(say)


def raising(error: BaseException) -> Callable[[], object]:
    def say() -> object:
        raise error

    return say


def test_what_a_collector_reads_passes() -> None:
    assert attempted(saying(lambda: GOOD)) == GOOD


class _Speechless(Exception):  # noqa: N818 - a collector's own
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("load", "says"),
    [
        (raising(ImportError("no module named 'rocm'")), "ImportError: no module named 'rocm'"),
        (lambda: 7, "its entry point names int, which cannot be called"),
        (lambda: raising(OSError("nothing")), "TypeError"),
        (lambda: lambda _: object(), "written for interface None and this agent has 1: update it"),
        (saying(raising(ValueError("bad\nlines\tof text"))), "ValueError: bad lines of text"),
        (saying(raising(ValueError("\x1b[31mred"))), "ValueError: [31mred"),
        (saying(raising(SystemExit(3))), "SystemExit: 3"),
        (saying(raising(RecursionError())), "(RecursionError)"),
        (saying(raising(KeyboardInterrupt())), "(KeyboardInterrupt)"),
        (saying(raising(asyncio.CancelledError())), "(CancelledError)"),
        (saying(raising(GeneratorExit("over"))), "GeneratorExit: over"),
        (saying(raising(_Speechless())), "(_Speechless)"),
        (saying(raising(ValueError("x" * 5000))), "x" * 100),
        (saying(lambda: None), "it gave NoneType in place of a GpuReport"),
        (saying(lambda: {"gpus": []}), "it gave dict in place of a GpuReport"),
    ],
)
def test_whatever_goes_wrong_is_a_sentence_with_the_next_step(load: Callable[[], object], says: str) -> None:
    answer = attempted(load)
    assert isinstance(answer, Failed)
    assert says in answer.detail
    assert answer.detail.startswith("The collector 'odd' failed (")
    assert "leave it out of the setting `collectors`" in answer.detail
    assert len(answer.detail) < 500
    assert "\n" not in answer.detail


def test_a_collector_is_made_once_and_again_after_it_failed() -> None:
    made: list[int] = []
    fails = iter([False, False, True, False])

    def say() -> object:
        if next(fails):
            raise OSError
        return GOOD

    def make(surroundings: Surroundings) -> _Says:
        assert surroundings == Surroundings()
        made.append(1)
        return _Says(say)

    attempt = Attempt(Installed("odd", lambda: make), Surroundings())
    kinds = [type(attempt.read(5)) for _ in range(4)]
    assert kinds == [GpuReport, GpuReport, Failed, GpuReport]
    assert len(made) == 2


def test_the_sentences_name_the_collector() -> None:
    assert "'x' did not answer within 5 s" in silent_sentence("x", 5.0)
    assert "'x' failed (KeyError" in failed_sentence("x", KeyError("k"))
