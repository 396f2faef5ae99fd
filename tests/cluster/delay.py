"""A link on which everything that one side sends comes later, for kernels without netem: frames are carried from one device to
another by hand."""

import collections
import contextlib
import socket
import threading
import time

FRAME_BYTES = 1 << 17
SOL_PACKET, PACKET_OUTGOING = 263, 4
# Each frame comes with what is still to be done to it, such as its checksum, and goes on with that.
PACKET_VNET_HDR = 15
ETH_P_ALL = 3
FRAMES_MAX = 10_000  # on their way at once; more are lost


class Delay:
    """Carries frames between two devices until it is stopped: what comes in at `slow` after some seconds, the rest at once."""

    def __init__(self, slow, fast, seconds):
        self.over, self.ends = threading.Event(), (open_device(slow), open_device(fast))
        self.threads = []
        for source, target, later in ((*self.ends, seconds), (*reversed(self.ends), 0)):
            frames = collections.deque(maxlen=FRAMES_MAX)
            self.threads.append(threading.Thread(target=self.receive, args=(source, frames, later), daemon=True))
            self.threads.append(threading.Thread(target=self.send, args=(target, frames), daemon=True))
        for thread in self.threads:
            thread.start()

    def receive(self, source, frames, seconds):
        while not self.over.is_set():
            with contextlib.suppress(TimeoutError):
                frame, address = source.recvfrom(FRAME_BYTES)
                if address[2] != PACKET_OUTGOING:
                    frames.append((time.monotonic() + seconds, frame))

    def send(self, target, frames):
        while not self.over.is_set():
            try:
                due, frame = frames.popleft()
            except IndexError:
                time.sleep(0.001)
                continue
            time.sleep(max(0.0, due - time.monotonic()))
            # A device that has no room loses it, as networks do.
            with contextlib.suppress(OSError):
                target.send(frame)

    def stop(self):
        self.over.set()
        for thread in self.threads:
            thread.join()
        for end in self.ends:
            end.close()


def open_device(name):
    device = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    device.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    device.settimeout(0.2)
    device.bind((name, ETH_P_ALL))
    return device
