"""Prints the events of a product from the oldest on, a JSON object a line, for as long as it takes. `../silence` cuts it off."""

import contextlib
import json
import os

import grpc
from blobcast.v1 import event_pb2 as event
from blobcast.v1 import event_service_pb2 as api
from blobcast.v1.event_service_pb2_grpc import EventServiceStub
from google.protobuf.duration_pb2 import Duration
from resume import CHANNEL_OPTIONS, follow

with contextlib.ExitStack() as channels:
    stubs = [
        EventServiceStub(channels.enter_context(grpc.insecure_channel(address, options=CHANNEL_OPTIONS)))
        for address in os.environ["BLOBCAST_GRPC"].split(",")
    ]
    request = api.SubscribeRequest(
        filter=event.Filter(products=["veo"]),
        position=api.START_POSITION_EARLIEST,
        heartbeat_interval=Duration(seconds=int(os.environ["INTEROP_HEARTBEAT"])),
    )
    for seen in follow(stubs, request):
        print(json.dumps({"event_id": seen.event_id, "cursor": seen.cursor, "task_id": seen.task_id}), flush=True)
