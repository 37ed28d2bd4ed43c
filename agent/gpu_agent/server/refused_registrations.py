"""Refused registrations, told once a minute for each address and code like every offence of a peer.

Those that are left out are still counted, and still logged at debug level; they are kept nowhere: a
flood must fill neither the log nor the store. Decides nothing about the registrations themselves.
"""

from collections.abc import Sequence
from dataclasses import replace

from gpu_agent.registry.actions import Action, Level, Note
from gpu_agent.server.quieting import Quieting, origin_of

_REFUSED = "node_register_refused"
_TOLD_OF_IT = ("node_register_received", _REFUSED)


def quieted(actions: Sequence[Action], quieting: Quieting) -> Sequence[Action]:
    """Return a list as it is, or, where it refuses what was refused just before, with less said of it."""
    for action in actions:
        if isinstance(action, Note) and action.event == _REFUSED:
            origin = origin_of(str(action.fields.get("address") or "").rpartition(":")[0].strip("[]"))
            if quieting.admits(_REFUSED, origin, kind=str(action.fields.get("code"))):
                return actions
            return [_hushed(one) for one in actions]
    return actions


def _hushed(action: Action) -> Action:
    if isinstance(action, Note) and action.event in _TOLD_OF_IT:
        return replace(action, level=Level.DEBUG)
    return action
