"""What a running registry takes over when its settings are read again.

How much it logs and how often it tells its own figures hold at once, and its certificate's files are read
again. All else waits for a restart, which no node and no claim is lost by. Reads no settings itself.
"""

from gpu_agent.runtime.logs import listen_from
from gpu_agent.runtime.reloading import Reloaded
from gpu_agent.server.settings import RegistrySettings
from gpu_agent.server.tls import Encryption

AT_ONCE = frozenset({"log_level", "performance_interval_seconds"})
"""The settings that a running registry can take over."""


class Renewed:
    """What can change while a registry runs."""

    def __init__(self, settings: RegistrySettings) -> None:
        self.performance_interval_seconds = settings.performance_interval_seconds
        self.encryption: Encryption | None = None
        """Once it is opened, where both ports are encrypted."""

    async def take_over(self, told: Reloaded[RegistrySettings]) -> None:
        """Go on with settings that were read again."""
        self.performance_interval_seconds = told.settings.performance_interval_seconds
        if "log_level" in told.changed:
            listen_from(told.settings.log_level)
        if self.encryption is not None:
            await self.encryption.reload()
