"""Runs one client against a broker of its own: fresh data, ports nobody else has.

    drive.py [--through nginx|haproxy] BROKER WORK_DIR COMMAND...

The client finds everything in its environment: BLOBCAST_GRPC (host:port, of the proxy if there is one), BLOBCAST_INGEST (URL), INTEROP_HISTORY (the
file for what it saw), INTEROP_NODES, and INTEROP_CONTROL, a URL that takes four POSTs. It answers the first three when the
broker is ready again, with the same addresses:

    /crash     kill -9, then start on the same data
    /restart   SIGTERM, then start on the same data
    /replace   kill -9, then start on fresh data: another log
    /cut       ends the connections to the first address of INTEROP_NODES, which takes no more of them

INTEROP_NODES is three addresses with commas between them, as of the nodes of a cluster: a way to the broker that can be cut, one
where nobody is, and BLOBCAST_GRPC.
"""

import argparse
import contextlib
import http.server
import itertools
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / "support"))
from broker import Broker
from proxies import Proxy, free_port

CLIENT_SECONDS = 180  # every client needs well under thirty


class Relay:
    """Passes connections on to an address until it is cut."""

    def __init__(self, target):
        self.target, self.sockets = target.rsplit(":", 1), []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                here, _ = self.listener.accept()
                there = socket.create_connection(self.target)
            except OSError:
                return
            self.sockets += [here, there]
            for pair in ((here, there), (there, here)):
                threading.Thread(target=self.copy, args=pair, daemon=True).start()

    def copy(self, source, sink):
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        self.end(source, sink)

    def cut(self):
        self.end(self.listener, *self.sockets)

    def end(self, *sockets):
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for it
            one.close()


def control(broker, relay):
    """Serves INTEROP_CONTROL; returns its URL."""

    logs = itertools.count(1)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            if self.path == "/cut":
                relay.cut()
            else:
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
    address = proxy.address if proxy else broker.addresses["grpc"]
    relay = Relay(address)
    environment = os.environ | {
        "BLOBCAST_GRPC": address,
        "BLOBCAST_INGEST": f"http://{broker.addresses['ingest']}",
        "INTEROP_CONTROL": control(broker, relay),
        "INTEROP_NODES": f"{relay.address},127.0.0.1:{free_port()},{address}",
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
