"""Troubles with connections: places that are taken, strangers who speak something else, and floods."""

import contextlib
import itertools
import socket
import struct
import sys

from .broker import until
from .story import ROOT, story

sys.path.append(str(ROOT / "tests/hostile"))
from attacks import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    literal,
    proxy_header,
)

NOTHING = b"\0" * 5  # a gRPC message that says nothing
WITHOUT_A_HEADER = b"POST /webhook/veo HTTP/1.1\r\nhost: x\r\n\r\n"


@story("ProxyMismatch", "AddressShareUsed", "ConnectionsShed", "ConnectionsRefused")
def places(at):
    """A proxy sends no PROXY headers; one address wants more than its share; and all places are taken."""
    settings = {"ingest.proxy_protocol": "true", "ingest.trusted_proxies": "127.0.0.0/8"}
    places = {"ingest.connections_max": 2, "ingest.connections_per_address_max": 1, "grpc.connections_max": 1}
    broker = at.broker(settings | places)
    at.scrape(broker, 6)
    for _ in range(10):
        broker.turn_away("ingest", WITHOUT_A_HEADER)

    idle = broker.connect("ingest", proxy_header("198.51.100.1"))
    counted = 'blobcast_connections{listener="ingest"}'
    until("the place to be taken", lambda: broker.metrics()[counted] == 1)
    broker.turn_away("ingest", proxy_header("198.51.100.1"))
    new = [broker.connect("ingest", proxy_header("198.51.100.2"))]
    shed = 'blobcast_connections_shed_total{listener="ingest"}'

    def is_shed():
        """One that is a second old gives way."""
        new.append(broker.connect("ingest", proxy_header(f"198.51.100.{len(new) + 2}")))
        return broker.metrics()[shed] > 0

    until("a connection to give way", is_shed)
    reader = broker.listen()
    waiting = broker.connect("grpc")
    full = 'blobcast_connections_refused_total{cause="full",listener="grpc"}'
    until("a connection to wait", lambda: broker.metrics()[full] > 0)
    at.scrape(
        broker, 4,
        {
            "ProxyMismatch": "proxy_header_missing",
            "AddressShareUsed": "address_share",
            "ConnectionsShed": "127.0.0.1",
            "ConnectionsRefused": "127.0.0.1",
        },
    )  # fmt: skip
    for connection in (idle, waiting, *new):
        connection.close()
    reader.kill()


@story(
    "ConnectionsFlooded", "GrpcCallsRefused", "CallsUnauthenticated", "AdminRefused", "NotUnderstood", "ProxyHeaderUnexpected"
)  # fmt: skip
def strangers(at):
    """Who connects speaks something else than is expected, knows no token, or floods."""
    broker = at.broker()
    at.scrape(broker, 6)
    minutes = 40
    for _ in range(12 * 8):
        broker.turn_away("ingest", proxy_header("198.51.100.7"))
    for _ in range(30 * 3):
        broker.turn_away("grpc", b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    for _ in range(5):
        broker.turn_away("admin", b"GET /metrics HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n")
    call(broker, minutes * 60 * 2)
    call(broker, minutes * 6, b"text/plain")
    flood(broker)
    at.scrape(
        broker, minutes,
        {
            "ConnectionsFlooded": "the client floods",
            "GrpcCallsRefused": "content_type",
            "CallsUnauthenticated": "call refused",
            "AdminRefused": "admin listener",
            "NotUnderstood": "not_http2",
            "ProxyHeaderUnexpected": "proxy_header_unexpected",
        },
        steadily=True,
    )  # fmt: skip


def flood(broker):
    """Calls, each cancelled at once, until the broker has enough of them."""
    cancel = struct.pack(">I", 8)
    with broker.connect("grpc", PREFACE + frame(SETTINGS, 0, 0)) as connection, contextlib.suppress(ConnectionError):
        for first in itertools.count(1, 4_000):
            streams = range(first, first + 4_000, 2)
            connection.sendall(
                b"".join(frame(HEADERS, END_HEADERS, at, head()) + frame(RST_STREAM, 0, at, cancel) for at in streams)
            )
    until("it to be counted", lambda: broker.metrics()['blobcast_connections_flooded_total{listener="grpc"}'])


def head(content_type=b"application/grpc"):
    grpc = literal(b"content-type", content_type) + literal(b"te", b"trailers")
    return b"\x83\x86" + literal(4, b"/blobcast.v1.EventService/GetLogInfo") + literal(1, b"test") + grpc


def call(broker, count, content_type=b"application/grpc"):
    """Calls without a token, one after the other on one connection, until each is answered."""
    with broker.connect(
        "grpc", PREFACE + frame(SETTINGS, 0, 0) + frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1 << 30))
    ) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        answers = frames(connection)
        for stream in range(1, 2 * count, 2):
            connection.sendall(
                frame(HEADERS, END_HEADERS, stream, head(content_type)) + frame(DATA, END_STREAM, stream, NOTHING)
            )
            for kind, flags, of, payload in answers:
                if kind == PING and not flags & 1:
                    connection.sendall(frame(PING, 1, 0, payload))
                if of == stream and flags & END_STREAM:
                    break


def frames(connection):
    read = b""
    while True:
        while len(read) < 9 or len(read) < 9 + int.from_bytes(read[:3], "big"):
            received = connection.recv(65536)
            if not received:
                raise ConnectionResetError("closed by the broker")
            read += received
        end = 9 + int.from_bytes(read[:3], "big")
        yield read[3], read[4], int.from_bytes(read[5:9], "big"), read[9:end]
        read = read[end:]
