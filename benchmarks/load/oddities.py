"""Requests, headers and frames that no node sends, and that a registry has to bear."""

REQUEST = (
    "GET {target} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{headers}\r\n"
)
TARGETS = (
    "/",
    "//ws/node",
    "/ws/node/../node",
    "/ws%2Fnode",
    "/WS/NODE",
    "http://elsewhere/ws/node",
    "*",
    "/ws/node?token=" + "A" * 7000,
    "/ws/node?token=%00%0d%0a",
    "/ws/node?" + "&".join(["token=a"] * 500),
    "/ws/node#x",
    "/ws/node;x",
    "/v1/nodes",
    "/ws/node?token=gpun_00000000_" + "A" * 43,
)
HEADERS = (
    "Authorization: Bearer gpuj_00000000_" + "A" * 43 + "\r\n",
    "Authorization: Bearer \r\n",
    "Authorization: Basic eDp5\r\n",
    "Authorization: Bearer " + "A" * 7000 + "\r\n",
    "Authorization: Bearer a\r\nAuthorization: Bearer b\r\n",
    "authorization:\tbearer \x80\xff\r\n",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    "Content-Length: 10\r\n",
    "Transfer-Encoding: chunked\r\n",
    "X-Forwarded-For: 10.0.0.1\r\n" * 100,
    "A: b\r\n" * 127,
    "Origin: a\r\nOrigin: b\r\n",
    " folded: yes\r\n",
    "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=8\r\n" * 50,
    "Sec-WebSocket-Protocol: " + ",".join(["a"] * 1000) + "\r\n",
    "Upgrade: h2c\r\n",
    "Connection: close\r\n",
)
NO_HTTP = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\0" * 5000,
    b"\r\n" * 2000,
    b"GET\r\n\r\n",
    b"SSH-2.0-x\r\n",
    b"\xff" * 20_000,
    b"GET / HTTP/0.9\r\n\r\n",
)
ODD_FRAMES = (
    b"\xc1\x80\0\0\0\0",
    b"\xa1\x80\0\0\0\0",
    b"\x91\x80\0\0\0\0",
    b"\x81\x02{}",
    b"\x83\x80\0\0\0\0",
    b"\x8b\x80\0\0\0\0",
    b"\x09\x80\0\0\0\0",
    b"\x89\xfe\x00\x7e" + bytes(130),
    b"\x80\x80\0\0\0\0",
    b"\x01\x80\0\0\0\0\x81\x80\0\0\0\0",
    b"\x88\x81\0\0\0\0\0",
    b"\x88\x82\0\0\0\0\x03\xed",
    b"\x82\x80\0\0\0\0",
    b"\x81\xff" + b"\xff" * 8 + bytes(4),
    b"\x81\xff\0\0\0\0\0\x20\0\0" + bytes(4),
    b"\x81\xfe\0\x02\0\0\0\0{}",
)
