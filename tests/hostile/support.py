"""What the scripts beside this one share: bodies of callbacks, waiting, tools built from Go. The broker is of tests/support."""

import errno
import json
import os
import pathlib
import resource
import shutil
import socket
import subprocess
import sys
import time

sys.dont_write_bytecode = True

HERE = pathlib.Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "support"))
from broker import LISTENERS, Broker, Failed  # noqa: F401 # for the scripts

TOOLS = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent.parent / "target")).resolve() / "ci" / "go"
SERVER_NAME = "hooks.example.test"  # in every certificate
PATIENCE_SECONDS = 60  # for what takes about one on an idle machine


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
