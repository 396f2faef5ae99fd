"""What the scripts beside this file share: a broker of their own, tools built from Go, and waiting."""

import errno
import json
import os
import pathlib
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

sys.dont_write_bytecode = True

HERE = pathlib.Path(__file__).resolve().parent
TOOLS = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent.parent / "target")).resolve() / "ci" / "go"
SERVER_NAME = "hooks.example.test"  # in every certificate
PATIENCE_SECONDS = 60  # for what takes about one on an idle machine


class Failed(Exception):
    """Something was not as it has to be."""


class Broker:
    """The broker's process, with `settings` ("section.key": value) over its defaults, and what starts it again."""

    def __init__(self, binary, directory, settings, environment=None, before=None):
        self.binary, self.directory, self.settings = str(pathlib.Path(binary).resolve()), pathlib.Path(directory), settings
        self.environment = environment or {}  # besides
        self.before = before  # done by the new process, before it is the broker
        self.directory.mkdir(parents=True, exist_ok=True)
        self.log_path = self.directory / "broker.log"
        self.start()

    def start(self):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("BLOBCAST_")}
        defaults = {f"{name}.listen": "127.0.0.1:0" for name in ("ingest", "grpc", "admin")}
        for key, value in ({"data_dir": self.directory / "data"} | defaults | self.settings).items():
            environment[f"BLOBCAST_{key.upper().replace('.', '__')}"] = str(value)
        environment |= self.environment
        begin = self.log_path.stat().st_size if self.log_path.exists() else 0
        with self.log_path.open("a", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [self.binary, "serve"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=environment,
                preexec_fn=self.before,
            )
        ready = until("the broker to start", lambda: self.process.poll() is not None or self.logged("ready", begin))
        if ready is True:
            raise Failed(f"the broker did not start:\n{self.log_path.read_text()[begin:]}")
        self.ingest, self.grpc, self.admin = (address_of(ready[0][name]) for name in ("ingest", "grpc", "admin"))

    def logged(self, message, begin=0):
        """The lines of the log with this message."""
        with self.log_path.open(encoding="utf-8") as log:
            log.seek(begin)
            lines = [json.loads(line) for line in log if line.startswith("{") and line.endswith("}\n")]
        return [line for line in lines if line.get("message") == message]

    def restart(self):
        self.stop()
        self.start()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        if self.process.wait(PATIENCE_SECONDS) != 0:
            raise Failed(f"the broker ended with {self.process.returncode}")

    def metrics(self):
        """Every metric, by its name with its labels."""
        with urllib.request.urlopen(f"http://{self.admin[0]}:{self.admin[1]}/metrics", timeout=PATIENCE_SECONDS) as answer:
            lines = answer.read().decode().splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}

    def alive(self):
        return self.process.poll() is None


def address_of(text):
    host, port = text.rsplit(":", 1)
    return host, int(port)


def callback(task):
    """A callback's body."""
    return json.dumps({"generation_id": task, "status": "completed", "video_url": "https://a.example/v"}).encode()


def until(what, probe, seconds=PATIENCE_SECONDS):
    """Waits until `probe` returns something, and returns it."""
    deadline = time.monotonic() + seconds
    while True:
        if found := probe():
            return found
        if time.monotonic() > deadline:
            raise Failed(f"waited {seconds} s for {what}")
        time.sleep(0.1)


def free_port(host="127.0.0.1"):
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def allow_open_files():
    """As many as may be had; how many."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return sys.maxsize if most == resource.RLIM_INFINITY else most


# What a system call says when the kernel has something not, or lets nobody have it: not for want of a tool or a right that this
# user could be given.
REFUSALS = (errno.EPERM, errno.EACCES, errno.EROFS, errno.ENOSYS, errno.ENODEV, errno.ENXIO, errno.ENOENT)


def not_here(what, problems):
    """Skips something, loudly. With CI=true only where it is the kernel that refuses it to root."""
    told = "; ".join(map(str, problems))
    is_refused = os.geteuid() == 0 and all(problem.errno in REFUSALS for problem in problems)
    if os.environ.get("CI") == "true" and not is_refused:
        raise Failed(f"{what}: {told}")
    print(f"== SKIPPED: {what}: {told}", flush=True)


def go_tools():
    """Builds what go/go.mod names; where it is. Without Go: skips, or fails where CI=true, like the interop tests."""
    if shutil.which("go") is None:
        print(f"{pathlib.Path(sys.argv[0]).name}: go is missing")
        raise SystemExit(1 if os.environ.get("CI") == "true" else 0)
    subprocess.run(["go", "install", "tool"], cwd=HERE / "go", env={**os.environ, "GOBIN": str(TOOLS)}, check=True)
    return TOOLS
