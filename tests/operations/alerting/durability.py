"""Troubles with the process, its disk, its log and its clock."""

import contextlib
import time

from .broker import Failed, completed, expect, until
from .machine import Clock, damage, slow
from .story import RULES, story

WRONG = {"log.retention_age_max": "nonsense"}


@story("Restarting", "Down", "Unknown")
def starts(at):
    """Something ends the broker again and again; then it does not start at all; then nobody looks any more."""
    broker = at.broker()
    at.scrape(broker, 3)
    for fires in ({}, {}, {"Restarting": "nonsense"}):
        began = broker.metrics()["process_start_time_seconds"]
        start_that_fails(broker)
        until("the next second", lambda: int(time.time()) > began)
        broker.start()
        at.scrape(broker, 2, fires)
    start_that_fails(broker)
    at.scrape(broker, 16, {"Down": "Active: failed(?s:.)*nonsense"})

    config = at.directory / "prometheus.yml"
    config.write_text(f"rule_files: [{RULES}]\n")
    at.scrape(None, 6, {"Unknown": "SUCCESS"}, **{"/etc/prometheus/prometheus.yml": config})


def start_that_fails(broker):
    broker.stop()
    broker.write_config(WRONG)
    with contextlib.suppress(Failed):
        broker.start()
        raise AssertionError("the broker has started with a mistake in its configuration")
    broker.write_config({})


@story("DiskNearlyFull", "DiskLow", "StoreNotWritable", "AuditLost")
def full_disk(at):
    """Another process takes all of the disk."""
    disk = at.disk(64)
    broker = at.broker({"data_dir": disk.path / "data", "audit.file": disk.path / "audit.jsonl"})
    broker.take(10)
    at.scrape(broker, 6)
    disk.fill()
    until("callbacks to be refused", lambda: broker.post() == 503)
    lost = 'blobcast_audit_records_total{result="lost"}'
    until("a record to be lost", lambda: broker.run("quarantine", "list") and broker.metrics()[lost])
    at.scrape(
        broker, 4,
        {
            "DiskNearlyFull": "100%",
            "DiskLow": "filler|100%",
            "StoreNotWritable": "disk",
            "AuditLost": "audit",
        },
        **{"/var/lib/blobcast": disk.path, " / ": f" {disk.path} "},
    )  # fmt: skip


@story("StoreFailed")
def failed_write(at):
    """The disk gets full, and the broker is not to look how much of it is free."""
    disk = at.disk(64)
    broker = at.broker({"data_dir": disk.path / "data", "log.disk_free_min_percent": 0})
    broker.take(10)
    at.scrape(broker, 6)
    disk.fill()
    until("a write to fail", lambda: broker.post(filler_bytes=20_000) == 503)
    expect(broker.post(), 503)
    at.scrape(broker, 4, {"StoreFailed": '"level":"ERROR"'}, and_still=["DiskNearlyFull", "StoreNotWritable"])


@story("LogLinesLost")
def full_disk_of_the_log(at):
    disk = at.disk(8)
    broker = at.broker({"data_dir": at.directory / "data", "logging.level": "debug"}, directory=disk.path / "broker")
    at.scrape(broker, 6)
    disk.fill()
    until("a line to be lost", lambda: broker.post(token="guess") and broker.metrics()["blobcast_log_lines_lost_total"])
    at.scrape(broker, 3, {"LogLinesLost": "Active"})


@story("CommitSlow", "FsyncSlow", "AnswersSlow", "DeliverySlow", "Late")
def slow_disk(at):
    """First writes are slow, then what makes them durable, then too slow."""
    broker = at.broker()
    reader = broker.listen()
    broker.take(5)
    at.scrape(broker, 6)
    with slow(broker, "pwrite64", seconds=0.12):
        for _ in range(3):
            expect(broker.post(), 200)
    at.scrape(broker, 20, {"CommitSlow": "/"}, steadily=True)
    at.scrape(broker, 12)

    with slow(broker, "fdatasync", seconds=1.5):
        expect(broker.post(), 200)
    at.scrape(broker, 20, {"FsyncSlow": "Device", "AnswersSlow": "Device", "DeliverySlow": "/"}, steadily=True)

    with slow(broker, "fdatasync", seconds=6):
        expect(broker.post(), 503)
        at.scrape(broker, 3, {"Late": "Device"}, and_still=["FsyncSlow", "AnswersSlow", "DeliverySlow"])
    reader.kill()


@story("LogDamaged", "EpochChanged")
def log(at):
    """A disk turns a bit of the log; a backup of before is restored."""
    broker = at.broker()
    for task in ("first", "second", "third"):
        expect(broker.post(completed(task)), 200)
    backup = at.directory / "log.backup"
    expect(broker.run("backup", backup).returncode, 0)
    broker.restart()  # so that none is in memory
    at.scrape(broker, 6)
    damage(broker.directory / "data/log", "second")
    expect(broker.run("listen", "--from", "earliest").returncode, 1)
    at.scrape(broker, 4, {"LogDamaged": "a part of the log is damaged"})

    restored = at.directory / "restored"
    expect(broker.run("restore", backup, "--data-dir", restored).returncode, 0)
    broker.settings["data_dir"] = restored
    broker.restart()
    at.scrape(broker, 20, {"EpochChanged": '"found":"restored"'})


@story("ClockWrong")
def clock(at):
    """The machine's clock is an hour ahead."""
    clock = Clock(at.directory)
    broker = at.broker(environment=clock.environment)
    at.scrape(broker, 3)
    clock.turn(3_600)
    until("the broker to see it", lambda: broker.metrics()["blobcast_clock_difference_seconds"] > 3_000)
    at.scrape(broker, 3, {"ClockWrong": None})
