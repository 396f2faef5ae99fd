"""The commands of docs/alerts.md, asked of the broker that has the trouble, as the page has them."""

import os
import re
import stat
import subprocess
import time

from .broker import Failed
from .story import ROOT

PAGE = ROOT / "docs/alerts.md"
COMMAND_SECONDS_MAX = 60  # the slowest take 4 s by themselves
PATIENCE_SECONDS = 10
# Only what the page's commands use of them. The journal is the broker's log, where each line begins with its priority.
TOOLS = {
    "journalctl": """#!/usr/bin/env python3
import argparse, datetime, os, re, sys
options = argparse.ArgumentParser()
for name in ("-u", "-o", "-p", "-n", "-g", "--since"):
    options.add_argument(name)
options.add_argument("-k", action="store_true")
asked = options.parse_args(re.sub("--since\\0-", "--since=-", "\\0".join(sys.argv[1:])).split("\\0"))
assert asked.k != (asked.u == "blobcast") and asked.o in (None, "cat") and asked.p in (None, "err"), asked
minutes = int(re.fullmatch(r"-(\\d+)min", asked.since or "-9999min")[1])
begin = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(minutes=minutes)
lines = []
for line in [] if asked.k else open(os.environ["BROKER_LOG"]):
    priority, text = re.fullmatch(r"(?:<(\\d)>)?(.*)\\n", line).groups()
    at = re.search(r'"timestamp":"([^"]*)Z"', text)
    if int(priority or 6) <= (3 if asked.p else 7) and at and at[1] >= begin.isoformat():
        lines.append(text)
print(*lines[-int(asked.n or 9999):], sep="\\n")
""",
    "systemctl": """#!/bin/sh
[ "$1 $2" = "status blobcast" ] || [ "$1 $2" = "status systemd-journald" ] || exit 4
kill -0 "$BROKER_PID" 2>/dev/null && echo "Active: active (running)" || echo "Active: failed"
""",
}


class Runbook:
    def __init__(self, directory, binary):
        self.tools = directory / "tools"
        self.tools.mkdir()
        (self.tools / "blobcast").symlink_to(binary)
        for name, text in TOOLS.items():
            (self.tools / name).write_text(text)
            (self.tools / name).chmod(stat.S_IRWXU)
        sections = re.split(r"^## Blobcast(\w+)$", PAGE.read_text(), flags=re.MULTILINE)[1:]
        self.commands = {
            name: re.findall(r"```sh\n(.*?)\n```", text, re.DOTALL)
            for name, text in zip(sections[::2], sections[1::2], strict=True)
        }
        self.asked = set()
        # It needs a hierarchy of cgroups, which not every container has.
        self.has_cgroups = (
            subprocess.run(["systemd-cgtop", "-n", "1", "-b"], capture_output=True, check=False).returncode == 0
        )
        if not self.has_cgroups:
            print("== SKIPPED: alerts: systemd-cgtop shows nothing here", flush=True)

    def check(self, broker, expected, named):
        """Asks for each alert what its section says, once for those that ask the same; each finds its expression in the answer."""
        wanted = {}
        for alert, expression in expected.items():
            if expression is not None:
                self.asked.add(alert)
                for command in self.commands[alert]:
                    if "systemd-cgtop" in command and not self.has_cgroups:
                        continue
                    wanted.setdefault(command, set()).add(expression)
        for command, expressions in wanted.items():
            # A line of the log is written a moment after what it is about.
            deadline = time.monotonic() + (PATIENCE_SECONDS if "journalctl" in command else 0)
            while problem := self.problem(broker, command, expressions, named):
                if time.monotonic() > deadline:
                    raise Failed(f"{command}: {problem}")
                time.sleep(0.2)

    def problem(self, broker, command, expressions, named):
        status, answer, error = self.answer(broker, command, named)
        missing = [expression for expression in expressions if not re.search(expression, answer)]
        return f"{status}, without {missing}:\n{answer}{error}" if status != 0 or missing else None

    def answer(self, broker, command, named):
        if broker:
            ours = {
                "http://127.0.0.1:9090": "http://{}:{}".format(*broker.admin),
                "/var/lib/blobcast": str(broker.directory / "data"),
            }
            ours[" / "] = f" {broker.directory} "
            named = ours | named
        for word, value in named.items():
            command = command.replace(word, str(value))
        environment = broker.environment_of() if broker else dict(os.environ)
        if broker:
            environment |= {"BROKER_LOG": str(broker.log_path), "BROKER_PID": str(broker.process.pid)}
        environment["PATH"] = f"{self.tools}:{environment['PATH']}"
        # In a pipe the last command's status is what counts for the operator, too.
        asked = ["bash", "-c", command]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=COMMAND_SECONDS_MAX, env=environment)
        return done.returncode, done.stdout, done.stderr
