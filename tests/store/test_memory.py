from gpu_agent.registry.actions import Change, Kept
from gpu_agent.store.base import Store
from gpu_agent.store.memory import MemoryStore
from tests.store.contract import StoreContract


class TestMemoryStore(StoreContract):
    def open(self) -> Store:
        return MemoryStore()


def test_a_second_memory_store_shares_nothing_with_the_first() -> None:
    first, second = MemoryStore(), MemoryStore()
    first.save([Change(Kept.NODE, "node-1", {})])
    assert list(second.load()) == []
