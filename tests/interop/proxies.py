"""nginx and HAProxy in front of a broker, configured by what docs/deploying.md says. Owns the proxy's process.

The blocks of docs/deploying.md are used as they stand there, but for the ports: 50051 is the broker, 50052 and 50053 are the proxies.
"""

import pathlib
import re
import socket
import subprocess
import time

PAGE = pathlib.Path(__file__).resolve().parent.parent.parent / "docs/deploying.md"
BROKER = "127.0.0.1:50051"
READY_SECONDS = 20

# What stands around the block in a whole file, so that nothing is written anywhere but in the directory, by nobody but us.
NGINX = """
daemon off; pid {directory}/nginx.pid; error_log stderr; worker_processes 1;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {directory}; proxy_temp_path {directory}; fastcgi_temp_path {directory};
    uwsgi_temp_path {directory}; scgi_temp_path {directory};
{block}}}
"""


class Proxy:
    """A proxy that runs until it is stopped."""

    def __init__(self, name, directory, broker):
        directory = directory / name
        directory.mkdir(parents=True)
        self.address = f"127.0.0.1:{free_port()}"
        listen = {"nginx": "127.0.0.1:50052", "haproxy": "127.0.0.1:50053"}[name]
        block = configuration(name)
        assert block.count(BROKER) == 1 and block.count(listen) == 1, (
            f"{name} of docs/deploying.md is not understood:\n{block}"
        )
        block = block.replace(BROKER, broker).replace(listen, self.address)
        file = directory / f"{name}.conf"
        file.write_text(NGINX.format(directory=directory, block=block) if name == "nginx" else block)
        command = {
            "nginx": ["nginx", "-p", str(directory), "-e", "stderr", "-c", str(file)],
            "haproxy": ["haproxy", "-W", "-f", str(file)],
        }[name]
        with (directory / "log").open("w") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.wait_until_ready(directory / "log")

    def wait_until_ready(self, log):
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                socket.create_connection(self.address.split(":"), timeout=READY_SECONDS).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"the proxy did not start:\n{log.read_text()}") from None
                time.sleep(0.05)

    def stop(self):
        self.process.terminate()
        self.process.wait(READY_SECONDS)


def configuration(name):
    """The block of docs/deploying.md that configures this proxy."""
    return re.search(rf"^```{name}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)[1]


def free_port():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]
