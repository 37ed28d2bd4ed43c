"""An agent always waits for something that comes: an instant, an answer, a probe, or a person."""

from gpu_agent.session.story import State
from tests.simulation.broken import Invariant, hold
from tests.simulation.watching import Mover, Watch

_TIMED = frozenset({State.BACKING_OFF, State.AWAITING_ACK, State.REGISTERED, State.LEAVING})


class MoversWatch(Watch):
    """Watches agents."""

    def agent_moved(self, agent: Mover) -> None:
        machine = agent.machine
        if machine is None:
            return
        state = machine.state
        if state in _TIMED:
            waits = machine.deadline is not None
        elif state is State.CONNECTING:
            waits = agent.is_dialing
        elif state is State.WAITING_GPU:
            waits = not machine._registration.possible
        elif state is State.DRAINED:
            waits = agent.wish is not None
        else:
            waits = state is State.YIELDED
        if not waits:
            detail = f"{agent.name} is {state} and waits for nothing:\n{machine.story()}"
            hold(Invariant.AGENT_MOVES, holds=False, detail=detail)
