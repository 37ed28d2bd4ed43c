"""What to say in `node_register`, and how refusals change it (§3.1, §3.3).

Remembers what this connection and this identity have been refused, and which schema to begin
the next connection with. Decides nothing about time: when to try again is the machine's.

An older scheduler drops what it cannot read in silence (§9). So after silence the next connection
begins with the other schema, and the one that such a scheduler acknowledged is kept. A registry that
names a schema in its ack is no older one: it is told everything, at once, and its silence is slowness.
"""

from collections.abc import Mapping
from typing import Any

from gpu_agent.session.types import SessionError
from gpu_agent.wire.codes import SUPPORTED_SCHEMA_VERSIONS
from gpu_agent.wire.declaration import NEWEST_SCHEMA, Declaration, registration
from gpu_agent.wire.messages import GpuDeclaration, NodeRegister

_OLDEST_SCHEMA = SUPPORTED_SCHEMA_VERSIONS[0]
_SILENCES_OF_A_SLOW_REGISTRY = 3


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
        self._begins_with = NEWEST_SCHEMA
        self._downgraded = False
        self._raised = False
        """True from going back to the newest schema, after an older one was accepted, until it is too."""
        self._knows_schemas = False
        """True once this registry named a schema in an ack: silence then means slowness."""
        self._silences = 0
        self._in_conflict = False
        self._owner_changed = False
        """True from the owner's word that a registration tells something new until one has told it."""
        self._refused_gpus: tuple[_Identity, ...] | None = None

    @property
    def possible(self) -> bool:
        """True when there is a GPU to declare that the registry has not just refused (R-01)."""
        declaration = self.declaration
        return (
            declaration is not None and declaration.has_gpu and _identities(declaration) != self._refused_gpus
        )

    @property
    def knows_schemas(self) -> bool:
        """True once the registry has named a schema: it is no older scheduler (§9)."""
        return self._knows_schemas

    @property
    def outdated(self) -> bool:
        """True when the owner wants told what no beat tells; an older scheduler hears no second one (§9)."""
        sent, current = self._sent, self.declaration
        if not (self._owner_changed and self._knows_schemas) or sent is None or current is None:
            return False
        return _told_once(current) != _told_once(sent)

    def owner_changed(self) -> None:
        """Register anew once the declaration says otherwise what only a registration tells."""
        self._owner_changed = True

    def compose(self) -> NodeRegister:
        """Write the message. There must be a declaration."""
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
        """Forget what was refused on the one before: the registry may have been replaced."""
        self.schema_version = self._begins_with
        self._downgraded = False

    def unanswered(self) -> None:
        """Begin the next connection with the other schema: this one may not have been understood.

        A registry that knows schemas would have said so; only when it stays silent several times
        in a row may another, older one stand in its place.
        """
        self._silences += 1
        if self._knows_schemas and self._silences < _SILENCES_OF_A_SLOW_REGISTRY:
            self._begins_with = NEWEST_SCHEMA
            return
        newest = self.schema_version == NEWEST_SCHEMA
        self._begins_with = _OLDEST_SCHEMA if newest else NEWEST_SCHEMA

    def raise_schema(self) -> bool:
        """Go back to the newest schema; False when it was refused here, or raised in vain before."""
        if self.schema_version == NEWEST_SCHEMA or self._downgraded or self._raised:
            return False
        self._raised = True
        self.schema_version = NEWEST_SCHEMA
        return True

    def accepted(self, node_id: str, *, names_schema: bool) -> Declaration:
        """Take the registry's verdict; returns what it was told. What was refused before is over."""
        self._begins_with = NEWEST_SCHEMA if names_schema else self.schema_version
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
        """Declare what was sent no more: register again only when other GPUs appear."""
        self._refused_gpus = None if self._sent is None else _identities(self._sent)

    def forget_id(self) -> bool:
        """Suggest no id from now on; False when this is the second conflict in a row."""
        if self._in_conflict:
            return False
        self._in_conflict = True
        self.node_id = None
        return True

    def downgrade(self, details: Mapping[str, Any] | None) -> bool:
        """Take the highest schema that both sides know; False when there is none to try, or no more."""
        stated = (details or {}).get("supported")
        supported = [one for one in stated if isinstance(one, str)] if isinstance(stated, list) else []
        theirs = supported or [_OLDEST_SCHEMA]
        known = [version for version in SUPPORTED_SCHEMA_VERSIONS if version in theirs]
        if self._downgraded or not known or known[-1] == self.schema_version:
            return False
        self._downgraded = True
        self.schema_version = known[-1]
        return True


def _told_once(declaration: Declaration) -> tuple[object, ...]:
    """What a registration tells and no beat repeats (§3.4)."""
    return (
        declaration.owner.endpoint,
        dict(declaration.features_supported),
        tuple(declaration.advanced_features),
    )


_Identity = tuple[str | None, str, float | None]


def _identities(declaration: Declaration) -> tuple[_Identity, ...]:
    return tuple(_identity(gpu) for gpu in declaration.hardware.gpus)


def _identity(gpu: GpuDeclaration) -> _Identity:
    return (gpu.uuid, gpu.name, gpu.memory_gb)
