"""The broker's process for every script in Python: starts it, restarts it at the same addresses, reads its log, stops it.

A script beside another folder finds it by `sys.path.append(str(ROOT / "tests/support"))`.
"""

import http.client
import json
import os
import pathlib
import re
import signal
import subprocess
import time
import urllib.request

READY_SECONDS = 60  # a debug build needs about one, and more on a busy machine with a log to replay
ANSWER_SECONDS = 60
POLL_SECONDS = 0.02
LISTENERS = ("ingest", "grpc", "admin")
# Under systemd each line begins with its priority.
LOG_LINE = re.compile(r"^(?:<\d>)?(\{.*\})$", re.MULTILINE)


class Failed(Exception):
    """A promise was not kept, or the broker does not run."""


class NotStarted(Failed):
    """The broker ended before it was ready. The text is the end of its log."""


class Broker:
    """One broker. Its log is `broker.log` in `directory`, and so is its data unless `settings` has another `data_dir`.

    `settings` ("section.key": value) can be changed between starts. `environment` is added to what the process inherits,
    which is everything but variables of the broker. `prefix` is a command that runs the broker, and `before` is called in
    the new process.
    """

    def __init__(self, binary, directory, settings=None, *, environment=None, prefix=(), before=None):
        self.binary, self.directory = os.path.abspath(binary), pathlib.Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.settings, self.prefix, self.before = dict(settings or {}), list(prefix), before
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("BLOBCAST_")}
        self.environment, self.client_environment = inherited | (environment or {}), dict(inherited)
        self.addresses = dict.fromkeys(LISTENERS, "127.0.0.1:0")
        self.log_path, self.log_begin = self.directory / "broker.log", 0
        self.log_path.touch()
        self.process = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def start(self):
        """Returns when the broker is ready. The first start finds free ports, and later ones take the same."""
        deadline = time.monotonic() + READY_SECONDS
        while not self.try_start(deadline):
            # While the broker was down, an outgoing connection may have been given one of its ports.
            if "in use" not in self.tail() or "in use by another process" in self.tail():
                raise NotStarted(self.tail())
            if time.monotonic() > deadline:
                raise Failed(self.tail())
        return self

    def try_start(self, deadline):
        self.spawn()
        while True:
            has_ended = self.process.poll() is not None
            if ready := self.logged("ready", self.log_begin):
                self.addresses = {name: ready[0][name] for name in LISTENERS}
                return True
            if has_ended:
                return False
            if time.monotonic() > deadline:
                self.kill()
                raise Failed(f"the broker is not ready after {READY_SECONDS} s:\n{self.tail()}")
            time.sleep(POLL_SECONDS)

    def spawn(self, stderr=None):
        """Starts the process and does not wait."""
        listen = {f"{name}.listen": address for name, address in self.addresses.items()}
        settings = {"data_dir": self.directory / "data"} | listen | self.settings
        variables = {f"BLOBCAST_{key.upper().replace('.', '__')}": str(value) for key, value in settings.items()}
        self.log_begin = self.log_path.stat().st_size
        with self.log_path.open("a") as log:
            self.process = subprocess.Popen(
                [*self.prefix, self.binary, "serve"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr or log,
                env=self.environment | variables,
                cwd=self.directory,
                preexec_fn=self.before,
            )

    def restart(self):
        self.stop()
        self.start()

    def stop(self):
        """Ends the broker in order: it has to drain and exit with 0."""
        if code := self.kill(signal.SIGTERM):
            raise Failed(f"after SIGTERM the broker exited with {code}:\n{self.tail()}")

    def kill(self, how=signal.SIGKILL):
        """Sends a signal that ends the process, and returns the exit code."""
        if traced := self.traced():
            os.kill(traced, how)
        else:
            self.process.send_signal(how)
        return self.process.wait(READY_SECONDS)

    def traced(self):
        """The broker's process, if `prefix` runs it as a child: a tracer would end first, and leave the broker running."""
        if not self.prefix or not self.alive():
            return None
        process = self.process.pid
        children = pathlib.Path(f"/proc/{process}/task/{process}/children").read_text().split()
        return int(children[0]) if children else None

    def alive(self):
        return self.process.poll() is None

    @property
    def ingest(self):
        return host_and_port(self.addresses["ingest"])

    @property
    def grpc(self):
        return host_and_port(self.addresses["grpc"])

    @property
    def admin(self):
        return host_and_port(self.addresses["admin"])

    def connect(self):
        """A connection for callbacks."""
        return http.client.HTTPConnection(*self.ingest, timeout=ANSWER_SECONDS)

    def client(self, *words, **options):
        """A process of the command line, which talks to this broker."""
        environment = {"BLOBCAST_GRPC_URL": f"http://{self.addresses['grpc']}"} | self.client_environment
        command = [self.binary, *map(str, words)]
        return subprocess.Popen(command, env=environment, text=True, stdin=subprocess.DEVNULL, **options)

    def read(self, *words):
        """What a command prints as JSON, and its complaint if it fails, else None."""
        process = self.client(*words, "--output", "json", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, complaint = process.communicate(timeout=READY_SECONDS)
        return [json.loads(line) for line in out.splitlines()], complaint if process.returncode else None

    def read_whole(self, *words):
        found, complaint = self.read(*words)
        if complaint is not None:
            raise Failed(f"`blobcast {' '.join(words)}` failed: {complaint}")
        return found

    def metrics(self):
        """Every metric, by its name with its labels."""
        url = f"http://{self.addresses['admin']}/metrics"
        with urllib.request.urlopen(url, timeout=ANSWER_SECONDS) as answer:
            lines = answer.read().decode().splitlines()
        samples = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in samples}

    def logged(self, message, begin=0):
        """The lines of the log with this message, from a byte of the file on."""
        lines = map(json.loads, LOG_LINE.findall(self.log_text(begin)))
        return [line for line in lines if line.get("message") == message]

    def log_text(self, begin=0):
        with self.log_path.open("rb") as log:
            log.seek(begin)
            return log.read().decode(errors="replace")

    def tail(self):
        """The last lines of the log since the last start."""
        return "".join(self.log_text(self.log_begin).splitlines(keepends=True)[-20:])


def host_and_port(text):
    host, port = text.rsplit(":", 1)
    return host, int(port)
