"""Health over random courses of readings: what holds whatever happens to whichever GPU."""

from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_agent.probe.health.reasons import REASONS, reason
from gpu_agent.probe.health.tracker import HealthTracker, MissedReading
from gpu_agent.wire.inventory import Gpu, GpuProcess, GpuReport, Health, Outcome

WALL, SECONDS = 1_800_000_000.0, 5.0
GPUS = 3
CLEAN_READINGS = 3

SIGNS = ("gpu_lost", "gpu_reset_required", "row_remap_pending", "recovery_reset", "recovery_drain_p2p")
EVENTS = tuple(code for code in REASONS if code.startswith("xid_"))
HARMLESS = ("xid_13", "xid_31", "xid_43", "xid_45", "xid_63", "xid_68", "xid_154", "xid_9999")


@dataclass(frozen=True, slots=True)
class Look:
    """What one reading finds of one GPU."""

    sign: str | None = None
    event: str | None = None
    reset: bool = False
    throttled: bool = False
    pid: int = 1

    @property
    def unwell(self) -> bool:
        return self.sign is not None or self.event in EVENTS


LOOKS = st.builds(
    Look,
    sign=st.none() | st.sampled_from(SIGNS),
    event=st.none() | st.sampled_from(EVENTS + HARMLESS),
    reset=st.booleans(),
    throttled=st.booleans(),
    pid=st.integers(1, 3),
) | st.just(Look())
SOUND = st.builds(
    Look, event=st.none() | st.sampled_from(HARMLESS), reset=st.booleans(), pid=st.integers(1, 3)
)
MISSES = st.sampled_from(["missed", "broken"])


@dataclass(slots=True)
class Course:
    """A tracker led through readings, with a plain account of each GPU's clean readings beside it."""

    tracker: HealthTracker = field(default_factory=HealthTracker)
    clean: dict[str, int] = field(default_factory=dict)
    energy: dict[int, int] = field(default_factory=dict)
    now: float = 0.0

    def look(self, looks: tuple[Look, ...]) -> GpuReport:
        gpus = tuple(self._gpu(index, look) for index, look in enumerate(looks))
        for gpu, look in zip(gpus, looks, strict=True):
            self.clean[gpu.uuid] = 0 if look.unwell else self.clean.get(gpu.uuid, CLEAN_READINGS) + 1
        return self._observe(GpuReport(outcome=Outcome.OK, gpus=gpus))

    def miss(self, how: str) -> GpuReport:
        if how == "broken":
            return self._observe(GpuReport(outcome=Outcome.DRIVER_BROKEN, detail="Reboot."))
        return self._observe(MissedReading(reason="nvml_hung", since=self.now, detail="No answer."))

    def _observe(self, result: GpuReport | MissedReading) -> GpuReport:
        self.now += SECONDS
        return self.tracker.observe(result, now_wall=WALL + self.now, now_mono=self.now)

    def _gpu(self, index: int, look: Look) -> Gpu:
        gpu = Gpu(
            uuid=f"GPU-{index}",
            name="H100",
            index=index,
            reasons=() if look.sign is None else (reason(look.sign),),
            events={} if look.event is None else {look.event: 1},
        )
        if look.sign in ("gpu_lost", "gpu_reset_required"):
            return gpu
        self.energy[index] = 1 if look.reset else self.energy.get(index, 1_000_000) + 1_000
        return replace(
            gpu,
            energy_mj=self.energy[index],
            retirement_pending=look.sign == "row_remap_pending",
            recovery_action="none",
            throttle_reasons=("hw_thermal_slowdown",) if look.throttled else (),
            processes=(GpuProcess(pid=look.pid),),
        )


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(*[LOOKS] * GPUS) | MISSES, min_size=1, max_size=40))
def test_no_gpu_is_ok_with_a_reason_or_before_three_clean_readings(
    steps: list[tuple[Look, ...] | str],
) -> None:
    course = Course()
    for step in steps:
        if isinstance(step, str):
            course.miss(step)
            continue
        report = course.look(step)
        for gpu, look in zip(report.gpus, step, strict=True):
            codes = {each.code for each in gpu.reasons}
            if gpu.health is Health.OK:
                assert not codes
                assert course.clean[gpu.uuid] >= CLEAN_READINGS
            assert {look.sign} - {None} <= codes
            assert {look.event} & set(EVENTS) <= codes


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(SOUND, LOOKS, LOOKS), min_size=1, max_size=40))
def test_a_sound_gpu_stays_ok_whatever_happens_to_the_others(steps: list[tuple[Look, ...]]) -> None:
    course = Course()
    for step in steps:
        assert course.look(step).gpus[0].health is Health.OK


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(*[LOOKS] * GPUS) | MISSES, min_size=1, max_size=30))
def test_every_gpu_is_ok_again_once_it_was_reset_and_read_in_peace(
    steps: list[tuple[Look, ...] | str],
) -> None:
    course = Course()
    for step in steps:
        if isinstance(step, str):
            course.miss(step)
        else:
            course.look(step)
    for _ in range(3):  # it runs for a while first: a reset is seen by a count that falls
        course.look((Look(),) * GPUS)
    course.look((Look(reset=True),) * GPUS)
    reports = [course.look((Look(),) * GPUS) for _ in range(CLEAN_READINGS)]
    assert [gpu.health for gpu in reports[-1].gpus] == [Health.OK] * GPUS


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(*[LOOKS] * GPUS) | MISSES, min_size=2, max_size=40))
def test_an_active_reason_has_its_first_since(steps: list[tuple[Look, ...] | str]) -> None:
    course = Course()
    before: dict[tuple[str, str], float | None] = {}
    for step in steps:
        report = course.miss(step) if isinstance(step, str) else course.look(step)
        now = {(gpu.uuid, each.code): each.since for gpu in report.gpus for each in gpu.reasons}
        assert all(since is not None and since <= WALL + course.now for since in now.values())
        assert all(since == now[key] for key, since in before.items() if key in now)
        before = now
