"""Tools that others have made to attack servers, or to find them wrong."""

import json
import pathlib
import re
import shutil
import subprocess
import tempfile
import time

import support
from customers import Customers, Memory, tell
from support import Failed

# What h2spec expects of a server of web pages, and a gRPC server has no reason to do.
NOT_FOR_GRPC = {
    "Sends a WINDOW_UPDATE frame on half-closed (remote) stream": "it waits for DATA, and the answer is a status without a body",
    "Sends a PRIORITY frame on half-closed (remote) stream": "the same",
    "Sends invalid connection preface": "it takes a connection that is reset for one that is open",
    "Sends HEADERS frames that causes their advertised concurrent stream limit to be exceeded": "its calls are answered "
    "at once, so they never are as many as may be open",
}
# It takes an answer that was on its way already for the answer to its next mistake, so one run in three fails somewhere.
H2SPEC_RUNS = 8
H2SPEC_TESTS = 145  # of the version in go/go.mod
H2SPEC_SKIPPED_MAX = 4  # those about windows want DATA in the answer to a GET, and there is little or none
SLOW = {"H": "slow headers", "B": "slow bodies", "X": "slow reading"}
SLOW_SECONDS = 20


def tools(broker, path, is_full):
    if is_full:
        slowhttptest(broker, path)
        testssl(broker)
    h2spec("ingest", broker.ingest, ["-t", "-k", "-P", path], {})
    h2spec("gRPC", broker.grpc, [], NOT_FOR_GRPC)


def h2spec(listener, address, options, expected):
    """Whether HTTP/2 is spoken to the letter, also where the peer does not."""
    command = [
        support.go_tools() / "h2spec",
        "generic",
        "hpack",
        "http2",
        "-h",
        address[0],
        "-p",
        str(address[1]),
        *options,
    ]
    wrong = None
    for number in range(1, H2SPEC_RUNS + 1):
        out = subprocess.run(command, check=False, capture_output=True, text=True).stdout
        failed, skipped = outcomes(listener, out)
        failed -= expected.keys()
        wrong = failed if wrong is None else wrong & failed
        if not wrong:
            but = f", {len(expected)} that do not apply left out" if expected else ""
            print(
                f"floods: h2spec, {listener}: {H2SPEC_TESTS} tests, {skipped} skipped by itself{but}; none failed in every run of {number}"
            )
            return
    raise Failed(f"h2spec, {listener}: {sorted(wrong)}\n{out}")


def outcomes(listener, out):
    """The names of the tests that failed, which have to be as many as h2spec has counted itself, and how many it skipped."""
    counted = re.search(r"^(\d+) tests, (\d+) passed, (\d+) skipped, (\d+) failed$", out, re.MULTILINE)
    names = re.findall(r"^ +× \d+: (.+)$", out.partition("\nFailures:")[2], re.MULTILINE)
    total, _, skipped, failed = map(int, counted.groups()) if counted else (0, 0, 0, 0)
    if (total, failed) != (H2SPEC_TESTS, len(names)) or skipped > H2SPEC_SKIPPED_MAX:
        raise Failed(
            f"h2spec, {listener}: {H2SPEC_TESTS} tests were to be run, and {len(names)} names of failed ones were found in\n{out}"
        )
    return set(names), skipped


def slowhttptest(broker, path):
    """A thousand slow connections at once."""
    customers, memory = Customers(broker, path), Memory(broker)
    for mode, name in SLOW.items():
        memory.forget_peak()
        before, begin = memory.now(), time.monotonic()
        url = f"https://{broker.ingest[0]}:{broker.ingest[1]}{path}"
        command = [
            "slowhttptest",
            f"-{mode}",
            "-c",
            "1000",
            "-r",
            "300",
            "-i",
            "2",
            "-l",
            str(SLOW_SECONDS),
            "-p",
            "3",
            "-s",
            "1000000",
        ]
        out = subprocess.run([*command, "-t", "POST", "-u", url], check=True, capture_output=True, text=True).stdout
        found = customers.between(begin, time.monotonic())
        out = re.sub(r"\x1b\[[\d;]*m", "", out)
        last = dict(re.findall(r"^(connected|closed|service available): +(\w+)", out, re.MULTILINE))
        tell(
            f"slowhttptest {name}",
            f"{last['connected']} connected, {last['closed']} closed at the end",
            found,
            before,
            memory.peak(),
            memory.now(),
        )
        if found[2] or last["service available"] != "YES":
            raise Failed(f"slowhttptest, {name}: {last}, {found[2]}")
    customers.end()


def testssl(broker):
    """Known vulnerabilities of TLS, and which versions are spoken."""
    program = shutil.which("testssl") or "testssl.sh"
    with tempfile.TemporaryDirectory() as directory:
        found = pathlib.Path(directory) / "found.json"
        command = [
            program,
            "--quiet",
            "--warnings",
            "off",
            "-p",
            "-U",
            "--jsonfile",
            found,
            f"{broker.ingest[0]}:{broker.ingest[1]}",
        ]
        subprocess.run(command, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        findings = {one["id"]: one for one in json.loads(found.read_text())}
    offered = [
        name
        for name in ("SSLv2", "SSLv3", "TLS1", "TLS1_1", "TLS1_2", "TLS1_3")
        if findings[name]["finding"].startswith("offered")
    ]
    # "engine_problem" is about the machine's own OpenSSL.
    bad = [
        f"{one['id']}: {one['finding']}" for one in findings.values() if one["severity"] not in ("OK", "INFO", "WARN")
    ]
    if bad or offered != ["TLS1_2", "TLS1_3"]:
        raise Failed(f"testssl: {bad}, offered: {offered}")
    print(f"floods: testssl: {len(findings)} findings, none of them bad; offered are {' and '.join(offered)}")
