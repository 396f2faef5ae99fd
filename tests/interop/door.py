"""JSON and server-sent events by a client that knows HTTP only: directly, and behind an nginx that buffers as it does by default."""

import concurrent.futures
import contextlib
import http.client
import json
import os
import pathlib
import subprocess
import tempfile
import time
import urllib.parse

from history import BURST, CALL_SECONDS, History, control, run
from proxies import NGINX, free_port

BROKER = os.environ["BLOBCAST_GRPC"]
SECONDS_TO_START = 20
# Nothing but the address: HTTP/1.0 to the broker, and answers are buffered.
SERVER = """
    server {{
        listen {address};
        location / {{ proxy_pass http://{broker}; }}
    }}
"""


class EventSource:
    """Reads a stream as a browser does: connects again by itself, with the last id, until it is answered something else than 200."""

    def __init__(self, address, path):
        self.address, self.path = address, path
        self.last_id, self.retry_seconds, self.status = "", 0.05, None

    def __iter__(self):
        deadline = time.monotonic() + CALL_SECONDS
        while time.monotonic() < deadline:
            connection = http.client.HTTPConnection(self.address, timeout=CALL_SECONDS)
            headers = {"accept": "text/event-stream"} | ({"last-event-id": self.last_id} if self.last_id else {})
            with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
                connection.request("GET", self.path, headers=headers)
                answer = connection.getresponse()
                # A proxy without a broker: a browser would give up here, and its page begin anew.
                if answer.status not in (502, 504):
                    self.status = answer.status
                    if self.status != 200:
                        return
                    yield from self.events(answer)
            time.sleep(self.retry_seconds)
        raise TimeoutError

    def events(self, answer):
        event = {}
        while line := answer.readline():
            name, _, value = line.decode().rstrip("\n").partition(":")
            if name:
                event[name] = value.removeprefix(" ")
            elif event and not value:
                self.last_id = event.get("id", self.last_id)
                yield event["event"], json.loads(event["data"])
                event = {}


def ask(address, path, body=None):
    connection = http.client.HTTPConnection(address, timeout=CALL_SECONDS)
    with contextlib.closing(connection):
        headers = {"content-type": "application/json"} if body is not None else {}
        data = json.dumps(body) if body is not None else None
        connection.request("POST" if data else "GET", path, data, headers)
        answer = connection.getresponse()
        return answer.status, json.load(answer)


def reads_and_waits(address, product):
    history, task = History(), f"{product}-1"
    assert ask(address, f"/v1/tasks/{task}")[0] == 404
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waiting = pool.submit(ask, address, f"/v1/tasks/{task}?product={product}&wait=20s")
        history.post(product, task)
        status, waited = waiting.result()
    assert status == 200 and waited["done"], waited
    assert ask(address, f"/v1/tasks/{task}?wait=20s") == (200, waited), "at once"
    assert ask(address, f"/v1/tasks/{product}-never?wait=0.2s") == (200, {"done": False})
    status, page = ask(address, "/v1/ListEvents", {"filter": {"taskIds": [task]}})
    assert status == 200 and page["events"] == [waited["event"]], page


def filters_by_product(address, product):
    history, others = History(), History()
    for kind, data in EventSource(address, f"/v1/events/stream?product={product}"):
        if kind == "caught_up":
            for number in range(3):
                history.post(product, f"{product}-{number}")
                others.post(f"{product}-2", f"other-{number}")
        if kind == "event":
            history.saw(data["eventId"], data["cursor"], data["taskId"])
            if len(history.observed) == 3:
                break
    history.check()


def finds_what_was_there(address, product):
    history, task = History(), f"{product}-1"
    history.post(product, task)
    for kind, data in EventSource(address, f"/v1/events/stream?task_id={task}&until_terminal=true"):
        if kind == "event":
            history.saw(data["eventId"], data["cursor"], data["taskId"])
    history.check()


def says_why_it_refuses(address, _):
    for path in ("/v1/events/stream?after=no-cursor", "/v1/events?page_token=no-token"):
        status, problem = ask(address, path)
        assert (status, problem["reason"]) == (400, "INVALID_REQUEST"), problem
    _, problem = ask(address, "/v1/Subscribe", {})
    assert problem["status"] == 501, problem
    status, problem = ask(address, "/v1/events/stream?after=no-cursor")
    assert problem["violations"][0]["field"] == "after_cursor", problem


def refuses_a_cursor_of_another_log(address, _):
    _, old = ask(address, "/v1/GetLogInfo", {})
    control("replace")
    source = EventSource(address, f"/v1/events/stream?after={old['head']}")
    assert list(source) == [] and source.status == 400
    status, problem = ask(address, f"/v1/events/stream?after={old['head']}")
    assert (status, problem["reason"]) == (400, "EPOCH_MISMATCH"), problem


def resumes_over_a_restart(address, product):
    resumes_over_a_crash(address, product, "restart")


def resumes_over_a_crash(address, product, how="crash"):
    history = History()
    query = urllib.parse.urlencode({"product": product})
    source = EventSource(address, f"/v1/events/stream?{query}")
    events = iter(source)
    assert next(events)[0] == "subscribed"
    with concurrent.futures.ThreadPoolExecutor() as pool:
        posting = pool.submit(history.burst, product, how, pool)
        for kind, data in events:
            if kind == "event":
                history.saw(data["eventId"], data["cursor"], data["taskId"])
                if data["taskId"] == f"{product}-last":
                    break
        posting.result()
    assert len(history.observed) > BURST
    history.check()


def comes_at_once(address, product):
    """What a proxy buffers comes late or never: one event is far smaller than a buffer."""
    history = History()
    events = iter(EventSource(address, f"/v1/events/stream?product={product}"))
    assert [next(events)[0], next(events)[0]] == ["subscribed", "caught_up"]
    posted = time.monotonic()
    history.post(product, f"{product}-1")
    kind, data = next(events)
    assert kind == "event" and data["taskId"] == f"{product}-1", data
    assert time.monotonic() - posted < 5, "before any heartbeat"


def stops_when_complete(address, product):
    history, task = History(), f"{product}-1"
    source = EventSource(address, f"/v1/events/stream?product={product}&task_id={task}&until_terminal=true")
    history.post(product, task)
    kinds = [kind for kind, _ in source]
    assert kinds[0] == "subscribed" and "event" in kinds and kinds[-1] == "completed", kinds
    assert source.status == 204, source.status


@contextlib.contextmanager
def nginx():
    with tempfile.TemporaryDirectory() as name:
        directory, address = pathlib.Path(name), f"127.0.0.1:{free_port()}"
        file = directory / "nginx.conf"
        file.write_text(NGINX.format(directory=directory, block=SERVER.format(address=address, broker=BROKER)))
        process = subprocess.Popen(
            ["nginx", "-p", name, "-e", "stderr", "-c", str(file)], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            deadline = time.monotonic() + SECONDS_TO_START
            while True:
                with contextlib.suppress(OSError):
                    ask(address, "/v1/events")
                    break
                assert process.poll() is None and time.monotonic() < deadline, "nginx does not start"
                time.sleep(0.05)
            yield address
        finally:
            process.terminate()
            process.wait(SECONDS_TO_START)


def main():
    with nginx() as proxy:
        checks = {}
        for way, address in {"directly": BROKER, "behind nginx": proxy}.items():
            for check in (
                reads_and_waits,
                comes_at_once,
                filters_by_product,
                finds_what_was_there,
                says_why_it_refuses,
                resumes_over_a_crash,
                resumes_over_a_restart,
                stops_when_complete,
                refuses_a_cursor_of_another_log,
            ):
                product = f"{check.__name__}-{way}".replace("_", "-").replace(" ", "-")
                name = f"JSON {way} {check.__name__.replace('_', ' ')}"
                checks[name] = lambda check=check, address=address, product=product: check(address, product)
        run(checks)


if __name__ == "__main__":
    main()
