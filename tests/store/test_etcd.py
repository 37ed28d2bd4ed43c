from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu_agent.store.base import Store
from gpu_agent.store.etcd.store import EtcdStore
from tests.store.contract import StoreContract
from tests.store.etcd_cluster import Cluster, cluster


@pytest.fixture(scope="module")
def one_member() -> Iterator[Cluster]:
    with cluster(1) as running:
        yield running


@pytest.fixture(scope="module")
def three_members() -> Iterator[Cluster]:
    with cluster(3) as running:
        yield running


class TestEtcdStoreWithOneMember(StoreContract):
    @pytest.fixture(autouse=True)
    def _cluster(self, one_member: Cluster) -> None:
        self.access = one_member.access

    def open(self, folder: Path) -> Store:
        return EtcdStore(self.access, folder.name)


class TestEtcdStoreWithThreeMembers(StoreContract):
    @pytest.fixture(autouse=True)
    def _cluster(self, three_members: Cluster) -> None:
        self.access = three_members.access

    def open(self, folder: Path) -> Store:
        return EtcdStore(self.access, folder.name)
