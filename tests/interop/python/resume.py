"""Follows blobcast's events for as long as it takes, across broken connections and restarts of the broker."""

import random
import time

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

CHANNEL_OPTIONS = [
    ("grpc.keepalive_time_ms", 30_000),  # notice a connection that died without a word
    ("grpc.max_reconnect_backoff_ms", 5_000),  # gRPC's own default is two minutes
]


def follow(stub, request):
    """Yields every matching event, in order, until the broker says `completed`.

    When the stream breaks, continues behind the last cursor. Your own restarts are yours: store `event.cursor` once you
    have handled the event, and begin with it as `after_cursor`. Raises what trying again cannot help, for example
    OUT_OF_RANGE `CURSOR_EXPIRED`.
    """
    failures = 0
    while True:
        stream = stub.Subscribe(request)
        try:
            for response in stream:
                failures = 0
                kind = response.WhichOneof("content")
                if kind == "completed":
                    return
                if kind == "event":
                    yield response.event
                if kind == "gap":
                    request.after_cursor = response.gap.to
                elif kind:
                    request.after_cursor = getattr(response, kind).cursor
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                raise
        finally:
            stream.cancel()
        time.sleep(random.uniform(0.1, 0.2) * 2 ** min(failures, 5))
        failures += 1


def reason(error):
    """What went wrong, in a word that programs can rely on, for example `EPOCH_MISMATCH`."""
    return detail(error, error_details_pb2.ErrorInfo()).reason


def detail(error, message):
    """Fills `message` from the error's details, if they hold one of its type."""
    status = rpc_status.from_call(error)
    for packed in status.details if status else []:
        if packed.Unpack(message):
            break
    return message
