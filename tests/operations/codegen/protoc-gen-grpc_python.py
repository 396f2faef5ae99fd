"""grpcio-tools' generator of Python services as a plugin, as buf runs them: a request on standard input, an answer on standard output."""

import pathlib
import subprocess
import sys
import tempfile

from google.protobuf import descriptor_pb2
from google.protobuf.compiler import plugin_pb2

request = plugin_pb2.CodeGeneratorRequest.FromString(sys.stdin.buffer.read())
answer = plugin_pb2.CodeGeneratorResponse(supported_features=plugin_pb2.CodeGeneratorResponse.FEATURE_PROTO3_OPTIONAL)
with tempfile.TemporaryDirectory() as directory:
    directory = pathlib.Path(directory)
    descriptors = directory / "descriptors"
    descriptors.write_bytes(descriptor_pb2.FileDescriptorSet(file=request.proto_file).SerializeToString())
    made = directory / "made"
    made.mkdir()
    arguments = [f"--descriptor_set_in={descriptors}", f"--grpc_python_out={made}", *request.file_to_generate]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *arguments], check=True, stdout=sys.stderr)
    for path in sorted(made.rglob("*.py")):
        answer.file.add(name=str(path.relative_to(made)), content=path.read_text())
sys.stdout.buffer.write(answer.SerializeToString())
