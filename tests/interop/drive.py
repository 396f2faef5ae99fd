"""Runs one client against a broker of its own: fresh data, ports nobody else has. Owns the broker's process.

    drive.py [--through nginx|haproxy] BROKER WORK_DIR COMMAND...

The client finds everything in its environment: BLOBCAST_GRPC (host:port, of the proxy if there is one), BLOBCAST_INGEST (URL), INTEROP_HISTORY (the
file for what it saw), and INTEROP_CONTROL, a URL that takes three POSTs and answers when the broker is ready again, with
the same addresses:

    /crash     kill -9, then start on the same data
    /restart   SIGTERM, then start on the same data
    /replace   kill -9, then start on fresh data: another log
"""

import argparse
import http.server
import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
import time

from proxies import Proxy

READY_SECONDS = 60  # a debug build on a busy two-core machine needs about one
CLIENT_SECONDS = 180  # every client needs well under thirty


class Broker:
    """The broker's process, and what it takes to start the same one again."""

    def __init__(self, binary, work_dir):
        self.binary = binary
        self.work_dir = work_dir
        self.log_path = work_dir / "broker.log"
        self.generation = 0
        self.addresses = {"ingest": "127.0.0.1:0", "grpc": "127.0.0.1:0", "admin": "127.0.0.1:0"}
        self.start()

    def start(self):
        deadline = time.monotonic() + READY_SECONDS
        while not self.try_start(deadline):
            # While the broker was down, some outgoing connection may have been given one of its ports.
            if time.monotonic() > deadline or "in use" not in self.log_tail():
                raise SystemExit(f"the broker did not start:\n{self.log_tail()}")

    def try_start(self, deadline):
        listen = [f"--{name}-listen={address}" for name, address in self.addresses.items()]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("BLOBCAST_")}
        self.process = subprocess.Popen(
            [self.binary, "serve", f"--data-dir={self.work_dir}/data-{self.generation}", *listen],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=self.work_dir,
        )
        ready = queue.Queue()
        threading.Thread(target=self.read_log, args=(self.process.stderr, ready), daemon=True).start()
        try:
            line = ready.get(timeout=max(0, deadline - time.monotonic()))
        except queue.Empty:
            self.stop(signal.SIGKILL)
            return False
        if line is None:
            self.process.wait()
            return False
        self.addresses = {name: line[name] for name in self.addresses}
        return True

    def read_log(self, stream, ready):
        with self.log_path.open("a") as log:
            for text in stream:
                log.write(text)
                log.flush()
                try:
                    line = json.loads(text)
                except ValueError:
                    continue
                if line.get("message") == "ready":
                    ready.put(line)
        ready.put(None)

    def stop(self, how):
        self.process.send_signal(how)
        self.process.wait(READY_SECONDS)

    def log_tail(self):
        return "\n".join(self.log_path.read_text().splitlines()[-40:]) if self.log_path.exists() else ""


def control(broker):
    """Serves INTEROP_CONTROL; returns its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            if self.path == "/replace":
                broker.generation += 1
            broker.stop(signal.SIGTERM if self.path == "/restart" else signal.SIGKILL)
            broker.start()
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}"


def run(arguments, broker, proxy):
    """Runs the client and then stops the broker; returns what to exit with."""
    environment = os.environ | {
        "BLOBCAST_GRPC": proxy.address if proxy else broker.addresses["grpc"],
        "BLOBCAST_INGEST": f"http://{broker.addresses['ingest']}",
        "INTEROP_CONTROL": control(broker),
        "INTEROP_HISTORY": str(broker.work_dir / "history.jsonl"),
    }
    try:
        code = subprocess.run(
            arguments.command, env=environment, stdin=subprocess.DEVNULL, timeout=CLIENT_SECONDS
        ).returncode
    except subprocess.TimeoutExpired:
        print(f"not ok within {CLIENT_SECONDS} s")
        code = 1
    if code == 0:
        broker.stop(signal.SIGTERM)
        code = broker.process.returncode
        print("ok the broker drains and exits 0" if code == 0 else f"not ok the broker exited with {code}")
    return code


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--through", choices=["nginx", "haproxy"])
    parser.add_argument("broker", type=pathlib.Path)
    parser.add_argument("work_dir", type=pathlib.Path)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    work_dir = arguments.work_dir.resolve()
    work_dir.mkdir(parents=True)
    broker = Broker(arguments.broker.resolve(), work_dir)
    proxy = None
    try:
        if arguments.through:
            proxy = Proxy(arguments.through, work_dir, broker.addresses["grpc"])
        code = run(arguments, broker, proxy)
    finally:
        broker.process.kill()
        if proxy:
            proxy.stop()
    if code != 0:
        print(f"the broker's last words:\n{broker.log_tail()}")
    sys.exit(1 if code else 0)


main()
