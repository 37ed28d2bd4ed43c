from gpu_agent.registry.dispatch.affinity import REMEMBERED_KEYS, WARM_SECONDS, Affinities


def test_the_node_that_last_held_a_key_is_warm_for_it() -> None:
    affinities = Affinities()
    affinities.hold("session-7", "node-A", 0.0)
    affinities.hold("session-7", "node-B", 5.0)
    assert affinities.warm("session-7", 6.0) == "node-B"


def test_a_node_cools_down() -> None:
    affinities = Affinities()
    affinities.hold("session-7", "node-A", 0.0)
    assert affinities.warm("session-7", WARM_SECONDS) == "node-A"
    assert affinities.warm("session-7", WARM_SECONDS + 1) is None


def test_no_key_is_no_affinity() -> None:
    affinities = Affinities()
    affinities.hold(None, "node-A", 0.0)
    assert affinities.warm(None, 0.0) is None


def test_the_key_held_longest_ago_is_forgotten_first() -> None:
    affinities = Affinities()
    for number in range(REMEMBERED_KEYS):
        affinities.hold(str(number), "node-A", 0.0)
    affinities.hold("0", "node-A", 1.0)
    affinities.hold("one more", "node-A", 1.0)
    assert affinities.warm("1", 1.0) is None
    assert affinities.warm("0", 1.0) == affinities.warm("one more", 1.0) == "node-A"
