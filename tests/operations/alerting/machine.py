"""What is wrong with the machine: disks that are small, slow or damaged, and clocks."""

import contextlib
import ctypes
import glob
import os
import subprocess

from .broker import Failed

LIBC = ctypes.CDLL(None, use_errno=True)
NEW_NAMESPACE, PRIVATE_AND_BELOW, DETACH = 0x20000, 1 << 18 | 1 << 14, 2


def own_mounts():
    """What this process mounts from now on goes with it, and nobody else sees it."""
    check(LIBC.unshare(NEW_NAMESPACE), "unshare")
    check(LIBC.mount(b"none", b"/", None, PRIVATE_AND_BELOW, None), "mount")


def check(result, what):
    if result != 0:
        error = ctypes.get_errno()
        raise Failed(f"{what}: {os.strerror(error)}: small disks are mounted, by root")


class Disk:
    """A small file system."""

    def __init__(self, path, mib):
        self.path = path
        path.mkdir()
        check(LIBC.mount(b"none", str(path).encode(), b"tmpfs", 0, f"size={mib}m".encode()), "mount")

    def fill(self, part=1.0):
        """Another process takes this part of the space, or all there is."""
        total = os.statvfs(self.path).f_blocks * os.statvfs(self.path).f_frsize
        with contextlib.suppress(OSError), (self.path / "filler").open("ab", buffering=0) as filler:
            for _ in range(int(total * part) >> 12):
                filler.write(bytes(1 << 12))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def end(self):
        LIBC.umount2(str(self.path).encode(), DETACH)


@contextlib.contextmanager
def slow(broker, *calls, seconds):
    """Each of these system calls takes so long, as on a slow disk."""
    names = ",".join(calls)
    delay = f"inject={names}:delay_enter={int(seconds * 1_000_000)}"
    command = [
        "strace",
        "-f",
        "-p",
        str(broker.process.pid),
        "-o",
        broker.directory / "trace",
        "-e",
        f"trace={names}",
        "-e",
        delay,
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        try:
            first = tracer.stderr.readline()
            if "attached" not in first:
                raise Failed(f"strace: {first}{tracer.stderr.read()}")
            yield
        finally:
            tracer.terminate()
            tracer.communicate()


class Clock:
    """The clock that a broker sees: the machine's, so many seconds ahead."""

    def __init__(self, directory):
        [library] = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1") or [None]
        if library is None:
            raise Failed("libfaketime is missing (Debian: faketime)")
        self.file = directory / "ahead"
        self.turn(0)
        self.environment = {
            "LD_PRELOAD": library,
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def turn(self, seconds):
        new = self.file.with_name("ahead.new")
        new.write_text(f"{seconds:+d}s")
        new.rename(self.file)


def damage(directory, text):
    """Flips a bit of a text in the one file of the log that has it."""
    for path in directory.iterdir():
        content = path.read_bytes()
        if (at := content.find(text.encode())) >= 0:
            with path.open("r+b", buffering=0) as file:
                file.seek(at)
                file.write(bytes([content[at] ^ 1]))
            return
    raise Failed(f"{text} is in no file of {directory}")
