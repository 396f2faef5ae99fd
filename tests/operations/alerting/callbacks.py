"""Troubles with callbacks: refused, not understood, too many, too large, none."""

import contextlib
import json
import select

from .broker import expect, until
from .story import story


@story("VendorLockedOut", "AllRefused")
def credentials_and_addresses(at):
    """A removed token that the vendor still uses, beside normal traffic; then the vendor has new addresses."""
    broker = at.broker(config={"ingest.allowed_networks": ["127.0.0.0/8"], "ingest.allowlist": "enforce"})
    broker.add_credential("callback old")
    until("the token to be known", lambda: broker.post(token="callback old") == 200)
    at.scrape(broker, 6)
    broker.take(20)
    at.scrape(broker, 6)

    broker.remove_credential("callback old")
    until("the token to be removed", lambda: broker.post(token="callback old") == 401)
    for _ in range(10):
        expect(broker.post(token="callback old"), 401)
    broker.take(20)
    at.scrape(broker, 6, {"VendorLockedOut": '"cause":"removed"'})
    at.scrape(broker, 20)

    broker.write_config(broker.config | {"ingest.allowed_networks": ["198.51.100.0/24"]})
    broker.reload()
    for _ in range(10):
        expect(broker.post(), 403)
    at.scrape(broker, 5, {"AllRefused": '"cause":"address_denied"'})


@story("BindingDenied")
def bound_credential(at):
    """The holder of a token tries to be somebody else, beside normal traffic."""
    broker = at.broker()
    broker.add_credential("callback film", "--product", "sora")
    broker.take(20)
    at.scrape(broker, 6)

    def refusals():
        counted = broker.metrics().items()
        return sum(
            count
            for name, count in counted
            if name.startswith("blobcast_callbacks_refused_total{") and 'name="film"' in name
        )

    def tries():
        expect(broker.post(token="callback film"), 401)
        return refusals() > 10

    until("the token to be refused often", tries)
    broker.take(20)
    at.scrape(broker, 6, {"BindingDenied": '"cause":"product_denied"'})


@story("QuarantineGrowing", "QuarantineForgetting", "CompletedWithoutOutput", "BodySignaturesInvalid")
def contents(at):
    """Callbacks that are not understood, have no output, or have a wrong signature."""
    broker = at.broker({"quarantine.retention_count_max": 2}, {"ingest.body_signature": "off"})
    at.scrape(broker, 6)
    for number in range(5):
        expect(broker.post(json.dumps({"status": "completed", "number": number})), 202)
    expect(broker.post('{"generation_id":"without","status":"completed"}'), 200)

    broker.add_line("body_signature", 'secret = "somebody knows it"')
    broker.write_config({"ingest.body_signature": "require"})
    broker.reload()
    for _ in range(5):
        expect(broker.post(headers={"X-RunBlob-Signature": "sha256=" + 64 * "0"}), 401)
    at.scrape(
        broker, 8,
        {
            "QuarantineGrowing": "veo",
            "QuarantineForgetting": "veo",
            "CompletedWithoutOutput": '"raw_body"',
            "BodySignaturesInvalid": "bad_body_signature",
        },
        TASK_ID="without",
    )  # fmt: skip


@story("BudgetExceeded", "Overloaded")
def too_much(at):
    """A URL brings more than it may; and bodies that do not end hold all the memory for them."""
    broker = at.broker(
        {"ingest.inflight_bytes_max": "1MiB", "ingest.body_timeout": "60s", "ingest.bytes_per_minute_max": "6MiB"}
    )
    at.scrape(broker, 6)
    until("the budget to be used up", lambda: broker.post(filler_bytes=900_000) == 429)

    # Without a budget: some bodies get in before this one has arrived.
    broker.add_credential("callback other", line=lambda line: line.replace(" }", ", bytes_per_minute_max = 0 }"))
    until("the token to be known", lambda: broker.post(token="callback other") == 200)
    with contextlib.ExitStack() as held:
        hold_all_memory(broker, held)
        at.scrape(broker, 4, {"BudgetExceeded": "budget_exceeded", "Overloaded": "Device"})


def hold_all_memory(broker, held, size=1_000_000):
    """A body that does not end leaves no room for others, until `held` is closed."""
    head = f"POST /webhook/veo?token={broker.tokens['callback other']} HTTP/1.1\r\nhost: x\r\ncontent-length: {size}\r\n\r\n"

    def send():
        return held.enter_context(broker.connect("ingest", head.encode() + b"x" * (size - 1)))

    connection = send()

    def is_full():
        nonlocal connection
        # Of two bodies that arrive at once, either may be the one without room.
        if select.select([connection], [], [], 0)[0]:
            connection = send()
        return broker.post(token="callback other", filler_bytes=500_000) == 503

    until("bodies to have no room", is_full)


@story("Silent", step="10m")
def silence(at):
    """Nothing comes, at a time at which something came yesterday."""
    broker = at.broker()
    at.scrape(broker, 1)
    broker.take(40)
    at.scrape(broker, 12, steadily=True)
    at.scrape(broker, 130)
    at.scrape(broker, 14, {"Silent": "200 OK"}, **{"https://YOUR_PUBLIC_HOST": "http://{}:{}".format(*broker.ingest)})


@story("UnauthenticatedFlood")
def guesses(at):
    """Somebody tries tokens, many at once; the vendor gets through."""
    broker = at.broker()
    broker.take(10)
    at.scrape(broker, 6)
    minutes = 20
    guess(broker, 11 * 60 * minutes)
    broker.take(10)
    at.scrape(broker, minutes, {"UnauthenticatedFlood": "request refused"}, steadily=True)


def guess(broker, count, at_once=100):
    """Callbacks with a token that nobody has, some before the first of them is answered."""
    sent = b"POST /webhook/veo?token=guess HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n" * at_once
    with broker.connect("ingest") as connection:
        for _ in range(count // at_once):
            connection.sendall(sent)
            answers = b""
            while answers.count(b"HTTP/1.1 4") < at_once:
                received = connection.recv(65536)
                if not received:
                    raise ConnectionResetError("closed by the broker")
                answers += received
