"""One scenario's cluster with its load: how it starts, how it is brought back to order, and what must be true in the end."""

import collections
import json
import re
import subprocess
import time

from lib import Failed, Ledger, quarantine
from load import Callers, Reader, Subscriber
from machines import Node, Nodes, Servers, until

SUBSCRIBERS = 2
ROUTINE = ['"subscribed"', '"subscription ended"', '"audit"', '"callback quarantined"', "Route", "Router"]


class Campaign:
    def __init__(self, arguments, directory, scenario, rng):
        self.arguments, self.directory, self.scenario, self.rng = arguments, directory, scenario, rng
        self.network = arguments.network
        self.servers = Servers(arguments.nats, self.network, directory, scenario.sync, "servers" in scenario.disks)
        self.nodes = Nodes(self.make_node)
        self.ledger = Ledger(rng)
        self.callers = Callers(self.nodes, self.ledger, rng.randrange(1 << 32))
        self.told = scenario.is_told  # the stream has lost something, and that is how it ends
        self.notes, self.violations, self.subscribers, self.reader = [], [], [], None

    def make_node(self, name):
        settings = self.scenario.settings | ({} if self.scenario.sync else {"cluster.sync": "off"})
        environment = self.scenario.environment(self.directory, name)
        disk = "nodes" in self.scenario.disks
        return Node(self.arguments.broker, self.network, self.directory, name, settings, disk, environment=environment)

    def start(self):
        self.servers.start()
        self.nodes.start()
        self.callers.start()
        self.reader = Reader(self.nodes, self.callers, self.rng.randrange(1 << 32))
        on_expired = "earliest" if self.scenario.trims else "fail"
        for number in range(SUBSCRIBERS):
            path, seed = self.directory / f"subscriber-{number}", self.rng.randrange(1 << 32)
            self.subscribers.append(Subscriber(self.nodes, path, seed, on_expired))
        until("the first callbacks", lambda: len(self.callers.acknowledged_at) > 100)

    def note(self, text):
        self.notes.append(text)

    def wait(self, seconds):
        """Lets things go on as they are. Ends at once when something is wrong."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.callers.failures:
                raise self.callers.failures[0]
            time.sleep(0.1)

    def settle(self):
        """Everything is whole again: what was not acknowledged is posted once more, and every node comes to the same end."""
        self.network.heal()
        self.servers.start()
        self.nodes.start()
        self.callers.stop()
        if self.callers.failures:
            raise self.callers.failures[0]
        self.callers.post_rest()
        places = lambda: [node.metric("applied_place") for node in self.nodes]
        until(f"nodes at one place, not {places()}", lambda: None not in places() and len(set(places())) == 1)

    def finish(self):
        """Reads every node's log and has everything judged."""
        alive = [node for node in self.nodes if node.alive()]
        logs = {node.name: node.read_whole("events", "--include-raw") for node in alive}
        kept = {node.name: quarantine(node) for node in alive}
        end = max(logs.values(), key=len, default=[])
        if not self.told:
            for subscriber in self.subscribers:
                subscriber.reach(end[-1]["cursor"] if end else None)
        self.stop_clients()
        if self.callers.failures:
            raise self.callers.failures[0]
        if logs:
            self.judge(logs, kept)
        for name, entries in kept.items():
            if twice := [number for number, count in collections.Counter(names_of(entries)).items() if count > 1]:
                raise Failed(f"node {name} has callbacks in quarantine twice: {twice[:20]}")
        if not self.told:
            if any(log != end for log in logs.values()):
                raise Failed(f"the nodes' logs differ: { {name: len(log) for name, log in logs.items()} } events")
            acknowledged = self.ledger.acknowledged()
            for name in logs:
                self.ledger.check_log(logs[name], acknowledged)
        if self.reader.missed and not self.scenario.may_read_late:
            raise Failed(f"{len(self.reader.missed)} reads missed what was acknowledged: {self.reader.missed[0]}")

    def stop_clients(self):
        self.callers.stop()
        self.reader.stop()
        for subscriber in self.subscribers:
            subscriber.stop()

    def judge(self, logs, kept):
        """By the guarantees of src/checker.rs; its violations are in `violations`."""
        path = self.directory / "history.jsonl"
        path.write_text(json.dumps(self.history(logs, kept)) + "\n")
        done = subprocess.run([self.arguments.checker, path], capture_output=True, text=True, check=False)
        if not done.stdout.strip():
            raise Failed(f"{self.arguments.checker}: {done.stderr}")
        self.violations = [line.partition(": ")[2] for line in done.stdout.splitlines()[:-1]]
        if done.returncode and not self.violations:
            raise Failed(f"{self.arguments.checker}: {done.stdout}")

    def history(self, logs, kept):
        posted = collections.Counter(one.task for one in self.ledger.callbacks if one.task and one.posted_at)
        acknowledged = self.ledger.acknowledged()
        observed = lambda events: [
            {name: event[name] for name in ("event_id", "cursor", "task_id")} for event in events
        ]
        streams = [{"observed": observed(subscriber.events)} for subscriber in self.subscribers]
        if self.scenario.trims:  # what is missing in front was forgotten: the ledger knows what must be left
            return {"streams": streams}
        return {
            "acknowledged": [{"event_id": one.event_id, "task_id": one.task} for one in acknowledged if one.task],
            "quarantined": [str(one.number) for one in acknowledged if not one.task],
            "posted": posted,
            "streams": streams,
            "nodes": [{"node": name, "log": observed(logs[name]), "quarantine": names_of(kept[name])} for name in logs],
        }

    def figures(self):
        count = lambda words: sum(words in violation for violation in self.violations)
        missing = count("is nowhere") + count("not in quarantine")
        refused = self.callers.refused
        parts = [
            f"{len(self.ledger.acknowledged())} acknowledged",
            f"longest silence {self.callers.longest_silence():.1f} s",
            f"{sum(refused.values()) - refused['unanswered']} refused",
            f"{refused['unanswered']} unanswered",
            f"{missing} missing",
            f"{count('different callbacks')} doubled",
            *([f"{self.reader.found} read elsewhere, {self.reader.older} with older events"] if self.reader else []),
            *self.notes,
        ]
        return ", ".join(parts)

    def end(self):
        """Whatever happened: nothing of this scenario goes on."""
        for process in [*self.nodes, *self.servers]:
            if process.alive():
                process.kill()
        for client in [self.callers, *([self.reader] if self.reader else []), *self.subscribers]:
            client.over.set()
        self.network.heal()
        for machine in [*self.nodes, *self.servers]:
            if machine.disk:
                machine.disk.unmount()

    def tails(self):
        """What each node and server said last, but for what every call leaves in a log."""
        texts = []
        for machine in [*self.nodes, *self.servers]:
            log = machine.log_path
            lines = log.read_text(errors="replace").splitlines() if log.exists() else []
            told = [line[:300] for line in lines if not any(words in line for words in ROUTINE)]
            texts.append("\n".join([f"-- {machine.name}", *told[-6:]]))
        return "\n".join(texts)


def names_of(entries):
    """The callbacks in a quarantine, by the numbers that the ledger gave them."""
    return [re.search(r"ref=(\d+)", entry["target"])[1] for entry in entries]
