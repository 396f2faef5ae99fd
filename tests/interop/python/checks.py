"""What a Python service asks of blobcast, checked against a real broker. `../drive.py` sets the environment."""

import concurrent.futures
import contextlib
import os

import grpc
from blobcast.v1 import event_pb2 as event
from blobcast.v1 import event_service_pb2 as api
from blobcast.v1.event_service_pb2_grpc import EventServiceStub
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest
from history import CALL_SECONDS, History, control, run
from resume import CHANNEL_OPTIONS, detail, follow, reason


def subscribe_before_the_callback(stub):
    history = History()
    filter = event.Filter(task_ids=["before-1"], statuses=[event.TASK_STATUS_COMPLETED, event.TASK_STATUS_OVERDUE])
    stream = stub.Subscribe(api.SubscribeRequest(filter=filter, until_terminal=True), timeout=CALL_SECONDS)
    assert next(stream).WhichOneof("content") == "subscribed"
    assert next(stream).WhichOneof("content") == "caught_up"
    history.post("veo", "before-1")
    seen = next(stream).event
    saw(history, seen)
    assert seen.product == "veo" and seen.status == event.TASK_STATUS_COMPLETED and seen.terminal
    assert not seen.HasField("overdue")
    assert [output.url for output in seen.outputs] == ["https://cdn.example/before-1.mp4"]
    assert [response.WhichOneof("content") for response in stream] == ["completed"]
    assert stream.code() == grpc.StatusCode.OK
    history.check()


def subscribe_after_the_callback(stub):
    history = History()
    history.post("veo", "after-1")
    request = api.SubscribeRequest(filter=event.Filter(task_ids=["after-1"]), until_terminal=True)
    for seen in follow([stub], request):
        saw(history, seen)
    history.check()


def subscribe_by_product(stub):
    history, others = History(), History()
    stream = stub.Subscribe(api.SubscribeRequest(filter=event.Filter(products=["sora"])), timeout=CALL_SECONDS)
    for response in stream:
        kind = response.WhichOneof("content")
        if kind == "caught_up":
            for number in range(3):
                history.post("sora", f"product-{number}")
                others.post("seedance", f"other-{number}")
        if kind == "event":
            saw(history, response.event)
            if len(history.observed) == 3:
                break
    stream.cancel()
    history.check()


def wait_done(stub):
    history = History()
    request = api.WaitTaskRequest(task_id="wait-1", product="veo", timeout=Duration(seconds=CALL_SECONDS))
    waiting = stub.WaitTask.future(request)
    history.post("veo", "wait-1")
    for response in (waiting.result(), stub.WaitTask(request)):
        assert response.done and response.event.event_id == history.acknowledged[0]["event_id"]


def wait_timed_out(stub):
    response = stub.WaitTask(api.WaitTaskRequest(task_id="never", timeout=Duration(nanos=200_000_000)))
    assert not response.done and not response.HasField("event")


def error_reason(stub):
    try:
        next(stub.Subscribe(api.SubscribeRequest(after_cursor="not a cursor"), timeout=CALL_SECONDS))
        raise AssertionError("a malformed cursor was taken")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
        assert reason(error) == "INVALID_REQUEST"
        assert detail(error, BadRequest()).field_violations[0].field == "after_cursor"


def resume(stubs, product, how):
    """One subscription across an outage that callbacks race: each event that was answered 200 comes, once, in order."""
    history = History()
    history.post(product, f"{product}-first")
    request = api.SubscribeRequest(
        filter=event.Filter(products=[product]), position=api.START_POSITION_EARLIEST, client_name="interop-python"
    )
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for seen in follow(stubs, request):
            saw(history, seen)
            if seen.task_id == f"{product}-first":
                posting = pool.submit(history.burst, product, how, pool)
            if seen.task_id == f"{product}-last":
                break
        posting.result()
    history.check()


def another_log(stub):
    old = stub.GetLogInfo(api.GetLogInfoRequest())
    control("replace")
    try:
        next(follow([stub], api.SubscribeRequest(after_cursor=old.head)))
        raise AssertionError("a cursor of another log was taken")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
        assert reason(error) == "EPOCH_MISMATCH"


def saw(history, seen):
    history.saw(seen.event_id, seen.cursor, seen.task_id)


with contextlib.ExitStack() as channels:

    def connect(address):
        return EventServiceStub(channels.enter_context(grpc.insecure_channel(address, options=CHANNEL_OPTIONS)))

    stub = connect(os.environ["BLOBCAST_GRPC"])
    nodes = [connect(address) for address in os.environ["INTEROP_NODES"].split(",")]
    run(
        {
            "subscribe by task before its callback": lambda: subscribe_before_the_callback(stub),
            "subscribe by task after its callback": lambda: subscribe_after_the_callback(stub),
            "subscribe by product": lambda: subscribe_by_product(stub),
            "wait for a task": lambda: wait_done(stub),
            "wait for a task in vain": lambda: wait_timed_out(stub),
            "read an error's reason": lambda: error_reason(stub),
            "resume after kill -9": lambda: resume([stub], "kling", "crash"),
            "resume after a graceful restart": lambda: resume([stub], "gemini", "restart"),
            "resume at the next address": lambda: resume(nodes, "hailuo", "cut"),
            "a cursor of another log is refused": lambda: another_log(stub),
        }
    )
