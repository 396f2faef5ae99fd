"""Runs one client against a broker of its own: fresh data, ports nobody else has.

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
import itertools
import os
import pathlib
import signal
import subprocess
import sys
import threading

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / "support"))
from broker import Broker
from proxies import Proxy

CLIENT_SECONDS = 180  # every client needs well under thirty


def control(broker):
    """Serves INTEROP_CONTROL; returns its URL."""

    logs = itertools.count(1)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            if self.path == "/replace":
                broker.settings["data_dir"] = broker.directory / f"data-{next(logs)}"
            broker.kill(signal.SIGTERM if self.path == "/restart" else signal.SIGKILL)
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
        "INTEROP_HISTORY": str(broker.directory / "history.jsonl"),
    }
    try:
        code = subprocess.run(
            arguments.command, env=environment, stdin=subprocess.DEVNULL, timeout=CLIENT_SECONDS
        ).returncode
    except subprocess.TimeoutExpired:
        print(f"not ok within {CLIENT_SECONDS} s")
        code = 1
    if code == 0:
        code = broker.kill(signal.SIGTERM)
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
    broker = Broker(arguments.broker, work_dir).start()
    proxy = None
    try:
        if arguments.through:
            proxy = Proxy(arguments.through, work_dir, broker.addresses["grpc"])
        code = run(arguments, broker, proxy)
    finally:
        broker.kill()
        if proxy:
            proxy.stop()
    if code != 0:
        print(f"the broker's last words:\n{broker.tail()}")
    sys.exit(1 if code else 0)


main()
