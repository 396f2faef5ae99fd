"""What docs/subscribing.md and docs/callbacks.md tell Python services to write, run as it stands there. `../drive.py` sets the environment.

    documents.py BROKER DOCS

The broker that `drive.py` runs is on loopback and asks nothing of callbacks; the one for signed URLs is another, of BROKER.
"""

import contextlib
import json
import os
import pathlib
import queue
import re
import shlex
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent.parent
sys.path.append(str(ROOT / "tests/support"))
from broker import Broker
from history import CALL_SECONDS, History, control, run

PRINTED_ADDRESS = '"127.0.0.1:50051"'
EACH = 3  # callbacks before and after each outage


def blocks(text):
    """The fenced blocks of Python, by the function each defines."""
    found = re.findall(r"^( *)```python\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL)
    return {
        re.search(r"^def (\w+)", code, re.MULTILINE)[1]: code for code in (textwrap.dedent(code) for _, code in found)
    }


def generate(text, directory):
    """The stubs, by the command line that is printed."""
    command = re.search(r"`python (-m grpc_tools\.protoc [^`]*)`", text)[1]
    (directory / "proto").symlink_to(ROOT / "proto")
    subprocess.run([sys.executable, *shlex.split(command)], cwd=directory, check=True)


def follow(code, directory):
    """The loop prints each event, across an address that is cut, a broker that is killed and one that restarts."""
    assert code.count(PRINTED_ADDRESS) == 1
    nodes = ", ".join(f'"{address}"' for address in os.environ["INTEROP_NODES"].split(","))
    (directory / "follow.py").write_text(code.replace(PRINTED_ADDRESS, nodes))
    process = subprocess.Popen([sys.executable, "-u", "follow.py"], cwd=directory, stdout=subprocess.PIPE, text=True)
    lines = queue.Queue()
    threading.Thread(target=lambda: [lines.put(line.rstrip("\n")) for line in process.stdout], daemon=True).start()
    history = History()
    with contextlib.closing(process.stdout), process:
        try:
            skip_to_live(history, lines)
            posted = []
            for part, how in (("begin", "cut"), ("before", "crash"), ("between", "restart"), ("after", None)):
                posted += [f"{part}-{number}" for number in range(EACH)]
                for task_id in posted[-EACH:]:
                    history.post("veo", task_id)
                if how:
                    control(how)
            history.post("sora", "another-product")
            printed = [lines.get(timeout=CALL_SECONDS) for _ in posted]
            assert printed == [f"{task_id} ['https://cdn.example/{task_id}.mp4']" for task_id in posted], printed
            assert process.poll() is None, process.returncode
        finally:
            process.kill()


def skip_to_live(history, lines):
    """Without a start the stream begins at the head, whenever that is: posts until one is printed, and takes what follows."""
    deadline, number = time.monotonic() + CALL_SECONDS, 0
    while lines.empty():
        assert time.monotonic() < deadline, "nothing is printed"
        history.post("veo", f"first-{number}")
        number += 1
        time.sleep(0.1)
    while not lines.get(timeout=CALL_SECONDS).startswith(f"first-{number - 1} "):
        pass


def callback_url(code, binary, directory):
    """A URL minted offline is taken; with another product, or by another key, it is not."""
    made = json.loads(subprocess.check_output([binary, "token", "new", "signing-key", "k1", "--output", "json"]))
    (directory / "credentials.toml").write_text(f"[{made['section']}]\n{made['line']}\n")
    secret = made["secret"]
    defined = {}
    exec(code, defined)  # that is the point
    broker = Broker(binary, directory, {"credentials_file": directory / "credentials.toml"}).start()
    try:
        base = f"http://{broker.addresses['ingest']}"
        for number, labels in enumerate(("", "ref=42&team=ads")):
            url = defined["callback_url"](base, "k1", secret, "veo", labels)
            assert post(url, f"signed-{number}") == 200, url
            assert post(url.replace("/veo?", "/sora?"), "forged") == 401
        other = secret[:-4] + ("AAAA" if secret[-4:] != "AAAA" else "BAAA")
        assert post(defined["callback_url"](base, "k1", other, "veo"), "forged") == 401
        events = broker.read_whole("events")
        assert [event["task_id"] for event in events] == ["signed-0", "signed-1"], events
        assert [event.get("labels", {}) for event in events] == [{}, {"ref": "42", "team": "ads"}], events
    finally:
        broker.stop()


def post(url, task_id):
    body = {"generation_id": task_id, "status": "completed", "video_url": f"https://cdn.example/{task_id}.mp4"}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, data=json.dumps(body).encode()), timeout=CALL_SECONDS
        ) as answer:
            return answer.status
    except urllib.error.HTTPError as refused:
        return refused.code


def main(binary, docs):
    text = "\n".join(page.read_text() for page in sorted(pathlib.Path(docs).glob("*.md")))
    code = blocks(text)
    assert set(code) == {"follow", "callback_url"} and text.count("```python") == len(code), (
        f"not each block has a check: {set(code)}"
    )
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        run(
            {
                "subscribing.md generates the stubs": lambda: generate(text, directory),
                "subscribing.md follows a stream across an address that is cut, kill -9 and a restart": lambda: follow(
                    code["follow"], directory
                ),
                "callbacks.md mints a callback URL": lambda: callback_url(code["callback_url"], binary, directory),
            }
        )


main(*sys.argv[1:])
