"""One cluster for all tests here, and the times that they measured, at the end."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cluster.machines import Cluster
from tests.cluster.network import own_network, why_not
from tests.waiting import patience

Measure = Callable[[str, float, float], None]
"""Takes what was lost, the seconds that it cost, and those that are promised."""

_MEASURED = pytest.StashKey[list[str]]()


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A whole cluster; a test leaves it whole."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    with own_network(), ExitStack() as running:
        yield Cluster(Path(tmp_path_factory.mktemp("cluster")), running)


@pytest.fixture(autouse=True)
def whole(cluster: Cluster) -> None:
    """Every test begins with three instances, all nodes ready and no claim."""
    cluster.await_whole()
    cluster.release_all()


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measure:
    """Note a time for the summary, and compare it with the promise (more on a busy machine)."""

    def measure(what: str, seconds: float, promised: float) -> None:
        lines = request.config.stash.setdefault(_MEASURED, [])
        lines.append(f"{what:70} {seconds:6.1f} s   promised {promised:g} s")
        assert seconds <= patience(promised), what

    return measure


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the measured times."""
    lines = config.stash.get(_MEASURED, [])
    if lines:
        terminalreporter.section("what was lost, and how long it took")
        for line in lines:
            terminalreporter.write_line(line)
