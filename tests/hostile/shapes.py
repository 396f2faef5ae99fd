"""Requests of bad shapes: what each may be answered with, and that none smuggles another one in."""

import gzip
import socket
import ssl
import subprocess
import zlib

import support
from attacks import proxy_header
from support import Failed, callback

SMUGGLED = callback("smuggled")
NOTHING = None  # instead of a status: closed without a word
WAIT_SECONDS = 1.5  # for a further answer, or the end


def check(broker, path):
    """Sends each shape on a connection of its own, by an address of its own: refusals of one address are throttled."""
    wrong = []
    for number, (name, request, allowed) in enumerate(shapes(path)):
        statuses, closed = send(broker, number, request)
        if (statuses or [NOTHING])[0] not in allowed or len(statuses) > 1 or not closed:
            wrong.append(
                f"{name}: answered {statuses}, {'closed' if closed else 'left open'}; allowed is one of {allowed}"
            )
    listed = subprocess.run(
        [broker.binary, "events", "--output", "json", "--task", "smuggled", "--grpc-url", f"http://{broker.grpc[0]}:{broker.grpc[1]}"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    if "smuggled" in listed.stdout:
        wrong.append("a smuggled callback was taken")
    if wrong:
        raise Failed("shapes: " + "\n        ".join(wrong))
    print(f"floods: {number + 1} requests of bad shapes, each refused and its connection closed")


def send(broker, number, request):
    """The statuses of the answers, and whether the connection was closed."""
    context = ssl.create_default_context(cafile=broker.settings["ingest.tls_certificate_file"])
    text = b""
    with socket.create_connection(broker.ingest, support.PATIENCE_SECONDS) as raw:
        raw.sendall(proxy_header(f"198.19.1.{number}"))
        with context.wrap_socket(raw, server_hostname=support.SERVER_NAME) as stream:
            try:
                stream.sendall(request)
                stream.settimeout(WAIT_SECONDS)
                while more := stream.recv(65536):
                    text += more
                closed = True
            except TimeoutError:
                closed = False
            except OSError:
                closed = True
    return [int(answer[:3]) for answer in text.split(b"HTTP/1.1 ")[1:]], closed


def shapes(path):
    target = path.encode()
    length = str(len(SMUGGLED)).encode()
    hidden = b"POST %s HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %s\r\n\r\n%s" % (
        target,
        length,
        SMUGGLED,
    )

    def head(*headers, line=b"POST %s HTTP/1.1"):
        return b"\r\n".join([line.replace(b"%s", target), b"host: x", *headers, b"", b""])

    def chunked(size, *headers):
        return head(b"transfer-encoding: chunked", *headers) + size + b"\r\n" + b"0\r\n\r\n" + hidden

    def encoded(value):
        return head(b"transfer-encoding: " + value) + b"0\r\n\r\n" + hidden

    def sized(value):
        return head(b"content-length: " + value) + SMUGGLED

    # By RFC 9112, section 6.3: the chunks count, and the connection ends. They hold nothing, which is quarantined.
    both = head(b"content-length: 4", b"transfer-encoding: chunked") + b"0\r\n\r\n" + hidden
    yield "both lengths", both, [202, 400]
    yield (
        "both lengths, the other way round",
        both.replace(b"content-length: 4\r\n", b"").replace(b"chunked\r\n", b"chunked\r\ncontent-length: 4\r\n", 1),
        [202, 400],
    )
    yield "two lengths", head(b"content-length: 4", b"content-length: 5") + b"null" + hidden, [400]
    yield "two lengths in one", sized(length + b", 5"), [400]
    for value in (b"+" + length, b"-1", b"0x10", b"1 0", b"", b"99999999999999999999", b"1e3", length + b";"):
        yield f"length {value}", sized(value), [400, 413]
    for value in (
        b"xchunked",
        b"chunked, identity",
        b"identity",
        b"chunked\x0b",
        b"gzip",
        b'"chunked"',
        b"chunked;q=1",
        b"",
    ):
        yield f"encoding {value}", encoded(value), [400, 415, 501]
    yield "chunks by HTTP/1.0", encoded(b"chunked").replace(b"HTTP/1.1", b"HTTP/1.0", 1), [400]
    for size in (b"g", b"-1", b"0x5", b"+5", b"FFFFFFFFFFFFFFFFF", b" 5", b"5 5", b"", b"5\n", b"5;" + b"x" * 100_000):
        yield f"chunk size {size[:20]}", chunked(size), [400, 413]
    yield "chunk without its end", head(b"transfer-encoding: chunked") + b"1\r\n{}\r\n0\r\n\r\n" + hidden, [400]
    yield "trailers without end", head(b"transfer-encoding: chunked") + b"0\r\n" + b"x: y\r\n" * 20_000, [400, 413, 431]
    for header in (
        b"x : y",
        b" x: y",
        b"x: y\r\n folded",
        b"x\t: y",
        b": y",
        b"x",
        b"x: \0",
        b"x: a\rb",
        b"x\x80: y",
        b"x(: y",
    ):
        yield f"header {header}", head(header, b"content-length: " + length) + SMUGGLED, [400]
    yield "length with a space before its colon", head(b"content-length : 4") + hidden, [400]
    yield "chunks with a space before the colon", head(b"transfer-encoding : chunked") + b"0\r\n\r\n" + hidden, [400]
    for line in (
        b"POST %s HTTP/2.0",
        b"POST %s HTTP/1.2",
        b"POST %s",
        b"POST  %s HTTP/1.1",
        b"POST %s x HTTP/1.1",
        b"P\0ST %s HTTP/1.1",
        b"POST \x80 HTTP/1.1",
        b"POST %s\0 HTTP/1.1",
    ):
        yield f"line {line}", head(b"content-length: " + length, line=line) + SMUGGLED, [400, 505]
    yield "a line of 64 KiB", head(line=b"POST /" + b"x" * 65536 + b" HTTP/1.1"), [414, 431]
    yield "a method of 64 KiB", head(line=b"X" * 65536 + b" / HTTP/1.1"), [400, 431]
    yield "a header of 64 KiB", head(b"x: " + b"y" * 65536), [431]
    yield "a name of 64 KiB", head(b"x" * 65536 + b": y"), [431]
    yield "1,000 headers", head(*[b"x: y"] * 1_000), [431]
    large = bytes(1536 * 1024)
    yield "a body of 1.5 MiB", head(b"content-length: %d" % len(large)) + large, [413]
    yield (
        "chunks of 1.5 MiB",
        head(b"transfer-encoding: chunked") + b"%x\r\n" % len(large) + large + b"\r\n0\r\n\r\n",
        [413],
    )
    # Who sends far too much and does not look may be cut off before the answer reaches it.
    yield "a length of 1 TiB", head(b"content-length: 1099511627776") + large * 2, [NOTHING, 413]
    bomb = gzip.compress(bytes(64 * 1024 * 1024))
    bombs = (
        (b"gzip", bomb),
        (b"deflate", zlib.compress(bytes(64 * 1024 * 1024))),
        (b"gzip, gzip", gzip.compress(bomb)),
    )
    for encoding, body in bombs:
        yield (
            f"{len(body)} bytes of {encoding}",
            head(b"connection: close", b"content-encoding: " + encoding, b"content-length: %d" % len(body)) + body,
            [413],
        )
    for encoding in (b"br", b"zstd", b"gzip, br", b"gzip, gzip, gzip, gzip"):
        yield (
            f"{len(bomb)} bytes of {encoding}",
            head(b"connection: close", b"content-encoding: " + encoding, b"content-length: %d" % len(bomb)) + bomb,
            [415],
        )
    yield (
        "another protocol, by Upgrade",
        head(
            b"connection: upgrade, http2-settings",
            b"upgrade: h2c",
            b"http2-settings: AAMAAABkAAQAAP__",
            b"connection: close",
            line=b"GET / HTTP/1.1",
        ),
        [200],
    )
    yield "CONNECT", head(b"connection: close", line=b"CONNECT 127.0.0.1:22 HTTP/1.1") + hidden, [400, 404, 405]
    yield "HTTP/2 without having agreed on it", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(64), [NOTHING, 400, 505]
