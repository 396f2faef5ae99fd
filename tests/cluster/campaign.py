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
BODY_BYTES = 2_000
BODY_BYTES_TO_FORGET = 20_000
ROUTINE = ['"subscribed"', '"subscription ended"', '"audit"', '"callback quarantined"', "Route", "Router"]


class Campaign:
    def __init__(self, arguments, directory, scenario, rng):
        self.arguments, self.directory, self.scenario, self.rng = arguments, directory, scenario, rng
        self.network = arguments.network
        nats = arguments.older_nats if scenario.older == "nats" else arguments.nats
        self.servers = Servers(nats, self.network, directory, scenario.sync, "servers" in scenario.disks)
        self.nodes = Nodes(self.make_node)
        self.ledger = Ledger(rng)
        body_bytes = BODY_BYTES_TO_FORGET if scenario.trims else BODY_BYTES
        self.callers = Callers(self.nodes, self.ledger, body_bytes, rng.randrange(1 << 32))
        self.told = scenario.is_told  # the stream has lost something, and that is how it ends
        self.notes, self.violations, self.missing, self.subscribers, self.reader = [], [], [], [], None

    def make_node(self, name):
        settings = self.scenario.settings | ({} if self.scenario.sync else {"cluster.sync": "off"})
        environment = self.scenario.environment(name)
        disk = "nodes" in self.scenario.disks
        broker = self.arguments.older if self.scenario.older == "broker" else self.arguments.broker
        return Node(broker, self.network, self.directory, name, settings, disk, environment=environment)

    def start(self):
        self.servers.start()
        self.nodes.start()
        self.callers.start()
        self.reader = Reader(self.nodes, self.callers, self.rng.randrange(1 << 32), self.state)
        on_expired = "earliest" if self.scenario.trims else "fail"
        for number in range(SUBSCRIBERS):
            path, seed = self.directory / f"subscriber-{number}", self.rng.randrange(1 << 32)
            self.subscribers.append(Subscriber(self.nodes, path, seed, on_expired))
        until("the first callbacks", lambda: len(self.callers.acknowledged_at) > 100)

    def state(self):
        """Of the stream and of the nodes, as one text."""
        stream = self.servers.stream()
        seen = {node.name: (node.metric("applied_place"), node.metric("stream_lag_frames")) for node in self.nodes}
        last, leader = stream.get("state", {}).get("last_seq"), stream.get("cluster", {}).get("leader")
        return f"the stream ends with message {last} at {leader}, and the nodes' places and lags are {seen}"

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
        self.callers.stop()
        if absent := [node.name for node in self.nodes if not node.alive()]:
            raise Failed(f"nodes have ended, and serve nothing: {absent}")
        logs = {node.name: node.read_whole("events", "--include-raw") for node in self.nodes}
        kept = {node.name: quarantine(node) for node in self.nodes}
        self.count_missing(logs, kept)
        end = max(logs.values(), key=len)
        if not self.told:
            for subscriber in self.subscribers:
                subscriber.reach(end[-1]["cursor"] if end else None)
        self.stop_clients()
        if self.callers.failures:
            raise self.callers.failures[0]
        self.judge(logs, kept)
        for name, entries in kept.items():
            if twice := [number for number, count in collections.Counter(names_of(entries)).items() if count > 1]:
                raise Failed(f"node {name} has callbacks in quarantine twice: {twice[:20]}")
        if not self.told:
            # What retention has forgotten at one node and not yet at another is in front.
            begins = lambda log: len(end) - len(log) if self.scenario.trims else 0
            if any(log != end[begins(log) :] for log in logs.values()):
                raise Failed(f"the nodes' logs differ: { {name: len(log) for name, log in logs.items()} } events")
            acknowledged = self.ledger.acknowledged()
            for name in logs:
                self.ledger.check_log(logs[name], acknowledged)
        if self.missing:
            raise Failed(f"acknowledged callbacks are at no node: {[one.number for one in self.missing[:20]]}")
        if self.reader.missed and not self.scenario.may_read_late:
            raise Failed(
                f"{len(self.reader.missed)} reads missed what was acknowledged:\n" + "\n".join(self.reader.missed[:10])
            )

    def count_missing(self, logs, kept):
        """What was acknowledged and is at no node. What retention has forgotten is for the ledger to find out."""
        events = {event["event_id"] for log in logs.values() for event in log}
        numbers = {name for entries in kept.values() for name in names_of(entries)}
        is_there = lambda one: str(one.number) in numbers if one.task is None else one.event_id in events
        may_be_forgotten = lambda one: self.scenario.trims and one.task
        self.missing = [one for one in self.ledger.acknowledged() if not is_there(one) and not may_be_forgotten(one)]

    def verdict(self, failure):
        """What is wrong, if anything; `failure` is what has ended the run."""
        if self.scenario.is_lost:
            # Here it is the other way round.
            unnoticed = "what was acknowledged and not synced should be missing, and is not noticed"
            return None if self.missing else f"{unnoticed}\n{failure or ''}"
        if self.violations:
            told = [*self.violations[:10], f"{len(self.violations)} violations"]
            failure = "\n".join([*told, failure or ""]).strip()
        return f"{failure}\n{self.tails()}" if failure else None

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

    def numbers(self):
        """What is added up over many runs."""
        refused = self.callers.refused
        return {
            "acknowledged": len(self.ledger.acknowledged()),
            "missing": len(self.missing),
            "doubled": sum("different callbacks" in violation for violation in self.violations),
            "refused": sum(refused.values()) - refused["unanswered"],
            "unanswered": refused["unanswered"],
            "silence_seconds": round(self.callers.longest_silence(), 2),
            "ends": "it has to lose them" if self.scenario.is_lost else "all nodes say *hole*" if self.told else None,
            "notes": self.notes,
        }

    def figures(self):
        numbers = self.numbers()
        parts = [
            f"{numbers['acknowledged']} acknowledged",
            f"longest silence {numbers['silence_seconds']:.1f} s",
            *(f"{numbers[what]} {what}" for what in ("refused", "unanswered", "missing", "doubled")),
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
        for subscriber in self.subscribers:
            subscriber.stop()  # it writes into the directory, which may be removed now
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
