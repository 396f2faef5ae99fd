"""What a person with grpcurl asks of blobcast, checked against a real broker: the schema comes from reflection alone.

`../drive.py` sets the environment; the argument is the grpcurl to use.
"""

import concurrent.futures
import itertools
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import time
import urllib.request

from history import CALL_SECONDS, History, control, run

GRPCURL = sys.argv[1]
STATUS_EXIT = 64  # grpcurl's exit code is this plus the status code
OK, INVALID_ARGUMENT, FAILED_PRECONDITION, UNAVAILABLE = 0, STATUS_EXIT + 3, STATUS_EXIT + 9, STATUS_EXIT + 14
EVENTS = "blobcast.v1.EventService"
ROOT = pathlib.Path(__file__).resolve().parent.parent.parent.parent
PAGES = (ROOT / "README.md", ROOT / "docs/subscribing.md")
PRINTED_ADDRESS = "127.0.0.1:50051"


class Call:
    """One run of grpcurl. Iterating it gives the messages as they come."""

    def __init__(self, method, request=None, address=None):
        self.process = subprocess.Popen(
            [
                GRPCURL,
                "-plaintext",
                "-format-error",
                f"-max-time={CALL_SECONDS}",
                f"-d={json.dumps(request or {})}",
                address or os.environ["BLOBCAST_GRPC"],
                method,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def __iter__(self):
        decoder, text = json.JSONDecoder(), ""
        while chunk := os.read(self.process.stdout.fileno(), 65536):
            text += chunk.decode()
            while text := text.lstrip():
                try:
                    message, end = decoder.raw_decode(text)
                except ValueError:
                    break  # the rest of it is still to come
                yield message
                text = text[end:]

    def end(self):
        """Its exit code, and what it said about an error."""
        stderr = self.process.stderr.read()
        return self.process.wait(), stderr.decode()

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()


def unary(method, request=None):
    call = Call(method, request)
    messages = list(call)
    code, stderr = call.end()
    assert code == OK and len(messages) == 1, (code, stderr, messages)
    return messages[0]


def subscribe(**request):
    return Call(f"{EVENTS}/Subscribe", request)


def saw(history, message):
    history.saw(message["event"]["eventId"], message["event"]["cursor"], message["event"]["taskId"])


def reflection():
    def grpcurl(*arguments):
        command = [GRPCURL, "-plaintext", os.environ["BLOBCAST_GRPC"], *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=CALL_SECONDS).stdout

    services = grpcurl("list").split()
    assert {EVENTS, "blobcast.v1.AdminService", "grpc.health.v1.Health"} <= set(services), services
    assert "rpc Subscribe ( .blobcast.v1.SubscribeRequest ) returns ( stream" in grpcurl("describe", EVENTS)
    assert "Where the event stands in the log." in grpcurl("describe", "blobcast.v1.Event"), "comments are missing"
    for service in ("", EVENTS, "blobcast.v1.AdminService"):
        assert unary("grpc.health.v1.Health/Check", {"service": service}) == {"status": "SERVING"}, service


def subscribe_before_the_callback():
    history = History()
    statuses = ["TASK_STATUS_COMPLETED", "TASK_STATUS_OVERDUE"]
    call = subscribe(filter={"taskIds": ["before-1"], "statuses": statuses}, untilTerminal=True)
    kinds = []
    for message in call:
        kinds += message
        if "caughtUp" in message:
            history.post("veo", "before-1")
        if "event" in message:
            saw(history, message)
            event = message["event"]
            assert event["product"] == "veo" and event["status"] == "TASK_STATUS_COMPLETED" and event["terminal"]
            assert "overdue" not in event
            assert event["outputs"] == [{"kind": "OUTPUT_KIND_VIDEO", "url": "https://cdn.example/before-1.mp4"}]
    assert kinds == ["subscribed", "caughtUp", "event", "completed"], kinds
    assert call.end() == (OK, "")
    history.check()


def subscribe_after_the_callback():
    history = History()
    history.post("veo", "after-1")
    call = subscribe(filter={"taskIds": ["after-1"]}, untilTerminal=True)
    for message in call:
        if "event" in message:
            saw(history, message)
    assert call.end() == (OK, "")
    history.check()


def subscribe_by_product():
    history, others = History(), History()
    call = subscribe(filter={"products": ["sora"]})
    for message in call:
        if "caughtUp" in message:
            for number in range(3):
                history.post("sora", f"product-{number}")
                others.post("seedance", f"other-{number}")
        if "event" in message:
            saw(history, message)
            if len(history.observed) == 3:
                break
    call.stop()
    history.check()


def wait_done():
    history = History()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waiting = pool.submit(
            unary, f"{EVENTS}/WaitTask", {"taskId": "wait-1", "product": "veo", "timeout": f"{CALL_SECONDS}s"}
        )
        history.post("veo", "wait-1")
        answers = [waiting.result(), unary(f"{EVENTS}/WaitTask", {"taskId": "wait-1", "product": "veo"})]
    for answer in answers:
        assert answer["done"] and answer["event"]["eventId"] == history.acknowledged[0]["event_id"]


def wait_timed_out():
    assert unary(f"{EVENTS}/WaitTask", {"taskId": "never", "timeout": "0.2s"}) == {}


def error_reason():
    assert refused("not a cursor", INVALID_ARGUMENT) == "INVALID_REQUEST"


def refused(cursor, code):
    """Subscribes behind a cursor that the broker must refuse; the reason it gives."""
    call = subscribe(afterCursor=cursor)
    assert list(call) == []
    exit_code, stderr = call.end()
    assert exit_code == code, (exit_code, stderr)
    [reason] = reasons(stderr)
    return reason  # in words: reflection knows the types of error details, too


def passes(code, stderr):
    """Whether trying again can help: no broker said it, or one that is not there now."""
    return not reasons(stderr) or code == UNAVAILABLE


def reasons(stderr):
    """The reasons of blobcast's own in what grpcurl complains about; it is no JSON if there was no connection."""
    if not stderr.startswith("{"):
        return []
    details = json.loads(stderr).get("details", [])
    return [detail["reason"] for detail in details if detail.get("domain") == "blobcast"]


def follow(filter, addresses):
    """Yields the messages with the filter's events from the log's first on, whatever happens to the broker.

    Turns to the next address whenever a stream ends.
    """
    start = {"position": "START_POSITION_EARLIEST"}
    deadline = time.monotonic() + 2 * CALL_SECONDS
    for address in itertools.cycle(addresses):
        request = {"filter": filter, "clientName": "interop-grpcurl"} | start
        call = Call(f"{EVENTS}/Subscribe", request, address)
        try:
            for message in call:
                [(kind, content)] = message.items()
                if kind == "event":
                    yield message
                start = {"afterCursor": content["through" if kind == "gap" else "cursor"]}
            code, stderr = call.end()
        finally:
            call.stop()
        assert passes(code, stderr) and time.monotonic() < deadline, (code, stderr)


def resume(product, how, addresses):
    """One subscription across an outage that callbacks race: each event that was answered 200 comes, once, in order."""
    history = History()
    history.post(product, f"{product}-first")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for message in follow({"products": [product]}, addresses):
            saw(history, message)
            task_id = message["event"]["taskId"]
            if task_id == f"{product}-first":
                posting = pool.submit(history.burst, product, how, pool)
            if task_id == f"{product}-last":
                break
        posting.result()
    history.check()


def another_log():
    old = unary(f"{EVENTS}/GetLogInfo")
    control("replace")
    assert refused(old["head"], FAILED_PRECONDITION) == "EPOCH_MISMATCH"


def documented():
    """The commands of the documents, as they stand there: each prints something of the tasks that they are about."""
    History().post("veo", "demo-1")
    failed = {"generation_id": "demo-2", "status": "failed", "error": "no such prompt"}
    url = f"{os.environ['BLOBCAST_INGEST']}/webhook/veo"
    urllib.request.urlopen(urllib.request.Request(url, data=json.dumps(failed).encode())).close()

    found = [command for page in PAGES for command in grpcurl_commands(page.read_text())]
    assert len(found) == 5, found
    for command in found:
        words = shlex.split(command.replace(PRINTED_ADDRESS, os.environ["BLOBCAST_GRPC"]))
        with subprocess.Popen([GRPCURL, *words[1:]], stdout=subprocess.PIPE, text=True) as process:
            # A stream that goes on is ended once it has shown an event.
            shown = next((line for line in process.stdout if re.search(r'"taskId": "demo-[12]"', line)), None)
            process.kill()
        assert shown, f"nothing of the tasks is printed by {command}"


def grpcurl_commands(text):
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", "").splitlines()
    return [line for line in lines if line.startswith("grpcurl ")]


run(
    {
        "read the API and the health by reflection": reflection,
        "subscribe by task before its callback": subscribe_before_the_callback,
        "subscribe by task after its callback": subscribe_after_the_callback,
        "subscribe by product": subscribe_by_product,
        "wait for a task": wait_done,
        "wait for a task in vain": wait_timed_out,
        "read an error's reason": error_reason,
        "run the commands of the documents": documented,
        "resume after kill -9": lambda: resume("kling", "crash", [os.environ["BLOBCAST_GRPC"]]),
        "resume after a graceful restart": lambda: resume("gemini", "restart", [os.environ["BLOBCAST_GRPC"]]),
        "resume at the next address": lambda: resume("hailuo", "cut", os.environ["INTEROP_NODES"].split(",")),
        "a cursor of another log is refused": another_log,
    }
)
