"""Tells commands on this machine where the operators' API is and, encrypted, by which key it is known.

It lies beside the operator token, from the start until the end, and follows a certificate that is renewed
with another key. Without it commands take their usual address: a disk that refuses it is told of, no more.
"""

import asyncio
from dataclasses import replace
from pathlib import Path

from gpu_agent.runtime.left_address import LeftAddress, leave, take_back
from gpu_agent.runtime.logs import EventLog
from gpu_agent.runtime.tasks import in_thread
from gpu_agent.server.address import LOOPBACK, Address
from gpu_agent.server.tls import Encryption

WRITE_SECONDS = 5.0
_ANYWHERE = {"0.0.0.0": LOOPBACK, "::": "::1"}  # noqa: S104 - what is listened on, not what we choose
_LOG = EventLog("registry")


class OwnAddress:
    """What one registry leaves in its state directory; without one it leaves nothing."""

    def __init__(self, folder: Path | None, address: Address, encryption: Encryption | None) -> None:
        self._folder = folder
        self._address = replace(address, host=_ANYWHERE.get(address.host, address.host))
        self._encryption = encryption
        if encryption is not None:
            encryption.renewed = self.leave

    async def leave(self) -> None:
        """Write it, as it is now."""
        folder = self._folder
        if folder is None:
            return
        scheme, pin = ("http", None) if self._encryption is None else ("https", self._encryption.pin)
        left = LeftAddress(f"{scheme}://{self._address}", pin)
        try:
            await in_thread("own-address", lambda: leave(folder, left), deadline_seconds=WRITE_SECONDS)
        except TimeoutError:
            _LOG.warning("own_address_not_left", problem="the disk does not answer")
        except OSError as error:
            _LOG.warning("own_address_not_left", problem=error.strerror or str(error))

    async def stay(self) -> None:
        """Wait until cancelled, then remove it: nobody answers there any more."""
        try:
            await asyncio.Event().wait()
        finally:
            if self._folder is not None:
                take_back(self._folder)
