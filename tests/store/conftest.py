"""One etcd of each size for all tests of a run; each test has a prefix of its own."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gpu_agent.store.etcd.client import (
    Access,
    EtcdClient,
)
from gpu_agent.store.etcd.store import EtcdStore
from tests.store.etcd_cluster import Cluster, cluster


@pytest.fixture(scope="session")
def one_member() -> Iterator[Cluster]:
    with cluster(1) as running:
        yield running


@pytest.fixture(scope="session")
def three_members() -> Iterator[Cluster]:
    with cluster(3) as running:
        yield running


@pytest.fixture
def access(one_member: Cluster) -> Access:
    return one_member.access


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return tmp_path.name


@pytest.fixture
def store(access: Access, prefix: str) -> Iterator[EtcdStore]:
    with closing(EtcdStore(access, prefix)) as store:
        yield store


@pytest.fixture
def client(access: Access) -> Iterator[EtcdClient]:
    with closing(EtcdClient(access)) as client:
        yield client
