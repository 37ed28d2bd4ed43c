"""One etcd for the tests of a module; each test has a prefix of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.authority import Authority
from tests.store.etcd_cluster import Cluster, cluster


@pytest.fixture(scope="module")
def etcd() -> Iterator[Cluster]:
    with cluster(1) as running:
        yield running


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.fixture
def prefix(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tmp_path_factory.mktemp("prefix").name
