"""What a service writes against the generated Python: names that are no keywords, and types that mypy knows."""

from blobcast.v1 import event_pb2
from blobcast.v1 import event_service_pb2 as api


def resume_from(response: api.SubscribeResponse) -> str:
    if response.HasField("gap"):
        assert response.gap.after != response.gap.through
        return response.gap.through
    return response.event.cursor if response.HasField("event") else response.progress.cursor


def urls(event: event_pb2.Event) -> list[str]:
    return [output.url for output in event.outputs if output.kind == event_pb2.OUTPUT_KIND_VIDEO]


assert resume_from(api.SubscribeResponse(gap=api.Gap(after="a", through="b"))) == "b"
video = event_pb2.Output(kind=event_pb2.OUTPUT_KIND_VIDEO, url="https://cdn.example/1.mp4")
assert urls(event_pb2.Event(outputs=[video], seed=1 << 62)) == ["https://cdn.example/1.mp4"]
