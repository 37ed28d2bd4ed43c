"""Opens the registry's database by its `--store` URL, alone and safely, and restores a backup of it.

`memory`, `sqlite` (the file `registry.db` in the state directory), `sqlite:///PATH` with an absolute path, or
`etcd://HOST:PORT,HOST:PORT/PREFIX`.

Who can write a registry's database can make himself an admin, because the digests of all tokens are in it. So
a database file or directory that other users can write is refused, not corrected: what it holds may be theirs
by now, and SQLite would read a journal that they put beside it. A file that others can only read is made
private.
"""

import os
import re
import stat
import time
import urllib.parse
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import assert_never

from gpu_agent.runtime import state_dir
from gpu_agent.runtime.address import Address
from gpu_agent.runtime.files import AlreadyLockedError, FileLock, foreign_link
from gpu_agent.runtime.tls.contexts import OwnCertificate, RenewableContext, TlsFileError, client_context
from gpu_agent.store.backup import Contents, inspect_backup, read_backup, replace_database
from gpu_agent.store.base import Store, StoreError, UnusableError
from gpu_agent.store.etcd.client import Access
from gpu_agent.store.etcd.store import EtcdStore
from gpu_agent.store.memory import MemoryStore
from gpu_agent.store.sqlite import SqliteStore, database_error

MEMORY, SQLITE = "memory", "sqlite"
FILE = "registry.db"

_SQLITE_URL, _ETCD_URL = f"{SQLITE}://", "etcd://"
_ETCD_FORM = f"{_ETCD_URL}HOST:PORT,HOST:PORT/PREFIX"
DEFAULT_PREFIX = "gpu-registry"
"""Below it lie the keys in etcd where the URL names no prefix."""
_PREFIX = re.compile(r"[\w.~-]+(/[\w.~-]+)*", re.ASCII)

STORE_FORMS = f"`{SQLITE}`, `{SQLITE}:///PATH`, `{_ETCD_FORM}`, `{MEMORY}`"
"""How the setting `store` may be written."""
STORE_MEANINGS = (
    f"the file `{FILE}` in the state directory, another file, an etcd cluster (its members and the prefix of "
    f"the keys there, else `{DEFAULT_PREFIX}`), or memory, which loses it at a restart"
)
"""What these mean, in the same order."""
_FORMS = (
    f"write {SQLITE} (a file in the state directory), {SQLITE}:///PATH with a whole path, {_ETCD_FORM}, or "
    f"{MEMORY}"
)
_FILE_MODE = 0o600
_OTHERS_WRITE, _OTHERS_READ = 0o022, 0o044


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreResult:
    """What `restore` did."""

    place: str
    """Where the restored database is: a file, or a URL of etcd."""
    holds: Contents
    before: Path | None
    """The file where what it replaced is now; None where there was nothing."""


class DatabaseExistsError(StoreError):
    """There is a database already, and `replace` was not given."""


@dataclass(frozen=True, slots=True)
class MemoryLocation:
    """`--store memory`: nothing is on a disk."""


@dataclass(frozen=True, slots=True)
class SqliteLocation:
    """`--store sqlite…`: a file."""

    named: Path
    """Absolute, as the setting names it; it may be a link."""
    in_state_dir: bool

    @property
    def path(self) -> Path:
        """The file itself, also behind a link, because its journal is beside it."""
        return self.named.resolve() if self.named.is_symlink() else self.named


@dataclass(frozen=True, slots=True)
class EtcdLocation:
    """`--store etcd://…`: keys in a cluster."""

    members: tuple[Address, ...]
    prefix: str

    def __str__(self) -> str:
        return f"{_ETCD_URL}{','.join(map(str, self.members))}/{self.prefix}"


Location = MemoryLocation | SqliteLocation | EtcdLocation


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdSecurity:
    """How the registry and etcd prove themselves to each other; nothing of it stands in a URL."""

    ca_file: Path | None = None
    """Issues the certificates of etcd's members; None with `own`: the system's authorities do."""
    own: OwnCertificate | None = None
    user: str | None = None
    password_file: Path | None = None

    @property
    def encrypted(self) -> bool:
        """Whether TLS is used."""
        return self.ca_file is not None or self.own is not None


_NO_SECURITY = EtcdSecurity()


def check_location(location: str) -> str:
    """Return a valid `--store` value; raises `ValueError` that names the valid forms."""
    parse_location(location, Path())
    return location


def parse_location(location: str, folder: Path) -> Location:
    """Parse a `--store` value; `folder` is the state directory. Raises `ValueError`."""
    if location == MEMORY:
        return MemoryLocation()
    if location.startswith(_ETCD_URL):
        return _etcd_location(location)
    in_state_dir = location == SQLITE
    named = folder / FILE if in_state_dir else _path_in_url(location)
    return SqliteLocation(named.absolute(), in_state_dir=in_state_dir)


def open_store(location: str, folder: Path, *, etcd: EtcdSecurity = _NO_SECURITY) -> Store:
    """Open the store at a location; `folder` is the state directory.

    Raises `StoreError`, or `StateDirectoryError` where the state directory is needed and not safe.
    """
    match parse_location(location, folder):
        case MemoryLocation():
            return MemoryStore()
        case SqliteLocation() as found:
            if found.in_state_dir:
                state_dir.prepare_state_dir(folder)
            return _open_sqlite(found.path)
        case EtcdLocation() as found:
            return _open_etcd(found, etcd)
        case _ as unreachable:
            assert_never(unreachable)


def refuse_foreign_state_dir(folder: Path, location: str) -> None:
    """Raise `StateDirectoryError` where the directory belongs to another registry, with its operator token.

    A registry whose own database is elsewhere does not know that token, and would overwrite it.
    """
    theirs = folder / FILE
    if theirs.exists() and not _is_at(parse_location(location, folder), theirs):
        raise state_dir.StateDirectoryError(
            f"the state directory {folder} is that of the registry whose database is {theirs}, and its "
            "operator token would be lost: name another directory with --state-dir"
        )


def lock_database(path: Path) -> FileLock:
    """Keep all other registries from a database; raises `StoreError` that names the one which uses it."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return FileLock(path.with_name(f"{path.name}.lock"))
    except AlreadyLockedError as locked:
        raise StoreError(
            f"the registry's database {path} is in use by process {locked.holder or 'of another registry'}: "
            "only one registry may use it; stop that one, or name another file with --store sqlite:///PATH"
        ) from None
    except OSError as error:
        raise database_error(path, error) from error


def secure_location(path: Path) -> None:
    """Check that only its owner can write the database at `path`, present or not; raises `UnusableError`.

    Its directory must exist. Raises `OSError` from the disk.
    """
    if not hasattr(os, "geteuid"):
        return  # Windows separates users by what a folder grants
    for folder in dict.fromkeys((path.parent, path.resolve().parent)):
        _check_owner_and_mode(path, folder, owners=(os.geteuid(), 0), fix=f"chmod go-w {folder}")
    if path.exists():
        mode = _check_owner_and_mode(path, path, owners=(os.geteuid(),), fix=f"chmod 600 {path}")
        if mode & _OTHERS_READ:
            path.chmod(_FILE_MODE)  # it was restored from a backup, say


def restore(
    backup: Path, location: str, folder: Path, *, replace: bool, etcd: EtcdSecurity = _NO_SECURITY
) -> RestoreResult:
    """Put what `backup` holds where a registry with this `--store` looks for it; raises `StoreError`.

    With `replace` a database that is there already is renamed, or for etcd written to a file in the state
    directory `folder`; without, nothing changes. A link that another user made is not followed. No registry
    may use the database meanwhile.
    """
    match parse_location(location, folder):
        case MemoryLocation():
            raise StoreError(
                "a registry with `--store memory` keeps nothing on disk: name the path of a database with "
                "--store sqlite:///PATH"
            )
        case SqliteLocation() as found:
            return _restore_sqlite(backup, found, replace=replace)
        case EtcdLocation() as found:
            with closing(_open_etcd(found, etcd)) as store:
                return _restore_etcd(backup, store, folder, replace=replace)
        case _ as unreachable:
            assert_never(unreachable)


def _open_sqlite(path: Path) -> SqliteStore:
    lock = lock_database(path)
    try:
        secure_location(path)
        return SqliteStore(path, released=lock.release)
    except OSError as error:
        lock.release()
        raise database_error(path, error) from error
    except StoreError:
        lock.release()
        raise


def _open_etcd(location: EtcdLocation, security: EtcdSecurity) -> EtcdStore:
    return EtcdStore(etcd_access(location, security, etcd_tls(security)), location.prefix)


def etcd_tls(security: EtcdSecurity) -> RenewableContext | None:
    """Return the context for etcd, None without TLS; raises `UnusableError`."""
    if not security.encrypted:
        return None
    try:
        return RenewableContext(partial(client_context, ca_file=security.ca_file, own=security.own))
    except TlsFileError as error:
        raise UnusableError(str(error)) from None


def etcd_access(location: EtcdLocation, security: EtcdSecurity, tls: RenewableContext | None) -> Access:
    """Return how a cluster is reached; raises `UnusableError`."""
    if security.password_file is not None:
        _check_password_file(security.password_file)
    return Access(
        endpoints=tuple((one.host, one.port) for one in location.members),
        tls=None if tls is None else lambda: tls.context,
        user=security.user,
        password_file=security.password_file,
    )


def _check_password_file(path: Path) -> None:
    """Raise `UnusableError` where others may read it, or no one."""
    try:
        mode = path.stat().st_mode
        path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UnusableError(f"etcd_password_file {path} cannot be read ({error}): name another one") from None
    if os.name == "posix" and mode & _OTHERS_READ & ~stat.S_IRGRP:
        raise UnusableError(
            f"everybody on this machine may read the password in {path}: run `chmod 600 {path}`, and give "
            "that user of etcd another one if others use this machine"
        )


def _restore_etcd(backup: Path, store: EtcdStore, folder: Path, *, replace: bool) -> RestoreResult:
    if not backup.is_file():
        raise StoreError(f"there is no file {backup}")
    holds, before = inspect_backup(backup), None
    if running := store.instances():  # they would go on with what they have read
        raise StoreError(
            f"{store} is in use by the instance{'s' if len(running) > 1 else ''} {', '.join(running)}: stop "
            "all of them first; one that was killed is forgotten after 5 s"
        )
    there = store.load()
    if there.changes or there.recent:
        if not replace:
            raise DatabaseExistsError(f"there is a database at {store} already; it was not changed")
        state_dir.prepare_state_dir(folder)
        before = folder / f"etcd.replaced-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.db"
        store.backup(before)
    store.replace(read_backup(backup))
    return RestoreResult(place=str(store), holds=holds, before=before)


def _is_at(location: Location, file: Path) -> bool:
    """Say whether a location is this file, which exists."""
    match location:
        case MemoryLocation() | EtcdLocation():
            return False
        case SqliteLocation() as found:
            return found.path.exists() and found.path.samefile(file)
        case _ as unreachable:
            assert_never(unreachable)


def _restore_sqlite(backup: Path, location: SqliteLocation, *, replace: bool) -> RestoreResult:
    path, planted = location.path, _planted_link(location.named)
    if planted is not None:  # root would let the link's author choose which file of the machine is replaced
        raise StoreError(f"nothing was restored: {planted}, or run this as that user")
    lock = lock_database(path)
    try:
        if not backup.is_file():
            raise StoreError(f"there is no file {backup}")
        if path.exists() and backup.samefile(path):
            raise StoreError(f"{backup} is the registry's database itself: name a backup of it")
        holds = inspect_backup(backup)
        if path.exists() and not replace:
            raise DatabaseExistsError(f"there is a database at {path} already; it was not changed")
        return RestoreResult(place=str(path), holds=holds, before=replace_database(backup, path))
    finally:
        lock.release()


def _planted_link(path: Path) -> str | None:
    """Describe a link in a database's path that neither root nor this user made; raises `StoreError`."""
    try:
        return foreign_link(path)
    except OSError as error:
        raise database_error(path, error) from error


def _etcd_location(url: str) -> EtcdLocation:
    members, _, prefix = url.removeprefix(_ETCD_URL).partition("/")
    if "@" in members:
        raise ValueError(
            "a user or password in a URL can be read in the list of processes; name them with etcd_user and "
            f"etcd_password_file, and write {_ETCD_FORM}"
        )
    try:
        addresses = [Address.parse(one) for one in members.split(",")]
    except ValueError as error:
        raise ValueError(f"it names no members of etcd ({error}); write {_ETCD_FORM}") from None
    if any(one.port == 0 for one in addresses):
        raise ValueError(f"a member of etcd has no port 0; write {_ETCD_FORM}, such as etcd://10.0.0.1:2379")
    if prefix and not _PREFIX.fullmatch(prefix):
        raise ValueError(
            f"{prefix!r} is no prefix of keys; write {_ETCD_FORM}, the prefix in letters, digits and ._~-/"
        )
    return EtcdLocation(tuple(dict.fromkeys(addresses)), prefix or DEFAULT_PREFIX)


def _path_in_url(url: str) -> Path:
    if not url.startswith(_SQLITE_URL):
        raise ValueError(f"no such store; {_FORMS}")
    host, slash, rest = url.removeprefix(_SQLITE_URL).partition("/")
    if host or not rest:
        raise ValueError(f"it names no whole path; {_FORMS}")
    if "?" in rest or "#" in rest:
        raise ValueError(f"it has options, and there are none; {_FORMS}")
    text = urllib.parse.unquote(rest)
    path = Path(text) if Path(text).is_absolute() else Path(slash + text)
    if "\0" in text or path.name in ("", "..") or text.endswith("/"):
        raise ValueError(f"it names no file; {_FORMS}")
    return path


def _check_owner_and_mode(database: Path, path: Path, *, owners: tuple[int, ...], fix: str) -> int:
    """Return the mode of a file or directory on which the database may depend; raises `UnusableError`."""
    found = path.stat()
    if found.st_uid not in owners:
        problem, fix = f"belongs to user {found.st_uid}", "run the registry as that user"
    elif found.st_mode & _OTHERS_WRITE:
        problem = f"can be written by other users (mode {stat.S_IMODE(found.st_mode):04o})"
        fix = f"if you are sure that no other user did, run `{fix}`"
    else:
        return found.st_mode
    raise UnusableError(
        f"the registry's database {database} is refused: {path} {problem}, and who writes there can "
        f"make himself an admin: {fix}, or name a directory that is not there yet, such as "
        f"--store sqlite://{database.parent / 'registry' / database.name}"
    )
