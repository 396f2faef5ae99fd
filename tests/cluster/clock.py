"""A process that takes the time for another than it is, from one moment to the next.

libfaketime does not reach a NATS server, which is linked statically. Every program asks the kernel's vDSO for the time, though, a
page of code in its own memory: here that code is exchanged for a call of the kernel with some seconds added. What is measured by
the monotonic clock stays right.
"""

import pathlib
import platform
import signal
import struct
import time

from lib import Failed

FUNCTION = b"__vdso_clock_gettime"
# mov eax, 228 (clock_gettime); syscall; test edi, edi (CLOCK_REALTIME); jne to the end; add qword [rsi], seconds; ret
CODE = bytes.fromhex("b8e4000000 0f05 85ff 7507 488106"), bytes.fromhex("c3")
CODE_BYTES = 19
DYNSYM, STOP_SECONDS = 11, 10


def can_be_set():
    return platform.machine() == "x86_64"


def set_clock(process, seconds):
    """Adds them to the time of day that the process sees; 0 is the machine's own again. It must not be stopped."""
    path = pathlib.Path(f"/proc/{process.pid}")
    begin, end = vdso_of(path)
    with (path / "mem").open("r+b", buffering=0) as memory:
        memory.seek(begin)
        at, size = symbol(memory.read(end - begin))
        if size < CODE_BYTES:
            raise Failed(f"{FUNCTION.decode()} has {size} bytes only: no clock can be set on this kernel")
        while True:
            process.send_signal(signal.SIGSTOP)
            try:
                if is_outside(path, range(begin + at, begin + at + size)):
                    memory.seek(begin + at)
                    memory.write(CODE[0] + struct.pack("<i", seconds) + CODE[1])
                    return
            finally:
                process.send_signal(signal.SIGCONT)


def vdso_of(path):
    line = next(line for line in (path / "maps").read_text().splitlines() if line.endswith("[vdso]"))
    begin, end = (int(number, 16) for number in line.split()[0].split("-"))
    return begin, end


def symbol(elf):
    """Where the function is in the vDSO, and its bytes."""
    sections_at, size, count = *struct.unpack_from("<Q", elf, 0x28), *struct.unpack_from("<HH", elf, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", elf, sections_at + size * number) for number in range(count)]
    symbols = next(section for section in sections if section[1] == DYNSYM)
    names = sections[symbols[6]][4]
    for at in range(symbols[4], symbols[4] + symbols[5], symbols[9]):
        name, _, _, _, value, length = struct.unpack_from("<IBBHQQ", elf, at)
        if elf[names + name :].startswith(FUNCTION + b"\0"):
            return value, length
    raise Failed(f"the vDSO has no {FUNCTION.decode()}")


def is_outside(path, code):
    """Waits until every thread stands still; whether none does so within the function."""
    deadline = time.monotonic() + STOP_SECONDS
    for thread in (path / "task").iterdir():
        while (thread / "stat").read_text().rpartition(")")[2].split()[0] != "T":
            if time.monotonic() > deadline:
                raise Failed(f"{path} does not stop")
            time.sleep(0.001)
        if int((thread / "syscall").read_text().split()[-1], 16) in code:
            return False
    return True
