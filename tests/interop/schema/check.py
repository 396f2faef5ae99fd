"""Requests that the OpenAPI description allows, and some that it does not: no answer is a 5xx, or is not as described.

    check.py BROKER WORK_DIR SCHEMATHESIS

Streams are left out, since an answer has to end. Each answer may have only the fields that the description has, which itself
leaves room for later ones.
"""

import json
import os
import pathlib
import subprocess
import sys
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
sys.path.append(str(HERE.parent.parent / "support"))
from broker import Broker

SEED, EXAMPLES, SECONDS = 7, 60, 120
CALLBACKS = [
    ("veo", {"generation_id": "t1", "status": "completed", "video_url": "https://cdn.example/a.mp4", "seed": 7}),
    ("veo", {"generation_id": "t2", "status": "failed", "error_message": "no", "error_code": "E"}),
    ("kling", {"generation_id": "t3", "status": "processing"}),
    ("kling", {"status": "completed"}),  # goes into the quarantine
]
# Null is canonical for what is absent, so it is no error; and what is right by its type may still name nothing.
NOT_CHECKED = "negative_data_rejection,positive_data_acceptance"


def main():
    binary, work_dir, schemathesis = sys.argv[1:]
    with Broker(binary, pathlib.Path(work_dir)).start() as broker:
        url = f"http://{broker.addresses['grpc']}"
        for product, body in CALLBACKS:
            request = urllib.request.Request(
                f"http://{broker.addresses['ingest']}/webhook/{product}?team=ads",
                data=json.dumps(body).encode(),
                headers={"content-type": "application/json"},
            )
            urllib.request.urlopen(request).close()
        with urllib.request.urlopen(f"{url}/v1/openapi.json") as answer:
            description = json.load(answer)
        for schema in description["components"]["schemas"].values():
            if schema["type"] == "object":
                schema["additionalProperties"] = False
        file = pathlib.Path(work_dir) / "openapi.json"
        file.write_text(json.dumps(description))

        command = [schemathesis, "run", str(file), "--url", url, "--exclude-path", "/v1/events/stream"]
        command += ["--checks", "all", "--exclude-checks", NOT_CHECKED, "--phases", "coverage,fuzzing", "--mode", "all"]
        command += ["--seed", str(SEED), "--max-examples", str(EXAMPLES), "--generation-database", "none"]
        command += ["--continue-on-failure", "--warnings", "off", "--no-color", "--request-timeout", "30"]
        environment = os.environ | {"SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(HERE)}
        code = subprocess.run(command, env=environment, cwd=work_dir, timeout=SECONDS).returncode
        assert broker.process.poll() is None, broker.tail()
    sys.exit(code)


main()
