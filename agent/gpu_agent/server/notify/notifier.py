"""Alarms of one registry: a task for each receiver reads the event log, and sends what is due.

Only the registry that leads has one. How far a receiver is, is stored beside the fleet's documents: so a
restart, and another leader, go on from there. Nothing here is an event of the registry: a receiver that fails
must not alarm itself.
"""

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from urllib.parse import urlsplit

from gpu_agent.registry.actions import Change, DocumentKind, Output
from gpu_agent.registry.alarms import (
    AlarmReceiver,
    EventsRead,
    MessageDelivered,
    MessageFailed,
    QuietHoursChanged,
    ReceiverAction,
    ReceiverState,
    SendMessage,
    StorePosition,
    TrialDelivered,
    missed_before,
)
from gpu_agent.runtime.logs import Logger
from gpu_agent.runtime.schedule import local_time, parse
from gpu_agent.runtime.tasks import start_alone
from gpu_agent.server.effects import DOCUMENT
from gpu_agent.server.event_log import RegistryEventLog
from gpu_agent.server.notify.command import Outcome, run_command
from gpu_agent.server.notify.message import (
    EventFilter,
    LabelsOf,
    Present,
    StatusOf,
    body_of,
    notification,
    trial,
)
from gpu_agent.server.notify.settings import ReceiverSettings
from gpu_agent.server.views import Clock
from gpu_agent.wire.notification import ReceiverTest, ReceiverView

LOOK_SECONDS = 0.5
"""How often the event log is read: many events at once cost little, and no person notices."""
LOG_SECONDS = 3600.0
"""A failure that stays the same is logged again after this time."""
CHANGED_SECONDS = 60.0
"""One of another kind, and the first after a success, not more often than this."""
_EVENTS_AT_ONCE = 256
"""Then other tasks have a turn."""
_POSITION = "position"

_LOG = Logger("server.notify")


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmSource:
    """What all receivers of one registry have in common."""

    event_log: RegistryEventLog
    labels_of: LabelsOf
    status_of: StatusOf
    registry: str
    """The name by which messages call it."""
    plaintext: bool
    """Whether messages may go to other machines without encryption."""
    clock: Clock


class Notifier:
    """The receivers of one registry, from `start` to `stop`."""

    def __init__(self, source: AlarmSource, *, store: Callable[[Output], None]) -> None:
        self._source, self._store = source, store
        self._positions: dict[str, int] = {}
        """By receiver; also of those that are in the settings no more, while the log has their events."""
        self._stored: dict[str, int] = {}
        """As they were stored last since the start."""
        self._receivers: dict[str, Receiver] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def restore(self, changes: Iterable[Change]) -> None:
        """Take in the stored positions."""
        for change in changes:
            if change.kind is DocumentKind.RECEIVER and change.document is not None:
                document = change.document.get(DOCUMENT)
                position = document.get(_POSITION) if isinstance(document, Mapping) else None
                if isinstance(position, int):
                    self._positions[change.key] = min(position, self._source.event_log.last_id)
                else:
                    detail = f"the position of the receiver {change.key!r}: it gets what happens from now on"
                    _LOG.warning("document_unreadable", detail=detail)

    def start(self, receivers: Sequence[ReceiverSettings]) -> None:
        """Send alarms to these, and to no other receiver."""
        wanted = {one.name: one for one in receivers}
        for name, running in tuple(self._receivers.items()):
            if wanted.get(name) != running.settings:
                self._end(name)
        self._receivers = {name: self._receiver(one) for name, one in wanted.items()}
        for name, receiver in self._receivers.items():
            if name not in self._tasks:
                self._tasks[name] = task = start_alone(f"notify-{name}", receiver.run())
                task.add_done_callback(receiver.ended)
        self._forget_old_positions()

    async def stop(self) -> None:
        """Send nothing more; a message on its way may still arrive, and is sent again later."""
        tasks = list(self._tasks.values())
        for name in tuple(self._tasks):
            self._end(name)
            position = self._positions[name]
            if position != self._stored.get(name):
                self._store_position(name, position)
        if tasks:
            await asyncio.wait(tasks)

    def views(self) -> tuple[ReceiverView, ...]:
        """Describe the receivers, in the order of the settings."""
        return tuple(one.view() for one in self._receivers.values())

    @property
    def problem(self) -> str | None:
        """Say in a few words which receivers fail; None while none does."""
        failing = [one.settings.name for one in self._receivers.values() if one.problem is not None]
        return f"no alarms reach {', '.join(failing)}" if failing else None

    @property
    def receivers(self) -> Sequence["Receiver"]:
        """All of them, for metrics."""
        return tuple(self._receivers.values())

    async def test(self, name: str) -> ReceiverTest | None:
        """Send one receiver a test message now, whatever waits for it; None where none has the name."""
        receiver = self._receivers.get(name)
        if receiver is None:
            return None
        clock = self._source.clock
        began = clock.monotonic()
        outcome = await receiver.try_now()
        return ReceiverTest(
            name=name,
            delivered=outcome.problem is None,
            problem=outcome.problem,
            seconds=round(clock.monotonic() - began, 3),
        )

    def _receiver(self, settings: ReceiverSettings) -> "Receiver":
        """Return the one that runs with these settings, else make it."""
        running = self._receivers.get(settings.name)
        if running is not None and running.settings == settings and settings.name in self._tasks:
            return running
        position = self._positions.get(settings.name)
        if position is None:
            position = self._source.event_log.last_id
            self._store_position(settings.name, position)
        return Receiver(
            settings,
            position,
            source=self._source,
            store_position=lambda at: self._store_position(settings.name, at),
        )

    def _end(self, name: str) -> None:
        """End a receiver; the one that follows it goes on from there, not from where it was stored last."""
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()
            self._positions[name] = self._receivers[name].position

    def _store_position(self, name: str, position: int) -> None:
        self._positions[name] = self._stored[name] = position
        self._store(Output(changes=(Change(DocumentKind.RECEIVER, name, {_POSITION: position}),)))

    def _forget_old_positions(self) -> None:
        """Delete the position of a receiver that is not in the settings, once its events are not in the log.

        Before that it may come back: instances of one registry may have different files for a while.
        """
        recent = self._source.event_log.later(0)
        oldest = (recent[0].id or 0) if recent else 0
        for name in self._positions.keys() - self._receivers.keys():
            if self._positions[name] + 1 < oldest:
                del self._positions[name]
                self._store(Output(changes=(Change(DocumentKind.RECEIVER, name, None),)))


class Receiver:
    """One receiver at work."""

    def __init__(
        self,
        settings: ReceiverSettings,
        position: int,
        *,
        source: AlarmSource,
        store_position: Callable[[int], None],
    ) -> None:
        self.settings = settings
        self._machine = AlarmReceiver(position, group_seconds=settings.group_seconds, chance=random.random)
        self._source, self._clock, self._event_log = source, source.clock, source.event_log
        self._filter, self._store_position = EventFilter(settings, source.labels_of), store_position
        self._hours = parse(settings.quiet_hours) if settings.quiet_hours else None
        self._attempt: asyncio.Task[Outcome] | None = None
        self._message: SendMessage | None = None
        """The last one, which is on its way while there is an attempt."""
        self.problem: str | None = None
        """Why the last attempt failed; None where it succeeded."""
        self._failing_since = 0.0
        self._logged: tuple[str, float] = ("", -inf)
        self.delivered_at: float | None = None
        """When it took the last message, in Unix seconds."""
        self.delivered = self.failed = self.missed = 0
        """Since the start: messages it took, attempts that failed, events that a message only counted."""

    @property
    def lag_seconds(self) -> float:
        """The age of the oldest event that is not delivered; 0 without any."""
        oldest = self._machine.oldest
        return 0.0 if oldest is None else max(0.0, self._clock.wall() - oldest.at)

    @property
    def position(self) -> int:
        """Every wanted event up to this id is delivered."""
        return self._machine.position

    @property
    def waiting(self) -> int:
        """How many events are not delivered."""
        return self._machine.waiting

    def view(self) -> ReceiverView:
        """Describe it as the API does."""
        machine, now = self._machine, self._clock.monotonic()
        deadline = machine.deadline
        is_held = machine.quiet and machine.waiting and machine.state is not ReceiverState.SENDING
        return ReceiverView(
            name=self.settings.name,
            format="command" if self.settings.command else self.settings.format,
            target=_target(self.settings),
            state="quiet" if is_held else machine.state.value,
            position=machine.position,
            waiting=machine.waiting,
            lag_seconds=round(self.lag_seconds, 3) if machine.waiting else None,
            failures=machine.failures,
            problem=self.problem,
            delivered_at=self.delivered_at,
            next_attempt_seconds=None if deadline is None else round(max(0.0, deadline - now), 3),
        )

    async def run(self) -> None:
        """Read the event log and send what is due, until cancelled."""
        try:
            while True:
                self._look_at_the_hours()
                await self._read()
                self._carry_out(self._machine.wake(self._clock.monotonic()))
                await self._pause()
        finally:
            if self._attempt is not None:
                self._attempt.cancel()
                await asyncio.wait({self._attempt})

    def ended(self, task: asyncio.Task[None]) -> None:
        """Show that its task has crashed, which is logged: nothing is sent any more."""
        if not task.cancelled() and task.exception() is not None:
            self.problem = "a bug has ended it (task_crashed in the log): restart the registry"

    async def try_now(self) -> Outcome:
        """Send a test message; where it is taken, what has failed is sent again at once."""
        outcome = await self._attempt_to_send(trial(self._clock.wall()), test=True)
        if outcome.problem is None:
            self._carry_out(self._machine.handle(TrialDelivered(), self._clock.monotonic()))
        return outcome

    async def _attempt_to_send(self, message: SendMessage, *, test: bool = False) -> Outcome:
        now = Present(self._clock.wall(), self._source.status_of)
        document = notification(
            message,
            receiver=self.settings.name,
            registry=self._source.registry,
            now=now,
            test=test,
        )
        body = body_of(document, message, self.settings.format, now=now)
        if self.settings.command:
            return await run_command(self.settings.command, body)
        from gpu_agent.server.notify.webhook import post_message  # noqa: PLC0415 - needs the extra [registry]

        delivery_id, plaintext = document.delivery_id, self._source.plaintext
        return await post_message(self.settings, body, delivery_id=delivery_id, plaintext=plaintext)

    def _look_at_the_hours(self) -> None:
        if self._hours is not None:
            quiet = self._hours.allows(local_time(self.settings.time_zone))
            if quiet is not self._machine.quiet:
                self._carry_out(self._machine.handle(QuietHoursChanged(quiet), self._clock.monotonic()))

    async def _read(self) -> None:
        """Read what the log has behind the last event that was read, in pieces."""
        before = self._machine.read_through
        later = self._event_log.later(before)
        for first in range(0, len(later), _EVENTS_AT_ONCE):
            some = later[first : first + _EVENTS_AT_ONCE]
            missed, before = missed_before(before, some), some[-1].id or 0
            wanted = tuple(filter(self._filter.wants, some))
            read = EventsRead(wanted, before, missed)
            self._carry_out(self._machine.handle(read, self._clock.monotonic()))
            await asyncio.sleep(0)

    def _carry_out(self, actions: Sequence[ReceiverAction]) -> None:
        for action in actions:
            match action:
                case SendMessage():
                    self._message = action
                    self._attempt = start_alone(
                        f"notify-{self.settings.name}-send", self._attempt_to_send(action)
                    )
                case StorePosition(position):
                    self._store_position(position)

    async def _pause(self) -> None:
        """Wait until the log is to be read again, or the message that is on its way has an outcome."""
        deadline, now = self._machine.deadline, self._clock.monotonic()
        seconds = LOOK_SECONDS if deadline is None else min(LOOK_SECONDS, max(0.0, deadline - now))
        if self._attempt is None:
            await asyncio.sleep(seconds)
            return
        await asyncio.wait({self._attempt}, timeout=seconds)
        if self._attempt.done():
            attempt, self._attempt = self._attempt, None
            self._ended(attempt.result())
            self._message = None

    def _ended(self, outcome: Outcome) -> None:
        now = self._clock.monotonic()
        if outcome.problem is None:
            self._log_success(now)
            self.problem, self.delivered_at = None, round(self._clock.wall(), 3)
            self.delivered += 1
            self.missed += self._message.missed if self._message is not None else 0
            self._carry_out(self._machine.handle(MessageDelivered(), now))
            return
        self._log_failure(outcome.problem, now, output=outcome.output)
        self.problem = outcome.problem
        self.failed += 1
        failed = MessageFailed(outcome.lasting, outcome.retry_after_seconds)
        self._carry_out(self._machine.handle(failed, now))

    def _log_success(self, now: float) -> None:
        if self.problem is not None and self._logged[1] >= self._failing_since:
            outage = round(now - self._failing_since, 3)
            _LOG.info("notify_recovered", receiver=self.settings.name, outage_seconds=outage)

    def _log_failure(self, problem: str, now: float, *, output: str) -> None:
        """Log a failure at most once a minute, and once an hour while it stays the same."""
        known, logged_at = self._logged
        goes_on = self.problem is not None
        if not goes_on:
            self._failing_since = now
        if now - logged_at >= (LOG_SECONDS if goes_on and problem == known else CHANGED_SECONDS):
            self._logged = (problem, now)
            _LOG.warning(
                "notify_failed",
                receiver=self.settings.name,
                problem=problem,
                waiting=self._machine.waiting,
                failing_seconds=round(now - self._failing_since, 3),
                **({"output": output} if output else {}),
            )


def _target(settings: ReceiverSettings) -> str:
    if settings.command:
        return settings.command[0]
    if settings.url is None:
        return str(settings.url_file)
    parts = urlsplit(settings.url)
    return f"{parts.scheme}://{parts.netloc}"
