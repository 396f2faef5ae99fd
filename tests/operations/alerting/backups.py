"""Troubles with backups."""

import time

from .broker import Failed, until
from .story import story

WHOLE = 'blobcast_backups_finished_total{result="ok"}'
CUT_OFF = 'blobcast_backups_finished_total{result="abandoned"}'


@story("BackupFailed", "BackupOld", step="10m")
def backups(at):
    """One is whole, the next is cut off, and then nobody takes any for a day and a half."""
    broker = at.broker()
    broker.take(25, filler_bytes=900_000)  # more than is sent to a client that reads nothing
    at.scrape(broker, 6)
    back_up(broker, at.directory / "whole")
    at.scrape(broker, 6)

    another_second()
    reader = broker.read("backup", "-")
    until("an open backup", lambda: broker.metrics()["blobcast_backups"] == 1)
    reader.kill()
    until("its end", lambda: broker.metrics()[CUT_OFF] == 1)
    at.scrape(broker, 3, {"BackupFailed": '"result":"abandoned"'})
    at.scrape(broker, 220, {"BackupOld": None}, and_still=["BackupFailed"])

    another_second()
    back_up(broker, at.directory / "again")
    at.scrape(broker, 3)


def another_second():
    """Metrics tell times in whole seconds: what is to be newer ends in another one."""
    now = int(time.time())
    until("another second", lambda: int(time.time()) > now)


def back_up(broker, path):
    before = broker.metrics()[WHOLE]
    done = broker.run("backup", path)
    if done.returncode != 0:
        raise Failed(done.stderr)
    until("a whole backup", lambda: broker.metrics()[WHOLE] == before + 1)
