"""The sender's sockets of a benchmark: enough files for them, and what arrives on one."""

import resource
import socket


def await_bytes(one: socket.socket, wanted: bytes) -> None:
    """Read until this has arrived."""
    buffer = b""
    while wanted not in buffer:
        received = one.recv(65536)
        if not received:
            raise SystemExit(f"the server closed a connection after {buffer[-200:]!r}")
        buffer += received


def allow_sockets(nodes: int) -> None:
    """The sender needs a file for each connection to either server; they inherit the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = nodes + 200
    if hard != resource.RLIM_INFINITY and wanted > hard:
        raise SystemExit(
            f"{wanted} open files are needed, {hard} are allowed: raise `ulimit -n` or use --nodes"
        )
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
