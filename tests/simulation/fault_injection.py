"""Chaos: what goes wrong, and when; and how all of it is put right in the end."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from tests.simulation.actors import Operators, Owners, Scheduler, TokenAdministrator
from tests.simulation.agents import Agent
from tests.simulation.cluster import Cluster
from tests.simulation.fault_profile import Fault
from tests.simulation.host import MODELS, ZONES, SimulatedHost

_MOST_CLONES = 3
_LONGEST_OUTAGE_SECONDS = 60.0
_WALL_JUMPS = (-86_400.0, -30.0, -1.0, 1.0, 45.0, 3_600.0, 30 * 86_400.0)


class FaultInjector:
    """Injects faults into one world until it is stopped."""

    def __init__(
        self,
        cluster: Cluster,
        operators: Operators,
        *,
        scheduler: Scheduler,
        administrator: TokenAdministrator,
    ) -> None:
        self._cluster = cluster
        self._world, self._dice = cluster.world, cluster.world.dice
        self._over = False
        self._clones = 0
        self._makes: dict[Fault, Callable[[], None]] = {
            Fault.CUT: self._cut,
            Fault.SLOW_LINES: self._slow_line,
            Fault.PARTITION: self._partition,
            Fault.STALL: self._stall,
            Fault.REGISTRY_CRASH: self._registry_crashes,
            Fault.CRASH_AT_ACTION: self._registry_crashes_soon,
            Fault.DISK_FULL: self._fill_disk,
            Fault.SAVE_ERROR: self._fail_saves,
            Fault.SLOW_DISK: self._slow_disk,
            Fault.HUNG_DISK: self._hang_disk,
            Fault.SAVE_UNKNOWN: self._lose_store_answers,
            Fault.WALL_JUMP: self._jump,
            Fault.AGENT_CRASH: self._agent_crashes,
            Fault.AGENT_CRASH_AT_ACTION: self._agent_crashes_soon,
            Fault.POWER_LOSS: self._power_fails,
            Fault.AGENT_STOP: self._stop_agent,
            Fault.AGENT_FREEZE: self._freeze,
            Fault.STATE_LOST: self._lose_state,
            Fault.CLONE: self._clone,
            Fault.GPU: self._lose_gpu,
            Fault.COPIED_GPU: self._copy_gpu,
            Fault.DRIVER: self._hang_driver,
            Fault.MODEL: self._break_model,
            Fault.LOAD: self._load,
            Fault.CHANGE: self._change,
            Fault.SCHEDULER_CRASH: scheduler.crash,
            Fault.DRAIN: operators.drain_or_resume,
            Fault.CORDON: operators.cordon_or_uncordon,
            Fault.GPU_CORDON: operators.cordon_or_uncordon_gpu,
            Fault.CHECK: self._fail_check,
            Fault.MIG: self._part_gpu,
            Fault.CONTROL: operators.order,
            Fault.FORGET: operators.forget,
            Fault.TOKENS: administrator.work,
            Fault.SAVE_LATE: self._delay_saves,
            Fault.TAKEOVER: self._take_over,
            Fault.GATEWAY_CRASH: self._gateway_crashes,
            Fault.CUT_OFF: self._cut_off,
            Fault.OWNER: Owners(cluster).ask,
        }

    def begin(self) -> None:
        """Let each kind of trouble that this world knows come now and then."""
        for trouble, mean in self._cluster.profile.faults.items():
            self._world.after(self._world.soon(mean), partial(self._strike, trouble))

    def end(self) -> None:
        """Put everything right; nothing goes wrong from now on."""
        self._over = True
        self._world.say("world", "all faults end")
        registry = self._cluster.registry
        trouble = registry.disk.faults
        trouble.full_until = trouble.slow_until = 0.0
        trouble.fails_next = trouble.unknown_next = trouble.late_next = 0
        trouble.hangs_until = 0.0
        registry.crashes_in = None
        if self._cluster.gateways is not None:
            self._cluster.gateways.heal()
        if not registry.running:
            registry.start()
        for agent in self._cluster.agents:
            agent.crashes_in = None
            agent.host.fix()
            agent.start()
            agent.look()

    def _strike(self, kind: Fault) -> None:
        if self._over:
            return
        self._makes[kind]()
        self._world.after(self._world.soon(self._cluster.profile.faults[kind]), lambda: self._strike(kind))

    def _agent(self) -> Agent:
        return self._dice.choice(self._cluster.agents)

    def _outage(self) -> float:
        return min(self._world.soon(_LONGEST_OUTAGE_SECONDS / 3), _LONGEST_OUTAGE_SECONDS)

    def _until_over(self, seconds: float, do: Callable[[], None]) -> None:
        """Do something later, unless everything has been put right by then."""
        self._world.after(seconds, lambda: None if self._over else do())

    # The network.

    def _cut(self) -> None:
        connections = self._cluster.network.connections
        if connections:
            connection = self._dice.choice(connections)
            self._world.say("network", f"breaks {connection.number} of {connection.agent.name}")
            self._cluster.network.cut(
                connection,
                agent_learns=self._dice.choice((0.01, 1.0, 40.0)),
                registry_learns=self._dice.choice((0.01, 1.0, 40.0, None)),
            )

    def _slow_line(self) -> None:
        if self._dice.random() < 1 / 3:
            agent, seconds = self._agent(), self._dice.choice((9.0, 11.0, 14.0, 40.0))
            self._world.say("network", f"will slow the next connection of {agent.name}: {seconds:g} s")
            self._cluster.network.slow_next(agent, seconds)
            return
        connections = self._cluster.network.connections
        if connections:
            connection = self._dice.choice(connections)
            seconds = self._dice.choice((2.0, 12.0, 50.0))
            self._world.say("network", f"slows {connection.number} of {connection.agent.name}: {seconds:g} s")
            self._cluster.network.slow(connection, seconds)

    def _partition(self) -> None:
        seconds, share = self._outage(), self._dice.choice((0.2, 0.5, 1.0))
        self._world.say("network", f"parts {share:.0%} of the nodes for {seconds:.1f} s")
        for agent in self._cluster.agents:
            if self._dice.random() < share:
                agent.unreachable_until = self._world.now + seconds

    # The registry.

    def _stall(self) -> None:
        registry = self._cluster.registry
        if registry.running:
            seconds = self._dice.choice((0.5, 3.0, 30.0, 60.0))
            self._world.say("registry", f"stands still for {seconds:g} s")
            registry.busy_until = max(registry.busy_until, self._world.now + seconds)

    def _registry_crashes(self) -> None:
        self._cluster.registry.crash(agents_learn_within=self._dice.choice((0.1, 3.0, 45.0)))
        self._start_registry_later()

    def _registry_crashes_soon(self) -> None:
        self._cluster.registry.crashes_in = self._dice.randint(0, 12)
        self._world.after(self._outage(), self._start_registry)

    def _start_registry_later(self) -> None:
        self._world.after(self._dice.choice((0.5, 5.0, 40.0)), self._start_registry)

    def _start_registry(self) -> None:
        if not self._cluster.registry.running:
            self._cluster.registry.start()

    def _take_over(self) -> None:
        self._cluster.registry.crash(agents_learn_within=self._dice.choice((0.1, 3.0)))
        self._world.after(self._dice.choice((0.1, 1.0, 8.0)), self._start_registry)

    def _gateway_crashes(self) -> None:
        gateways = self._cluster.gateways
        running = [] if gateways is None else [one for one in gateways.all if one.runs]
        if gateways is not None and running:
            gateway = self._dice.choice(running)
            gateways.crash(gateway, agents_learn_within=self._dice.choice((0.1, 3.0, 45.0)))
            self._world.after(self._dice.choice((1.0, 10.0, 60.0)), lambda: gateways.start(gateway))

    def _cut_off(self) -> None:
        gateways = self._cluster.gateways
        if gateways is not None:
            gateways.cut(self._dice.choice(gateways.all), self._dice.choice((0.1, 3.0, 8.0, 40.0)))

    def _fill_disk(self) -> None:
        self._world.say("disk", "is full")
        self._cluster.registry.disk.faults.full_until = self._world.now + self._outage()

    def _fail_saves(self) -> None:
        self._cluster.registry.disk.faults.fails_next += self._dice.choice((1, 1, 2))

    def _hang_disk(self) -> None:
        seconds = self._dice.choice((3.0, 6.0, 20.0, 60.0))
        self._world.say("disk", f"hangs for {seconds:g} s")
        self._cluster.registry.disk.faults.hangs_until = self._world.now + seconds

    def _lose_store_answers(self) -> None:
        self._cluster.registry.disk.faults.unknown_next += self._dice.choice((1, 1, 2))

    def _delay_saves(self) -> None:
        self._cluster.registry.disk.faults.late_next += self._dice.choice((1, 1, 2))

    def _slow_disk(self) -> None:
        self._world.say("disk", "is slow")
        self._cluster.registry.disk.faults.slow_until = self._world.now + self._outage()

    def _jump(self) -> None:
        seconds = self._dice.choice(_WALL_JUMPS)
        self._world.say("registry", f"its wall clock jumps by {seconds:g} s")
        self._world.wall_offset += seconds

    # The agents.

    def _agent_crashes(self) -> None:
        agent = self._agent()
        agent.crash(without_a_word=False)
        self._until_over(self._dice.choice((1.0, 5.0, 60.0)), agent.start)

    def _agent_crashes_soon(self) -> None:
        agent = self._agent()
        agent.crashes_in = self._dice.randint(0, 8)
        self._until_over(self._outage(), agent.start)

    def _power_fails(self) -> None:
        agent = self._agent()
        agent.host.jobs.clear()
        agent.crash(without_a_word=True)
        self._until_over(self._dice.choice((10.0, 60.0, 200.0)), agent.start)

    def _stop_agent(self) -> None:
        agent = self._agent()
        agent.stop(drain=self._dice.random() < 1 / 2, deadline_seconds=self._dice.choice((None, 5.0, 30.0)))
        self._until_over(self._dice.choice((3.0, 30.0, 200.0)), agent.start)

    def _freeze(self) -> None:
        agent = self._agent()
        if agent.machine is not None:
            seconds = self._dice.choice((2.0, 20.0, 90.0))
            self._world.say(agent.name, f"stands still for {seconds:g} s")
            agent.busy_until = max(agent.busy_until, self._world.now + seconds)

    def _lose_state(self) -> None:
        agent = self._agent()
        agent.crash(without_a_word=False)
        self._world.say(agent.name, "loses its state directory")
        agent.disk.node_id = agent.disk.node_token = None
        self._until_over(5.0, agent.start)

    def _clone(self) -> None:
        """Copy a machine with its state directory, as an image of a disk does."""
        model = self._agent()
        if self._clones >= _MOST_CLONES or model.disk.node_id is None:
            return
        self._clones += 1
        self._world.say("world", f"clones {model.name}")
        self._cluster.agents.append(model.clone(f"clone-{self._clones}"))
        self._cluster.agents[-1].start()

    def _lose_gpu(self) -> None:
        host = self._agent().host
        place = self._dice.randrange(host.gpu_count())
        host.lost.add(place)
        self._changed(host, lambda: host.lost.discard(place))

    def _fail_check(self) -> None:
        """Let a check of the whole machine fail, or the check of one of its GPUs."""
        host = self._agent().host
        place = self._dice.choice((None, *range(host.gpu_count())))
        host.failed_checks.add(place)
        self._changed(host, lambda: host.failed_checks.discard(place))

    def _copy_gpu(self) -> None:
        """Let a machine declare a GPU of another one, as a cloned virtual machine does."""
        first, second = self._agent().host, self._agent().host
        if first is not second and first.copied is None and second.copied is None:
            first.copied = second.uuid(0)
            self._changed(first, lambda: setattr(first, "copied", None))

    def _part_gpu(self) -> None:
        """Let a machine's owner part a GPU into MIG devices, or join them again, whatever runs there."""
        host = self._agent().host
        if host.partable:
            place = self._dice.choice(host.partable)
            host.parted ^= {place}
            verb = "parts" if place in host.parted else "joins the devices of"
            self._world.say(host.name, f"{verb} {host.uuid(place)}")
            self._look(host)

    def _hang_driver(self) -> None:
        host = self._agent().host
        if host.hung_since is None:
            host.hung_since = self._world.now
            self._changed(host, lambda: setattr(host, "hung_since", None))

    def _break_model(self) -> None:
        host, model = self._agent().host, self._dice.choice(MODELS)
        host.broken.add(model)
        self._changed(host, lambda: host.broken.discard(model))

    def _load(self) -> None:
        host = self._agent().host
        host.busy = True
        self._changed(host, lambda: setattr(host, "busy", False))

    def _change(self) -> None:
        host = self._agent().host
        host.owner = replace(
            host.owner,
            labels={"zone": self._dice.choice(ZONES)},
            max_concurrent_jobs=self._dice.choice((1, 2, 3, 4)),
            accept_public_jobs=self._dice.random() < 2 / 3,
        )
        self._look(host)

    def _changed(self, host: SimulatedHost, fix: Callable[[], None]) -> None:
        """Let an agent find what happened to its machine, and repair that after a while."""
        self._world.say(
            host.name, f"lost {sorted(host.lost)}, broken {sorted(host.broken)}, busy {host.busy}"
        )
        self._look(host)

        def repaired() -> None:
            fix()
            self._look(host)

        self._until_over(self._world.soon(60.0), repaired)

    def _look(self, host: SimulatedHost) -> None:
        for agent in self._cluster.agents:
            if agent.host is host:
                agent.look()
