"""Rules of the product broken on purpose, one at a time, each with the promise that is seen to break."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from unittest.mock import patch

from gpu_agent.registry import deadlines, flapping, lifecycle, proving, reversal, silence
from gpu_agent.registry.beats import Beats
from gpu_agent.registry.claiming import Claiming
from gpu_agent.registry.dispatch.claims import Claims
from gpu_agent.registry.dispatch.dispatch import Dispatch
from gpu_agent.registry.dispatch.memory import Promise
from gpu_agent.registry.dispatch.verdict import Exclusion
from gpu_agent.registry.issuing import Issuing
from gpu_agent.registry.roster import Roster
from gpu_agent.registry.saves import Saves
from gpu_agent.registry.sessions import Sessions
from gpu_agent.registry.step import Step
from gpu_agent.registry.undo import Undo
from gpu_agent.registry.unkept import UnkeptQueue
from gpu_agent.registry.verdicts import Verdicts
from gpu_agent.server import clerk
from gpu_agent.server.chronicle import Chronicle
from gpu_agent.server.loop import FleetLoop
from gpu_agent.session.attempts import Attempts
from gpu_agent.session.conversation import Conversation
from gpu_agent.store.memory import MemoryStore
from gpu_agent.wire import codes
from tests.simulation.breaking import (
    CRASHES,
    FIGHT,
    WISHES,
    Patch,
    around,
    claimed_anew,
    everything_back,
    first_left_out,
    half_kept,
    last_first,
    method,
    no_drain,
    node_document,
    not_waiting,
    ready_behind_its_back,
    recovering,
    same_epoch,
    spent_for_nothing,
    told_first,
    under,
    without,
)
from tests.simulation.broken import Invariant
from tests.simulation.climate import Climate, Trouble


@dataclass(frozen=True, slots=True)
class Mutation:
    """A rule that is broken, where it shows, and the worlds to look in."""

    name: str
    breaks: Invariant
    apply: Patch
    climate: Callable[[int], Climate]


MUTATIONS = (
    Mutation(
        "nodes that are not ready get jobs",
        Invariant.ONLY_READY,
        without(Exclusion.STATUS_NOT_READY),
        under(Trouble.GPU, Trouble.DRAIN),
    ),
    Mutation(
        "nodes that are disconnected get jobs",
        Invariant.ONLY_READY,
        without(Exclusion.DISCONNECTED),
        under(Trouble.CUT),
    ),
    Mutation(
        "cordoned nodes get jobs", Invariant.ONLY_READY, without(Exclusion.CORDONED), under(Trouble.CORDON)
    ),
    Mutation(
        "full nodes get jobs",
        Invariant.NO_PLACE_TWICE,
        without(Exclusion.CAPACITY_EXCEEDED),
        under(Trouble.CHANGE, nodes=3),
    ),
    Mutation(
        "claims are not idempotent",
        Invariant.ONE_CLAIM,
        around(Dispatch, "claim", claimed_anew),
        under(Trouble.SCHEDULER_CRASH),
    ),
    Mutation(
        "a claim that ends leaves its memory promised",
        Invariant.PROMISES_ADD_UP,
        method(Promise, "end", lambda promise, _need: setattr(promise, "claims", promise.claims - 1)),
        under(nodes=3),
    ),
    Mutation(
        "claims never end",
        Invariant.CLAIM_ENDS,
        method(Claims, "end_due", lambda *_: []),
        under(Trouble.SCHEDULER_CRASH),
    ),
    Mutation(
        "claims are not taken back after a restart",
        Invariant.CLAIM_KEPT,
        method(Claiming, "restore", lambda *_: True),
        under(*CRASHES),
    ),
    Mutation(
        "what is given back is not kept",
        Invariant.CLAIM_KEPT,
        method(Step, "keep_claim", lambda *_: None),
        under(*CRASHES),
    ),
    Mutation("drains are not kept", Invariant.WISH_KEPT, node_document(drain=None), under(*CRASHES, *WISHES)),
    Mutation(
        "cordons are not kept", Invariant.WISH_KEPT, node_document(cordoned=None), under(*CRASHES, *WISHES)
    ),
    Mutation(
        "a removed node is not let go on the disk",
        Invariant.WISH_KEPT,
        around(
            clerk.Clerk,
            "_dated",
            lambda dated, *given: [one for one in dated(*given) if one.document is not None],
        ),
        under(*CRASHES, Trouble.FORGET),
    ),
    Mutation(
        "what could not be kept is not undone",
        Invariant.WISH_KEPT,
        method(Undo, "put_back", lambda *_, **__: None),
        under(Trouble.SAVE_ERROR, *WISHES),
    ),
    Mutation(
        "what is undone takes beats with it",
        Invariant.TOLD_IS_KNOWN,
        around(reversal, "parts_of_node", everything_back),
        under(Trouble.SAVE_ERROR, Trouble.SLOW_DISK, Trouble.CHANGE, *WISHES, nodes=3),
    ),
    Mutation(
        "an owner's drain ends with its connection",
        Invariant.OWN_DRAIN_KEPT,
        around(Conversation, "open", no_drain),
        under(Trouble.CUT, Trouble.OWNER),
    ),
    Mutation(
        "the fleet tells before it saves", Invariant.SAVED_FIRST, around(Saves, "sealed", told_first), under()
    ),
    Mutation(
        "the loop does not wait for the disk",
        Invariant.SAVED_FIRST,
        around(FleetLoop, "act", not_waiting),
        under(Trouble.SLOW_DISK),
    ),
    Mutation(
        "the store keeps a part of what it is given",
        Invariant.STORE_IS_A_PREFIX,
        around(MemoryStore, "save", half_kept),
        under(Trouble.REGISTRY_CRASH),
    ),
    Mutation(
        "verdicts that waited are told backwards",
        Invariant.HISTORY_IN_ORDER,
        around(UnkeptQueue, "take", last_first),
        under(Trouble.DISK_FULL, Trouble.GPU, Trouble.CUT),
    ),
    Mutation(
        "events are numbered anew after a restart",
        Invariant.EVENTS_KEPT,
        method(Chronicle, "restore", lambda *_: None),
        under(*CRASHES),
    ),
    Mutation(
        "a superseded connection is not dismissed",
        Invariant.SUPERSEDED_IS_DEAF,
        method(Roster, "dismissed", lambda *_: False),
        under(Trouble.CLONE, Trouble.AGENT_CRASH, Trouble.SLOW_DISK),
    ),
    Mutation(
        "a second connection stands for a node beside the first",
        Invariant.ONE_SESSION,
        method(Roster, "dismiss", lambda *_: None),
        under(Trouble.CLONE, Trouble.POWER_LOSS),
    ),
    Mutation(
        "epochs begin anew with each registration",
        Invariant.EPOCHS_GROW,
        around(Sessions, "_begin", same_epoch),
        under(Trouble.CUT),
    ),
    Mutation(
        "the fleet's silence is never the registry's own",
        Invariant.NO_FALSE_VERDICT,
        method(silence, "suspected", lambda *_: []),
        under(Trouble.PARTITION, nodes=12),
    ),
    Mutation(
        "a node's timeout is half of what it was given",
        Invariant.NO_FALSE_VERDICT,
        around(deadlines, "silent_until", lambda until, record: until(record) - record.timeout_seconds / 2),
        under(Trouble.CUT, Trouble.AGENT_FREEZE),
    ),
    Mutation(
        "silence is not noticed",
        Invariant.SILENCE_NOTICED,
        method(deadlines, "silent_until", lambda *_: inf),
        under(Trouble.POWER_LOSS),
    ),
    Mutation(
        "a registering node recovers, which the page does not know",
        Invariant.KNOWN_ARROW,
        around(lifecycle, "move", recovering),
        under(),
    ),
    Mutation(
        "a draining node is made ready behind the table's back",
        Invariant.HISTORY_IN_ORDER,
        around(Beats, "_judge", ready_behind_its_back),
        under(Trouble.DRAIN),
    ),
    Mutation(
        "a node that flaps is ready as soon as it beats well",
        Invariant.FLAPS_ARE_DAMPED,
        lambda: patch.multiple(flapping, is_damped=lambda *_: False, holds=lambda *_: None),
        under(Trouble.GPU, Trouble.MODEL, nodes=2),
    ),
    Mutation(
        "a node back from too many silences gets jobs at once",
        Invariant.FLAPS_ARE_DAMPED,
        method(flapping, "holds", lambda *_: None),
        under(Trouble.PARTITION, nodes=2),
    ),
    Mutation(
        "a node's tokens are not kept",
        Invariant.CREDENTIAL_KEPT,
        node_document(keys={}),
        under(*CRASHES),
    ),
    Mutation(
        "a token that is rotated at once lives on",
        Invariant.CREDENTIAL_KEPT,
        method(Issuing, "_end_keys", lambda *_: None),
        under(Trouble.TOKENS),
    ),
    Mutation(
        "the first beat spends no use",
        Invariant.USES_COUNTED,
        lambda: patch(
            "gpu_agent.registry.beats.spend", lambda *given: spent_for_nothing(proving.spend, *given)
        ),
        under(Trouble.TOKENS, Trouble.STATE_LOST),
    ),
    Mutation(
        "an agent that backs off never tries again",
        Invariant.AGENT_MOVES,
        method(Attempts, "next_delay", lambda *_, **__: inf),
        under(Trouble.CUT),
    ),
    Mutation(
        "healthy beats make no node ready",
        Invariant.COMES_BACK,
        method(Beats, "_promote", lambda *_: None),
        under(),
    ),
    Mutation(
        "the registry does not close the sessions of nodes that it calls offline",
        Invariant.COMES_BACK,
        method(Verdicts, "close", lambda *_: None),
        under(Trouble.CUT, Trouble.SLOW_LINES, Trouble.AGENT_FREEZE),
    ),
    Mutation(
        "a superseded agent fights",
        Invariant.NO_PING_PONG,
        lambda: patch.object(codes, "CODES", FIGHT),
        under(Trouble.CLONE),
    ),
    Mutation(
        "an explanation leaves a node out",
        Invariant.EVERY_REASON,
        lambda: patch("gpu_agent.registry.dispatch.dispatch.judged", first_left_out),
        under(),
    ),
)
