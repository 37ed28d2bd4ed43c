"""Hostile programs on a machine that attack its agent over its local socket until they are stopped.

Run as a program of its own, by whatever user: `main(SOCKET, SECONDS)`. It says when it begins, and in the end
how many attempts of each kind it made.
"""

import contextlib
import json
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable

CONNECTIONS = 1000
GRACE_SECONDS = 2.0
"""For what is under way when the time is over; then it ends with the program."""
ASK = b'{"protocol": 1, "ask": "status"}\n'
GARBAGE = (
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x00\xff\xfe\n" * 50,
    b"[" * 9000 + b"\n",
    b"{}\n" * 100,
    ASK[:-9] + b"\n",
)


def connected(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(2)
    connection.connect(path)
    return connection


def come_and_go(path: str) -> None:
    connected(path).close()


def half_a_line(path: str) -> None:
    with connected(path) as connection:
        connection.sendall(ASK[:12])
        connection.recv(4096)


def an_endless_line(path: str) -> None:
    with connected(path) as connection:
        while True:
            connection.sendall(b"x" * 65536)


def garbage(path: str) -> None:
    for words in GARBAGE:
        with connected(path) as connection:
            connection.sendall(words)
            connection.recv(4096)


def ask_and_never_read(path: str) -> None:
    with connected(path) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        while True:
            connection.sendall(ASK * 50)


def ask_a_lot(path: str) -> None:
    with connected(path) as connection:
        for _ in range(200):
            connection.sendall(ASK)
            connection.recv(1 << 20)


def announce_a_lot(path: str) -> None:
    with connected(path) as connection:
        for number in range(200):
            job = json.dumps({"protocol": 1, "ask": "job_start", "job_id": f"{os.getpid()}-{number}" * 40})
            connection.sendall(job.encode() + b"\n")
            connection.recv(1 << 20)


def order_about(path: str) -> None:
    with connected(path) as connection:
        connection.sendall(b'{"protocol": 1, "ask": "drain", "deadline_seconds": 0}\n')
        connection.recv(4096)


def hold_many(path: str) -> None:
    with contextlib.ExitStack() as held:
        for _ in range(CONNECTIONS):
            with contextlib.suppress(OSError):
                held.enter_context(connected(path))
        time.sleep(1)


ATTACKS: tuple[Callable[[str], None], ...] = (
    come_and_go,
    half_a_line,
    an_endless_line,
    garbage,
    ask_and_never_read,
    ask_a_lot,
    announce_a_lot,
    order_about,
    hold_many,
)


def main(path: str, seconds: float, *but: str) -> None:
    """Attack in every way at once for so long, but in those that are named."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    ends_at = time.monotonic() + seconds
    attacks = [attack for attack in ATTACKS if attack.__name__ not in but]
    made = dict.fromkeys((attack.__name__ for attack in attacks), 0)

    def go_on(attack: Callable[[str], None]) -> None:
        while time.monotonic() < ends_at:
            made[attack.__name__] += 1
            with contextlib.suppress(OSError):  # turned away, dropped, or too slow
                attack(path)

    threads = [threading.Thread(target=go_on, args=(attack,), daemon=True) for attack in attacks]
    for thread in threads:
        thread.start()
    _say("attacking")
    for thread in threads:
        thread.join(max(0.0, ends_at + GRACE_SECONDS - time.monotonic()))
    _say(json.dumps(made))


def _say(words: str) -> None:
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()
