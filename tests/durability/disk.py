"""What a power cut may leave of what a traced process asked the disk for.

A trace of strace is read into a history of each file's bytes and of the names in each directory. `Disk.leave` then lays out
the files as they may be found after a cut at any line of it:

- what a sync covered that had returned before the cut is there; a sync covers what had ended before it began;
- the rest, call by call, is there or not, and a write may be torn: `lost`, `kept`, `torn` (of each file a prefix of its
  calls, the last one torn at any byte, unless it replaces bytes within one 512-byte sector) or `sectors` (any of the 512-byte sectors of any of the writes);
- names come and go in order, and any sync makes durable all that came before it, as journalled file systems have it (ext4,
  XFS). With `strict` only a sync of the directory does that, and what was not synced survives in any combination: POSIX
  promises no more.
"""

import itertools
import math
import os
import pathlib
import re

from lib import Failed

NAME_CALLS = "openat,rename,renameat,renameat2,unlink,unlinkat,rmdir,mkdir"
CALLS = f"{NAME_CALLS},write,writev,pwrite64,ftruncate,fsync,fdatasync,lseek,sendto"
NOT_FOLLOWED = (
    "creat,truncate,pwritev,pwritev2,copy_file_range,fallocate,link,linkat,mkdirat,sendfile,splice,symlink,symlinkat"
)
STRACE = ["strace", "-I", "waiting", "-f", "-yy", "-xx", "-s", "100000000", "-e", f"trace={CALLS},{NOT_FOLLOWED}"]
VARIANTS = ["lost", "kept", "torn", "sectors"]
SECTOR_BYTES = 512

DATA_CALLS = {"write", "writev", "pwrite64", "sendto"}
LINE = re.compile(r"(\d+) +(?:<\.\.\. \w+ resumed>|(\w+)\()")
DESCRIPTOR = re.compile(r"\w+\((\d+)<(.*?)>[,) (]")
TEXT = re.compile(r'"([^"]*)"')
LAST = re.compile(r", (\d+)(?: <unfinished ...>|\) +=)")
RESULT = re.compile(r"\) += (-?\d+)")
UNFINISHED = "<unfinished ...>\n"


class Change:
    """Something asked for: from line `begun` on it may be on the disk, behind `ended` the process counts on it."""

    def __init__(self, begun, parent=None, names=(), at=0, data=None):
        self.begun, self.ended = begun, math.inf
        self.parent, self.names = parent, names  # of a directory: {path: what it names from here on, or None}
        self.at, self.data = at, data  # of a file; without data it is cut or stretched to `at`


class File:
    def __init__(self):
        self.changes, self.syncs, self.size = [], [], 0


class Disk:
    def __init__(self, root):
        self.root = str(root)
        self.names, self.changes = {self.root: "directory"}, []  # path -> File or "directory"
        self.named = {}  # the same, with what was removed: another thread may be opening it meanwhile
        self.syncs = []  # (begun, ended, the File or the directory's path), all of them
        self.answers = []  # (begun, connection, status)
        self.line = 0

    def follow(self, trace, life):
        """Reads what one process did. Another may follow on the same files."""
        files, calls = {}, {}  # by descriptor, [file, position]; by thread, the call that has begun
        for text in trace:
            self.line += 1
            match = LINE.match(text)
            if not match:
                continue
            thread, name = match.groups()
            if name:
                changes = self.begin(name, text, files, life)
                calls[thread] = name, text.removesuffix(UNFINISHED), self.line, changes
            if text.endswith(UNFINISHED):
                continue
            if result := RESULT.search(text, max(0, len(text) - 300)):  # none: the process was killed in it
                self.end(*calls.pop(thread), int(result[1]), files)
        self.settle(change for _, _, _, changes in calls.values() for change in changes)

    def begin(self, name, text, files, life):
        """What the call may change from its first moment on."""
        descriptor = DESCRIPTOR.match(text, text.index(name))
        on = decode(descriptor[2]) if descriptor else ""
        if on.startswith("TCP"):
            data = decode_all(text) if name in DATA_CALLS else b""
            if data.startswith(b"HTTP/1.1 "):
                self.answers.append((self.line, (life, int(on.rsplit(":", 1)[1].rstrip("]"))), int(data[9:12])))
            return []
        paths = [] if name in DATA_CALLS else map(decode, TEXT.findall(text))
        inside = [path for path in paths if self.is_inside(path)]
        if not (self.is_inside(on) or inside):
            return []
        if name in NOT_FOLLOWED.split(",") or name == "writev":
            raise Failed(f"a call that is not understood: {text[:200]}")
        if name in ("write", "pwrite64"):
            file, data = files[int(descriptor[1])], decode_all(text)
            at = int(LAST.search(text)[1]) if name == "pwrite64" else file[1]
            return [self.change(file[0], Change(self.line, at=file[0].size if at is None else at, data=data))]
        if name == "ftruncate":
            return [self.change(files[int(descriptor[1])][0], Change(self.line, at=int(LAST.search(text)[1])))]
        if name == "openat" and "O_TRUNC" in text and self.names.get(inside[0]):
            return [self.change(self.names[inside[0]], Change(self.line, at=0))]
        if name == "openat" and "O_CREAT" in text and not self.names.get(inside[0]):
            return [self.rename(inside[0], {inside[0]: File()})]
        if name == "mkdir" and inside[0] not in self.names:
            return [self.rename(inside[0], {inside[0]: "directory"})]
        if name.startswith("rename"):
            return [self.rename(inside[1], {inside[1]: self.names[inside[0]], inside[0]: None})]
        if name in ("unlink", "unlinkat", "rmdir"):
            return [self.rename(inside[0], {inside[0]: None})]
        return []

    def end(self, name, text, begun, changes, result, files):
        for change in changes:
            change.ended = self.line
            if result < 0 or (change.data is not None and result != len(change.data)):
                raise Failed(f"a call that failed: {text[:200]} = {result}")
        descriptor = DESCRIPTOR.match(text, text.index(name))
        if name == "openat" and result >= 0:
            path = decode(TEXT.search(text)[1])
            if isinstance(file := self.named.get(path), File):
                files[result] = [file, None if "O_APPEND" in text else 0]
            return
        if not descriptor or result < 0 or not self.is_inside(on := decode(descriptor[2])):
            return
        if name == "lseek":
            files[int(descriptor[1])][1] = result
        elif name == "write" and files[int(descriptor[1])][1] is not None:
            files[int(descriptor[1])][1] += result
        elif name in ("fsync", "fdatasync"):
            is_directory = self.names.get(on) == "directory"
            synced = on if is_directory else files[int(descriptor[1])][0]
            self.syncs.append((begun, self.line, synced))
            if not is_directory:
                synced.syncs.append((begun, self.line))

    def change(self, file, change):
        file.changes.append(change)
        file.size = change.at if change.data is None else max(file.size, change.at + len(change.data))
        return change

    def rename(self, path, names):
        change = Change(self.line, parent=os.path.dirname(path), names=names)
        self.changes.append(change)
        self.names.update(names)
        self.named.update({path: file for path, file in names.items() if file})
        return change

    def settle(self, cut_off):
        """The process is gone. What it was killed in happened or did not: the files, as they are now, tell."""
        cut_off = list(cut_off)
        for change in cut_off:
            change.ended = self.line
        for path, file in self.names.items():
            while (
                isinstance(file, File)
                and not self.is_as_told(path, file)
                and file.changes
                and file.changes[-1] in cut_off
            ):
                file.changes.pop()
                file.size = len(content(file.changes))
            if not self.is_as_told(path, file):
                raise Failed(f"the trace does not explain {path}")

    @staticmethod
    def is_as_told(path, file):
        path = pathlib.Path(path)
        if not isinstance(file, File):
            return path.is_dir() if file else not path.exists()
        return path.is_file() and path.read_bytes() == content(file.changes)

    def is_inside(self, path):
        return path == self.root or path.startswith(self.root + "/")

    def leave(self, cut, variant, strict, rng, into):
        """Lays out, under `into`, what a cut before line `cut` may leave."""
        names = {}
        for change in self.surviving_names(cut, variant, strict, rng):
            names.update(change.names)
        for path, file in sorted((path, file) for path, file in names.items() if file):
            target = pathlib.Path(into + path.removeprefix(self.root))
            if not target.parent.is_dir():
                continue  # with its directory, all in it is gone
            if file == "directory":
                target.mkdir()
            else:
                write_sparse(target, content(surviving_content(file, cut, variant, rng)))

    def surviving_names(self, cut, variant, strict, rng):
        def safe_before(parent):
            syncs = (begun for begun, ended, synced in self.syncs if ended < cut and (not strict or synced == parent))
            return max(syncs, default=0)

        asked = [change for change in self.changes if change.begun < cut]
        safe = {change for change in asked if change.ended < safe_before(change.parent)}
        pending = [change for change in asked if change not in safe]
        if variant in ("lost", "kept"):
            pending = pending if variant == "kept" else []
        elif strict:
            pending = [change for change in pending if rng.random() < 0.5]
        else:
            pending = pending[: rng.randint(0, len(pending))]
        chosen = safe.union(pending)
        return [change for change in asked if change in chosen]


def surviving_content(file, cut, variant, rng):
    asked = [change for change in file.changes if change.begun < cut]
    safe_before = max((begun for begun, ended in file.syncs if ended < cut), default=0)
    safe = [change for change in asked if change.ended < safe_before]
    pending = [change for change in asked if change.ended >= safe_before]
    if variant == "kept":
        return asked
    if variant == "torn" and pending:
        whole = rng.randint(0, len(pending))
        safe += pending[:whole]
        if whole < len(pending) and pending[whole].data:
            torn = pending[whole]
            # A disk writes a sector whole or not at all, so what is replaced within one has its old bytes or its new ones.
            replaces = torn.at + len(torn.data) <= len(content(safe))
            if not (replaces and len(sectors(torn)) == 1):
                safe.append(Change(0, at=torn.at, data=torn.data[: rng.randrange(len(torn.data))]))
    if variant == "sectors":
        safe += [piece for change in pending for piece in sectors(change) if rng.random() < 0.5]
    return safe


def sectors(change):
    if not change.data:
        return [change]
    first, end = change.at - change.at % SECTOR_BYTES, change.at + len(change.data)
    edges = [max(edge, change.at) for edge in range(first, end, SECTOR_BYTES)] + [end]
    return [Change(0, at=a, data=change.data[a - change.at : b - change.at]) for a, b in itertools.pairwise(edges)]


def content(changes):
    data = bytearray()
    for change in changes:
        end = change.at + len(change.data or b"")
        if change.data is None:
            del data[change.at :]
        if len(data) < end:
            data.extend(bytes(end - len(data)))
        if change.data:
            data[change.at : end] = change.data
    return data


def write_sparse(path, data):
    """Journals are stretched far beyond what is in them."""
    with path.open("wb") as file:
        file.write(data.rstrip(b"\0"))
        file.truncate(len(data))


def decode(text):
    """A file's path; newer versions of strace leave it as it is, and behind a device's path comes its kind."""
    return bytes.fromhex(text.split("<")[0].replace("\\x", "")).decode() if text.startswith("\\x") else text


def decode_all(text):
    return b"".join(bytes.fromhex(part.replace("\\x", "")) for part in TEXT.findall(text))
