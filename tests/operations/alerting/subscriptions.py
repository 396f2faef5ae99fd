"""Troubles with readers: slow, stopped, too late; and with what the broker has of memory and open files."""

import resource
import signal

from .broker import Failed, expect, until
from .story import story

BYTES = 2_000  # of an event, so that some hundred are more than is on the way to a reader
STALLED, LAG = "blobcast_subscriptions_stalled", "blobcast_subscription_lag_events_max"


@story("SubscriptionLagging", "SubscriptionStalled", "SubscriptionNearRetention", "EventsMissed")
def stopped_reader(at):
    """A reader's process is stopped, until the log forgets what it has not read."""
    broker = at.broker(
        {"log.retention_bytes_max": "6MiB", "ingest.body_bytes_max": "64KiB", "hub.ring_bytes_max": "1MiB"}
    )
    reader = broker.listen("--name", "invoices", "--include-raw")
    broker.take(10)
    at.scrape(broker, 6)
    reader.send_signal(signal.SIGSTOP)
    until("it to lag", lambda: broker.take(200, BYTES) or broker.metrics()[LAG] > 1_200)
    until("it to count as stalled", lambda: broker.metrics()[STALLED])
    at.scrape(broker, 35, {"SubscriptionLagging": "invoices", "SubscriptionStalled": "stalled"})

    until(
        "events to be forgotten",
        lambda: broker.take(200, BYTES) or broker.metrics()[LAG] > broker.metrics()["blobcast_log_events"],
    )
    at.scrape(
        broker, 18, {"SubscriptionNearRetention": "invoices"}, and_still=["SubscriptionLagging", "SubscriptionStalled"]
    )

    reader.send_signal(signal.SIGCONT)
    missed = [
        f'blobcast_losses_total{{client="billing",kind="{kind}"}}' for kind in ("cursor_expired", "gap", "overtaken")
    ]
    until("it to be told", lambda: sum(broker.metrics()[name] for name in missed))
    reader.kill()
    until("it to be gone", lambda: broker.metrics()[LAG] == 0)
    at.scrape(broker, 2, {"EventsMissed": '"client":"billing"'})


@story("AnswersRefused", "AnswersStalled")
def unread_backups(at):
    """Backups that nobody reads, and one more."""
    broker = at.broker({"grpc.stall_timeout": "4s"})
    broker.take(40, filler_bytes=200_000)
    at.scrape(broker, 6)
    for _ in range(2):
        broker.read("backup", "-")
    until("both to be open", lambda: broker.metrics()["blobcast_backups"] == 2)
    expect(broker.run("backup", "-").returncode, 1)
    until("one to be ended", lambda: broker.metrics()["blobcast_answers_stalled_total"])
    at.scrape(broker, 3, {"AnswersRefused": "BACKUP_LIMIT", "AnswersStalled": "blobcast_backups"})


@story("ReadsWaiting")
def many_readers(at):
    """More readers of large events than there is memory for, and they are stopped."""
    broker = at.broker({"grpc.reading_bytes_max": "8MiB", "hub.ring_bytes_max": "1MiB"})
    broker.take(12, filler_bytes=800_000)
    at.scrape(broker, 6)
    readers = [broker.read("listen", "--from", "earliest", "--include-raw", "--output", "json") for _ in range(40)]
    # Before 10 s are over, in which they would count as stalled, too.
    at.scrape(
        broker,
        17,
        {"ReadsWaiting": "billing"},
        when=lambda metrics: metrics["blobcast_reads_waiting"] and not metrics[STALLED],
    )
    for reader in readers:
        reader.kill()


@story("OpenFilesHigh")
def few_files(at):
    """As if LimitNOFILE= were hardly above what is open."""
    broker = at.broker()
    at.scrape(broker, 6)
    most = int(broker.metrics()["process_open_fds"]) + 5
    resource.prlimit(broker.process.pid, resource.RLIMIT_NOFILE, (most, most))
    at.scrape(broker, 7, {"OpenFilesHigh": "process_max_fds"})


def small_memory(text):
    """The alert as if 100 MiB were allowed, by a cgroup or where there is no limit."""
    small = "100 * 1024 * 1024"
    by_cgroup = f"({small} * (blobcast_memory_limit_bytes > bool 0) > 0)"
    for threshold, smaller in ("(blobcast_memory_limit_bytes > 0)", by_cgroup), ("5 * 1024 * 1024 * 1024", small):
        if threshold not in text:
            raise Failed("the threshold of BlobcastMemoryHigh is not where it was")
        text = text.replace(threshold, smaller)
    return text


@story("MemoryHigh", change=small_memory)
def bodies_in_memory(at):
    """Bodies that are not sent to their end."""
    size = 1_000_000
    broker = at.broker({"ingest.body_timeout": "60s"})
    at.scrape(broker, 6)
    head = f"POST /webhook/veo?token={broker.tokens['callback vendor']} HTTP/1.1\r\nhost: x\r\ncontent-length: {size}\r\n\r\n"
    bodies = [broker.connect("ingest", head.encode() + b"x" * (size - 1)) for _ in range(60)]
    until("them to arrive", lambda: broker.metrics()["process_resident_memory_bytes"] > 90 << 20)
    at.scrape(broker, 12, {"MemoryHigh": "blobcast_connections"})
    for body in bodies:
        body.close()
