"""What Prometheus would see of a broker while troubles come and go, and which alerts it would fire.

A story scrapes a real broker before and after each trouble. promtool then evaluates the rules as if minutes lay between the scrapes: so
hours take seconds.
"""

import itertools
import json
import pathlib
import re
import subprocess
import time

from .broker import Broker, Failed, until
from .machine import Disk

ROOT = pathlib.Path(__file__).resolve().parents[3]
RULES = ROOT / "deploy/prometheus/blobcast.rules.yml"
LABELS = {"job": "blobcast", "instance": "a"}
IS_COUNTER = re.compile(r"_(total|bucket|count|sum)\{")
ALL = []  # every story


def story(*alerts, step="1m", change=None):
    """Marks a function as the story that shows these alerts fire. `change` changes the rules' text, as operators are told to."""

    def mark(tell):
        ALL.append(Story(tell, alerts, step, change or (lambda text: text)))
        return tell

    return mark


class Story:
    def __init__(self, tell, alerts, step, change):
        self.tell, self.alerts, self.step, self.change = tell, alerts, step, change
        self.name = tell.__name__
        self.moments, self.brokers, self.disks, self.runbook = [], [], [], None

    def run(self, binary, directory, runbook):
        self.binary, self.directory, self.runbook = binary, directory, runbook
        try:
            self.tell(self)
        except Exception as error:
            logs = "\n".join(f"{broker.log_path.read_text()[-4_000:]}" for broker in self.brokers)
            raise Failed(f"{self.name}: {type(error).__name__}: {error}\n{logs}") from error
        finally:
            for one in self.brokers + self.disks:
                one.end()
        missing = set(self.alerts).difference(*(moment.fires for moment in self.moments))
        if missing:
            raise Failed(f"{self.name}: no moment expects {', '.join(missing)}")

    def broker(self, settings=None, config=None, directory=None, environment=None):
        directory = directory or self.directory / f"broker-{len(self.brokers)}"
        self.brokers.append(Broker(self.binary, directory, settings, config, environment))
        return self.brokers[-1]

    def disk(self, mib):
        self.disks.append(Disk(self.directory / f"disk-{len(self.disks)}", mib))
        return self.disks[-1]

    def scrape(self, broker, steps, fires=None, steadily=False, and_still=(), when=None, **named):
        """What is so after some steps (of a minute mostly), `steadily` or from the first of them on: these alerts fire, and no others.

        `fires` says for each what the command of its runbook has to print now; `named` replaces words of the commands. Where `when` is
        given, it is the first scrape of which that is so.
        """
        fires = fires or {}
        samples = until("the scrape", lambda: samples_of(broker, when))
        self.moments.append(Moment(time.time(), samples, steps, steadily, {*fires, *and_still}))
        self.runbook.check(broker, fires, named)

    def test(self):
        """For promtool."""
        evaluated, series, end = [], {}, 0
        names = set().union(*(moment.samples for moment in self.moments))
        seconds = {"1m": 60, "10m": 600}[self.step]
        known = []  # (real time, time of the test) of each scrape
        before = {}
        for moment in self.moments:
            begin, end = end, end + moment.steps
            known.append((moment.at, (end - 1 if moment.steadily else begin) * seconds))
            for name in names:
                series.setdefault(name, []).extend(moment.values(name, before, known))
            before = moment.samples
            labels = [{"labels": f'{{alertname="Blobcast{name}"}}', "value": 1} for name in sorted(moment.fires)]
            # All that fires, for whatever it fires.
            query = 'count by (alertname) (count by (alertname, instance) (ALERTS{alertstate="firing"}))'
            evaluated.append({"expr": query, "eval_time": f"{(end - 1) * seconds}s", "exp_samples": labels})
        series = [{"series": name, "values": " ".join(values)} for name, values in sorted(series.items())]
        return {"name": self.name, "interval": self.step, "input_series": series, "promql_expr_test": evaluated}


class Moment:
    """One scrape, and how long it is seen."""

    def __init__(self, at, samples, steps, steadily, fires):
        self.at, self.samples, self.steps, self.steadily, self.fires = at, samples, steps, steadily, fires

    def values(self, name, before, known):
        if name not in self.samples:
            return ["stale"] + ["_"] * (self.steps - 1)
        value = self.samples[name]
        if "_timestamp_seconds{" in name and value > 0:
            value = in_test(value, known)
        if self.steadily and name in before and IS_COUNTER.search(name):
            begin = before[name]
            return [f"{begin + (value - begin) * step / self.steps:.10g}" for step in range(1, self.steps + 1)]
        return [repr(value)] * self.steps


def in_test(moment, known):
    """A time that a broker names, in the test's time: between two scrapes there as here."""
    (first, first_there), (last, last_there) = known[0], known[-1]
    if moment <= first:
        return max(1, first_there - (first - moment))  # which begins at 0
    for (begin, begin_there), (end, end_there) in itertools.pairwise(known):
        if begin < moment <= end:
            return begin_there + (moment - begin) / (end - begin) * (end_there - begin_there)
    return last_there + (moment - last)


def samples_of(broker, when=None):
    """By series, its value. Of a broker that does not answer only that; without a broker nothing of it."""
    if broker is None:
        return {"other": 1.0}
    try:
        metrics = broker.metrics()
    except OSError:
        return {series("up", ""): 0.0}
    if when and not when(metrics):
        return None
    used = {name: value for name, value in metrics.items() if name.partition("{")[0] in NAMED}
    return {series(*name.rstrip("}").partition("{")[::2]): value for name, value in used.items()} | {
        series("up", ""): 1.0
    }


def series(name, labels):
    added = ",".join(f'{label}="{value}"' for label, value in LABELS.items())
    return f"{name}{{{labels + ',' if labels else ''}{added}}}"


def without_comments(text):
    return re.sub(r"^ *#.*$", "", text, flags=re.MULTILINE)


NAMED = set(re.findall(r"\b(?:blobcast|process)_\w+", without_comments(RULES.read_text())))


def alerts_of_rules():
    return set(re.findall(r"- alert: Blobcast(\w+)", RULES.read_text()))


def check(stories, directory):
    """Lets promtool evaluate them, those of a kind together and kinds side by side; what is wrong."""
    kinds = {}
    for one in stories:
        kinds.setdefault((one.step, one.change(RULES.read_text())), []).append(one)
    running = []
    for number, ((step, rules), alike) in enumerate(kinds.items()):
        path = directory / f"rules-{number}.yml"
        path.write_text(rules)
        test = {"rule_files": [str(path)], "evaluation_interval": step, "tests": [one.test() for one in alike]}
        written = directory / f"test-{number}.json"
        written.write_text(json.dumps(test))  # JSON is YAML
        command = ["promtool", "test", "rules", written]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    outputs = [process.communicate()[0] for process in running]
    return "\n".join(output for process, output in zip(running, outputs, strict=True) if process.returncode != 0)
