"""TLS between two contexts, without a socket."""

import ssl


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext, name: str = "localhost") -> str:
    """Shake hands in memory; returns the protocol, raises what either side refuses with."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    spoken: str | None = None
    for _ in range(4):
        for end in tuple(ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            ends.remove(end)
            spoken = end.version()
    assert ends == []
    return spoken or ""
