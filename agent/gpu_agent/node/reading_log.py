"""What changes about reading the GPUs, told in the log once each: that a driver hangs, answers, is there.

It refuses to judge a GPU: what becomes of one stands in the log of its health.
"""

from gpu_agent.probe.health import Missed
from gpu_agent.runtime.logs import EventLog
from gpu_agent.wire.inventory import GpuReport, Outcome

_LOG = EventLog("node.prober")


class ReadingLog:
    """Remembers what was told last."""

    def __init__(self) -> None:
        self._outcome: Outcome | None = None
        self._missing: str | None = None

    def note(self, result: GpuReport | Missed) -> None:
        """Tell of a reading, if it is other than the one before."""
        if isinstance(result, Missed):
            if self._missing is None:
                _LOG.warning("gpu_reading_missed", reason=result.reason, detail=result.detail)
            self._missing = result.reason
            return
        if self._missing is not None:
            _LOG.info("gpu_reading_recovered", reason=self._missing)
            self._missing = None
        if result.outcome is not self._outcome:
            self._outcome = result.outcome
            _LOG.info(
                "gpus_probed", outcome=result.outcome.value, detail=result.detail, gpu_count=len(result.gpus)
            )
