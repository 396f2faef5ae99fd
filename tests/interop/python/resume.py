"""Follows blobcast's events for as long as it takes: across broken connections, silent ones, and restarts of the broker.

With several nodes of a cluster it goes on at the next one.
"""

import contextlib
import itertools
import logging
import random
import threading
import time

import grpc
from blobcast.v1 import event_service_pb2 as api
from google.rpc import error_details_pb2
from grpc_status import rpc_status

CHANNEL_OPTIONS = [
    ("grpc.keepalive_time_ms", 30_000),  # ask a quiet connection whether it still works …
    ("grpc.keepalive_timeout_ms", 10_000),  # … and give it so long to answer
    ("grpc.max_reconnect_backoff_ms", 5_000),  # gRPC's own default is two minutes
]
HEARTBEAT_SECONDS = 15  # a quiet stream says something this often, unless it tells otherwise
PAUSE_SECONDS, PAUSE_SECONDS_MAX = 0.1, 10  # before the first try to reconnect, and before each after many failures

log = logging.getLogger(__name__)


def follow(stubs, request):
    """Yields every matching event, in order, until the broker says `completed`.

    `stubs` has one for each node of a cluster, or one alone. When the stream breaks, continues behind the last cursor at the
    next node, where the cursor is as good, and logs why. Your own restarts are yours: store
    `event.cursor` once you have handled the event, and begin with it as `after_cursor`. Raises what trying again cannot
    help, for example OUT_OF_RANGE `CURSOR_EXPIRED`.
    """
    failures = 0
    for stub in itertools.cycle(stubs):
        asked_for = 0.0
        try:
            with contextlib.closing(messages(stub.Subscribe(request))) as stream:
                for response in stream:
                    kind = response.WhichOneof("content")
                    if kind == "completed":
                        return
                    if kind == "event":
                        yield response.event
                    if kind == "gap":
                        request.after_cursor = response.gap.through
                    elif kind and (kind != "subscribed" or starts_at_head(request)):
                        request.after_cursor = getattr(response, kind).cursor
                    if kind not in ("subscribed", "going_away"):  # who greets and hangs up is still failing
                        failures = 0
        except grpc.RpcError as error:
            if not passes(error):
                raise
            asked_for = retry_delay(error)
            log.warning("the stream broke, reconnecting: %s: %s", error.code().name, error.details())
        pause = min(PAUSE_SECONDS * 2 ** min(failures, 10), PAUSE_SECONDS_MAX)
        time.sleep(max(pause, asked_for) * random.uniform(1, 1.5))
        failures += 1


def starts_at_head(request):
    """Whether the place where the stream starts has to be kept: later the head is another one.

    Any other request is repeated as it was until something was sent. Retention may pass the place where it started.
    """
    at_latest = request.WhichOneof("start") == "position" and request.position == api.START_POSITION_LATEST
    return at_latest or not (request.WhichOneof("start") or request.filter.task_ids)


def messages(stream):
    """The stream's messages. Cancels it when three heartbeats are missing; the time you take for a message does not count.

    Keepalive alone is not enough: a proxy answers it for a broker that is gone. Only messages prove the whole path.
    """
    silence_max = 3.0 * HEARTBEAT_SECONDS
    waiting_since = time.monotonic()
    ended = threading.Event()

    def watch():
        while not ended.wait(1):
            since = waiting_since  # another thread changes it
            if since and time.monotonic() - since > silence_max:
                log.warning("nothing has come for %.0f s", silence_max)
                stream.cancel()
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        for response in stream:
            waiting_since = None
            if response.HasField("subscribed"):
                silence_max = 3 * response.subscribed.limits.heartbeat_interval.ToTimedelta().total_seconds()
            yield response
            waiting_since = time.monotonic()
    finally:
        ended.set()
        stream.cancel()


def passes(error):
    """Whether trying again can help. Decided by who said it.

    An error without a reason of blobcast's came from something in between, a proxy or the network, whatever its code. With
    one, the broker says that it is not there now (UNAVAILABLE), or when to come back.
    """
    return not reason(error) or error.code() == grpc.StatusCode.UNAVAILABLE or retry_delay(error) > 0


def reason(error):
    """What went wrong, in a word that programs can rely on, for example `EPOCH_MISMATCH`; empty if no broker said it."""
    info = detail(error, error_details_pb2.ErrorInfo())
    return info.reason if info.domain == "blobcast" else ""


def retry_delay(error):
    """The seconds after which the broker asks to try again; 0 if it does not."""
    return detail(error, error_details_pb2.RetryInfo()).retry_delay.ToTimedelta().total_seconds()


def detail(error, message):
    """Fills `message` from the error's details, if they hold one of its type."""
    status = rpc_status.from_call(error)
    for packed in status.details if status else []:
        if packed.Unpack(message):
            break
    return message
