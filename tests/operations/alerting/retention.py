"""Troubles with the room that there is for the log."""

import json
import subprocess
import urllib.parse
import urllib.request

from .broker import PATIENCE_SECONDS, Failed, free_port, until
from .story import story

TRIMMED = 'blobcast_events_trimmed_total{reason="bytes"}'
QUERY = "topk(5, rate(blobcast_callback_bytes_total[10m]))"


@story("HistoryFilling", "HistoryErased", "RetentionShort")
def flood(at):
    """Somebody brings far more than usual: the log gets full, and then forgets what is not old yet."""
    broker = at.broker({"log.retention_bytes_max": "8MiB", "ingest.body_bytes_max": "256KiB"})
    broker.take(100, filler_bytes=20_000)
    with Prometheus(at.directory, broker) as prometheus:
        at.scrape(broker, 480)
        while broker.metrics()["blobcast_log_bytes"] < 0.7 * (8 << 20):
            broker.take(10, filler_bytes=20_000)
        prometheus.until_it_knows(QUERY)
        who = 'name="vendor"'
        at.scrape(broker, 4, {"HistoryFilling": who}, **{"http://PROMETHEUS:9090": prometheus.url})
        at.scrape(broker, 12)

        until(
            "the first events to be forgotten",
            lambda: broker.take(10, filler_bytes=20_000) or broker.metrics()[TRIMMED] >= 80,
        )
        at.scrape(broker, 14, {"HistoryErased": who}, steadily=True, **{"http://PROMETHEUS:9090": prometheus.url})
    at.scrape(broker, 35, {"RetentionShort": "task-"})


@story("DiskFilling", step="10m")
def other_files(at):
    """Something else takes more of the disk each hour."""
    disk = at.disk(64)
    broker = at.broker({"data_dir": disk.path / "data"})
    broker.take(10)
    for _ in range(7):
        at.scrape(broker, 6)
        disk.fill(0.08)
    at.scrape(broker, 6, {"DiskFilling": "filler|disk"}, **{" / ": f" {disk.path} "})


class Prometheus:
    """One that scrapes a broker each second, until the `with` is over."""

    def __init__(self, directory, broker):
        config = directory / "prometheus.yml"
        targets = [{"targets": ["{}:{}".format(*broker.admin)]}]
        config.write_text(
            json.dumps(
                {"scrape_configs": [{"job_name": "blobcast", "scrape_interval": "1s", "static_configs": targets}]}
            )
        )
        address = f"127.0.0.1:{free_port()}"
        self.url = f"http://{address}"
        options = [
            f"--config.file={config}",
            f"--storage.tsdb.path={directory}/prometheus",
            f"--web.listen-address={address}",
        ]
        self.log = (directory / "prometheus.log").open("w")
        self.process = subprocess.Popen(["prometheus", *options], stdout=self.log, stderr=self.log)

    def until_it_knows(self, query):
        asked = f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': query})}"

        def result():
            if self.process.poll() is not None:
                raise Failed("Prometheus ended")
            try:
                with urllib.request.urlopen(asked, timeout=PATIENCE_SECONDS) as answer:
                    return json.load(answer)["data"]["result"]
            except OSError:
                return None

        until("Prometheus", result)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        self.log.close()
