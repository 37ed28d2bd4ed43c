from gpu_agent.registry.census import Census
from gpu_agent.registry.deadlines import Deadlines
from gpu_agent.registry.filing import Filing
from gpu_agent.registry.step import Step
from tests.registry.fleets import Registry


def test_a_node_is_entered_where_a_step_touched_it_and_struck_out_once_it_is_gone() -> None:
    registry = Registry()
    registry.ready()
    house, deadlines, census = registry.fleet._wishes._house, Deadlines(), Census()
    filing, step = Filing(house, deadlines, census), Step(registry.now)

    filing.file(step)
    assert (deadlines.planned, census.live) == (0, 0)
    step.touched["node-1"] = None
    filing.file(step)
    assert deadlines.planned == 1
    assert census.live == 1
    assert house.tokens.credential("digest of node-1", registry.now) is not None

    house.roster.drop(registry.node())
    filing.file(step)
    assert (deadlines.planned, census.live) == (0, 0)
    assert house.tokens.credential("digest of node-1", registry.now) is None
