"""`blobcast listen` and `wait` across a broker that is killed, and `listen` across an address that is cut. `drive.py` sets the
environment.

command_line.py BROKER
"""

import concurrent.futures
import json
import os
import subprocess
import sys

from history import BURST, CALL_SECONDS, History, control, run


def start(binary, addresses, *words):
    command = [binary, *words, "--grpc-url", addresses]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)


def listen(binary, addresses, product, how):
    """Each event that was answered 200 is printed, once, in order, across an outage that callbacks race."""
    history = History()
    history.post(product, f"{product}-first")
    words = ["--from", "earliest", "--product", product, "--output", "json", "--count", str(BURST + 2)]
    with concurrent.futures.ThreadPoolExecutor() as pool, start(binary, addresses, "listen", *words) as process:
        try:
            printed = [process.stdout.readline()]
            history.burst(product, how, pool)
            printed += process.communicate(timeout=CALL_SECONDS)[0].splitlines()
        finally:
            process.kill()
    for event in map(json.loads, printed):
        history.saw(event["event_id"], event["cursor"], event["task_id"])
    assert process.returncode == 0, process.returncode
    history.check()


def wait(binary):
    """The result of a task that ends after the outage."""
    with start(binary, os.environ["BLOBCAST_GRPC"], "wait", "late", "--product", "veo") as process:
        try:
            control("crash")
            History().post("veo", "late")
            printed, _ = process.communicate(timeout=CALL_SECONDS)
        finally:
            process.kill()
    assert (process.returncode, printed) == (0, "https://cdn.example/late.mp4\n"), (process.returncode, printed)


def main(binary):
    address, nodes = os.environ["BLOBCAST_GRPC"], os.environ["INTEROP_NODES"]
    run(
        {
            "listen goes on after kill -9": lambda: listen(binary, address, "kling", "crash"),
            "listen goes on after a graceful restart": lambda: listen(binary, address, "gemini", "restart"),
            "listen goes on at the next address": lambda: listen(binary, nodes, "hailuo", "cut"),
            "wait goes on after kill -9": lambda: wait(binary),
        }
    )


main(*sys.argv[1:])
