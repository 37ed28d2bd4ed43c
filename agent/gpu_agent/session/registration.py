"""What `node_register` carries, and how refusals change it (§3.1, §3.3).

It remembers what this connection and this identity have been refused, and which schema the next connection
begins with. Times are the machine's decision.

An older scheduler drops what it cannot read without an answer (§9). So after silence the next connection
begins with the other schema, and the one that such a scheduler acknowledges is used from then on. A registry
that names a schema in its ack is no older one: the agent sends it everything at once, and takes its silence
for slowness.
"""

from collections.abc import Mapping
from typing import Any

from gpu_agent.session.types import SessionError
from gpu_agent.wire.codes import OLDEST_SCHEMA, SUPPORTED_SCHEMA_VERSIONS
from gpu_agent.wire.declaration import NEWEST_SCHEMA, Declaration, registration
from gpu_agent.wire.messages import GpuDeclaration, NodeRegister

_TOLERATED_SILENCES = 3
"""After so many unanswered attempts an older registry may have replaced one that knows schemas."""

_GpuIdentity = tuple[str | None, str, float | None]


class NothingDeclaredError(SessionError):
    """The machine would register before anything was declared: our fault."""


class Registration:
    """The identity and the declaration that the next `node_register` carries."""

    def __init__(self, *, node_id: str | None) -> None:
        self.node_id = node_id
        self.declaration: Declaration | None = None
        self.running_jobs: tuple[str, ...] | None = None
        self.schema_version = NEWEST_SCHEMA
        self._sent: Declaration | None = None
        self._first_schema = NEWEST_SCHEMA
        """With which the next connection begins."""
        self._downgraded = False
        self._raised = False
        """True after a return to the newest schema, while only an older one has been accepted."""
        self._knows_schemas = False
        """True once this registry named a schema in an ack."""
        self._silences = 0
        self._in_conflict = False
        self._owner_changed = False
        """True from an owner's change that only a registration carries until one has carried it."""
        self._refused_gpus: tuple[_GpuIdentity, ...] | None = None

    @property
    def possible(self) -> bool:
        """True when there is a GPU to declare that the registry has not just refused (R-01)."""
        declaration = self.declaration
        return (
            declaration is not None
            and declaration.has_gpu
            and _gpu_identities(declaration) != self._refused_gpus
        )

    @property
    def knows_schemas(self) -> bool:
        """True once the registry has named a schema: it is no older scheduler (§9)."""
        return self._knows_schemas

    @property
    def outdated(self) -> bool:
        """True when the owner changed what no heartbeat carries; an older scheduler never (§9)."""
        sent, current = self._sent, self.declaration
        if not (self._owner_changed and self._knows_schemas) or sent is None or current is None:
            return False
        return _registration_only(current) != _registration_only(sent)

    def owner_changed(self) -> None:
        """Have the node register again once what only a registration carries has changed."""
        self._owner_changed = True

    def compose(self) -> NodeRegister:
        """Write the message; raises `NothingDeclaredError` before anything was declared."""
        if self.declaration is None:
            raise NothingDeclaredError
        if self.outdated:
            self._owner_changed = False
        self._sent = self.declaration
        return registration(
            self._sent,
            node_id=self.node_id,
            schema_version=self.schema_version,
            running_jobs=self.running_jobs,
        )

    def connection_opened(self) -> None:
        """Discard what was refused on the connection before: another registry may answer here."""
        self.schema_version = self._first_schema
        self._downgraded = False

    def unanswered(self) -> None:
        """Begin the next connection with the other schema: this one may not have been understood.

        A registry that knows schemas would have answered. It is expected to be slow, until it stays silent
        several times in a row.
        """
        self._silences += 1
        if self._knows_schemas and self._silences < _TOLERATED_SILENCES:
            self._first_schema = NEWEST_SCHEMA
            return
        newest = self.schema_version == NEWEST_SCHEMA
        self._first_schema = OLDEST_SCHEMA if newest else NEWEST_SCHEMA

    def raise_schema(self) -> bool:
        """Return to the newest schema; False when it was refused here, or raised in vain before."""
        if self.schema_version == NEWEST_SCHEMA or self._downgraded or self._raised:
            return False
        self._raised = True
        self.schema_version = NEWEST_SCHEMA
        return True

    def accepted(self, node_id: str, *, names_schema: bool) -> Declaration:
        """Note an ack; returns the declaration that it acknowledges. Earlier refusals no longer count."""
        self._first_schema = NEWEST_SCHEMA if names_schema else self.schema_version
        self._knows_schemas = names_schema
        self._silences = 0
        if self.schema_version == NEWEST_SCHEMA:
            self._raised = False
        self.node_id = node_id
        self._in_conflict = False
        self._refused_gpus = None
        if self._sent is None:
            raise NothingDeclaredError
        return self._sent

    def gpus_refused(self) -> None:
        """Register again only when other GPUs than those sent appear."""
        self._refused_gpus = None if self._sent is None else _gpu_identities(self._sent)

    def drop_id(self) -> bool:
        """Suggest no id from now on; False when this is the second conflict in a row."""
        if self._in_conflict:
            return False
        self._in_conflict = True
        self.node_id = None
        return True

    def downgrade(self, details: Mapping[str, Any] | None) -> bool:
        """Take the highest schema that both sides know; False when there is none left to try."""
        stated = (details or {}).get("supported")
        supported = [one for one in stated if isinstance(one, str)] if isinstance(stated, list) else []
        theirs = supported or [OLDEST_SCHEMA]
        known = [version for version in SUPPORTED_SCHEMA_VERSIONS if version in theirs]
        if self._downgraded or not known or known[-1] == self.schema_version:
            return False
        self._downgraded = True
        self.schema_version = known[-1]
        return True


def _registration_only(declaration: Declaration) -> tuple[object, ...]:
    """What a registration carries and no heartbeat repeats (§3.4)."""
    return (
        declaration.owner.endpoint,
        dict(declaration.features_supported),
        tuple(declaration.advanced_features),
    )


def _gpu_identities(declaration: Declaration) -> tuple[_GpuIdentity, ...]:
    return tuple(_gpu_identity(gpu) for gpu in declaration.hardware.gpus)


def _gpu_identity(gpu: GpuDeclaration) -> _GpuIdentity:
    return (gpu.uuid, gpu.name, gpu.memory_gb)
