"""A broker that troubles are made on: with a file of credentials, one of configuration, and a log as journald would have it."""

import concurrent.futures
import contextlib
import http.client
import itertools
import json
import pathlib
import signal
import socket
import subprocess
import sys

TESTS = pathlib.Path(__file__).resolve().parents[2]
sys.path += [str(TESTS / "support"), str(TESTS / "hostile")]
import broker
from support import PATIENCE_SECONDS, Failed, free_port, until  # noqa: F401 # for the stories

POSTERS = 4  # connections that post at once
UNREADABLE = '{"status":"completed"}'


class Broker(broker.Broker):
    """`settings` are fixed; those of `config` ("section.key": value) can be changed by `reload`."""

    def __init__(self, binary, directory, settings=None, config=None, environment=None):
        directory.mkdir(parents=True, exist_ok=True)
        self.binary, self.tasks, self.tokens, self.lines, self.readers = binary, itertools.count(), {}, {}, []
        self.vendor_keys = []
        self.config_path, self.credentials_path = directory / "blobcast.toml", directory / "credentials.toml"
        for words in ("callback vendor", "client billing"):
            self.add_credential(words)
        self.write_config(config or {})
        log = directory / "broker.log"
        log.touch()
        # What stands there makes the broker begin each line with its priority, for the journal.
        journal = {"JOURNAL_STREAM": f"{log.stat().st_dev}:{log.stat().st_ino}"}
        files = {"config": self.config_path, "credentials_file": self.credentials_path}
        super().__init__(binary, directory, files | (settings or {}), environment=journal | (environment or {}))
        self.start()

    def add_credential(self, words, *more, line=lambda line: line):
        """One that `blobcast token new` makes; `line` may add to its line of the file."""
        more = [*more, *(["--all-products", "--admin"] if words.startswith("client") else [])]
        command = [self.binary, "token", "new", *words.split(), *more, "--output", "json"]
        made = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        self.tokens[words] = made["secret"]
        self.add_line(made["section"], line(made["line"]), words)

    def add_vendor_key(self, name, key):
        """A key for the vendor's API, by the lines that `blobcast token new` makes."""
        command = [self.binary, "token", "new", "vendor-key", name, "--key-file", "-", "--output", "json"]
        made = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, input=key).stdout)
        self.vendor_keys.append(made["line"])
        self.write_credentials()

    def add_line(self, section, line, words=None):
        self.lines[words or section] = (section, line)
        self.write_credentials()

    def remove_credential(self, words):
        del self.lines[words]
        self.write_credentials()

    def write_credentials(self):
        sections = {section: [] for section, _ in self.lines.values()}
        for section, line in self.lines.values():
            sections[section].append(line)
        text = "".join(f"[{section}]\n" + "".join(f"{line}\n" for line in lines) for section, lines in sections.items())
        replace(self.credentials_path, text + "".join(self.vendor_keys))

    def write_config(self, config):
        self.config = config
        replace(self.config_path, "".join(f"{key} = {json.dumps(value)}\n" for key, value in config.items()))

    def reload(self):
        before = self.metrics()
        counted = [
            f'blobcast_reloads_total{{result="{result}",what="configuration"}}' for result in ("done", "refused")
        ]
        self.process.send_signal(signal.SIGHUP)
        until("a reload", lambda: sum(self.metrics()[name] - before[name] for name in counted))

    def task(self):
        return f"task-{next(self.tasks)}"

    def post(self, body=None, token="callback vendor", headers=None, filler_bytes=0):
        """The status of the answer to a callback: of a new task, unless a body is given."""
        connection = http.client.HTTPConnection(*self.ingest, timeout=PATIENCE_SECONDS)
        try:
            return self.post_on(connection, body, token, headers, filler_bytes)
        finally:
            connection.close()

    def post_on(self, connection, body=None, token="callback vendor", headers=None, filler_bytes=0):
        body = body or completed(self.task(), filler_bytes)
        connection.request("POST", f"/webhook/veo?token={self.tokens.get(token, token)}", body, headers or {})
        answer = connection.getresponse()
        answer.read()
        return answer.status

    def take(self, count, filler_bytes=0):
        """Callbacks that have to be taken, some at once."""

        def some(number):
            connection = http.client.HTTPConnection(*self.ingest, timeout=PATIENCE_SECONDS)
            for _ in range(number, count, POSTERS):
                expect(self.post_on(connection, filler_bytes=filler_bytes), 200)
            connection.close()

        with concurrent.futures.ThreadPoolExecutor(POSTERS) as threads:
            list(threads.map(some, range(min(count, POSTERS))))

    def environment_of(self, client="client billing"):
        address = f"http://{self.addresses['grpc']}"
        return self.client_environment | {
            "BLOBCAST_GRPC_URL": address,
            "BLOBCAST_TOKEN": self.tokens.get(client, client),
        }

    def run(self, *words, client="client billing"):
        """One of the broker's verbs."""
        command = [self.binary, *map(str, words)]
        return subprocess.run(
            command, capture_output=True, text=True, env=self.environment_of(client), timeout=PATIENCE_SECONDS
        )

    def read(self, *words, output=subprocess.PIPE):
        """A verb that goes on, and whose output nobody reads, unless it is told another."""
        environment = self.environment_of()
        reader = subprocess.Popen([self.binary, *words], stdout=output, stderr=subprocess.DEVNULL, env=environment)
        self.readers.append(reader)
        return reader

    def listen(self, *words):
        """A reader of what comes; it is connected."""
        before = self.streams()
        reader = self.read("listen", "--output", "json", *words, output=subprocess.DEVNULL)
        until("a stream", lambda: self.streams() > before)
        return reader

    def streams(self):
        return sum(count for name, count in self.metrics().items() if name.startswith("blobcast_subscriptions{"))

    def connect(self, listener, sent=b""):
        connection = socket.create_connection(getattr(self, listener), PATIENCE_SECONDS)
        connection.sendall(sent)
        return connection

    def turn_away(self, listener, sent):
        """A connection that the broker closes."""
        with contextlib.suppress(ConnectionResetError, BrokenPipeError), self.connect(listener, sent) as connection:
            while connection.recv(65536):
                pass

    def end(self):
        """At once, with its readers."""
        for process in (*self.readers, self.process):
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()


def completed(task, filler_bytes=0):
    body = {"generation_id": task, "status": "completed", "video_url": "https://cdn.example.com/1.mp4"}
    return json.dumps(body | ({"filler": "x" * filler_bytes} if filler_bytes else {}))


def replace(path, text):
    new = path.with_name(f"{path.name}.new")
    new.write_text(text)
    new.chmod(0o600)
    new.rename(path)


def expect(found, *expected):
    if found not in expected:
        raise Failed(f"{found} instead of {' or '.join(map(str, expected))}")
