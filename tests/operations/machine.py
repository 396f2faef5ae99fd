"""A Debian of its own, with systemd as its init, in a container that sees nothing of this machine but one network cable."""

import os
import pathlib
import subprocess
import time

BOOT_SECONDS = 60
# The container needs a cgroup of its own in a version 2 hierarchy, which not every machine has mounted where it is looked for.
BOOT = """
set -e
mount --make-rprivate /
umount -R /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
mkdir -p "$0"
echo $$ >"$0/cgroup.procs"
exec systemd-nspawn --quiet --boot --register=no --keep-unit --ephemeral --console=pipe "$@"
"""
CLEAN_UP = """mount -t cgroup2 none /sys/fs/cgroup; find "$0" -depth -type d -exec rmdir '{}' +"""
ENVIRONMENT = [
    "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG=C.UTF-8",
    "SYSTEMD_COLORS=0",
    "DEBIAN_FRONTEND=noninteractive",
]


def bootstrap(root, suite, packages=()):
    """The smallest that boots, and these packages."""
    if not (root / "etc/debian_version").exists():
        included = ",".join(("systemd", "systemd-sysv", "dbus", "ca-certificates", *packages))
        command = ["debootstrap", "--variant=minbase", f"--include={included}", suite, root]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


class Machine:
    """Runs until the `with` is over; what it wrote is then gone."""

    def __init__(self, root, here, there):
        name = f"bc{os.getpid()}"
        self.cgroup = f"/sys/fs/cgroup/{name}"
        cable = f"--network-veth-extra={name}:cable0"
        self.process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", BOOT, self.cgroup, f"--directory={root}", f"--machine={name}", cable],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.init = None
        try:
            self.boot()
            for interface, address, inside in ((name, here, []), ("cable0", there, ["nsenter", "-t", self.init, "-n"])):
                subprocess.run([*inside, "ip", "address", "add", f"{address}/30", "dev", interface], check=True)
                subprocess.run([*inside, "ip", "link", "set", interface, "up"], check=True)
        except BaseException:
            self.end()
            raise

    def boot(self):
        children = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        deadline = time.monotonic() + BOOT_SECONDS
        while self.init is None or self.run("systemctl", "is-system-running", check=False).strip() not in (
            "running",
            "degraded",
        ):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                raise SystemExit(f"systemd: the machine does not boot: {self.process.stderr.read()}")
            time.sleep(0.2)
            self.init = next(iter(children.read_text().split()), None)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def end(self):
        self.process.terminate()  # which nspawn passes on as a shutdown
        try:
            self.process.wait(BOOT_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        subprocess.run(["unshare", "--mount", "sh", "-c", CLEAN_UP, self.cgroup], check=False)

    def command(self, *words):
        enter = ["nsenter", "-t", self.init, "-m", "-u", "-i", "-n", "-p", "-C", "--wdns=/root"]
        return [*enter, "env", "-i", "HOME=/root", *ENVIRONMENT, *map(str, words)]

    def run(self, *words, check=True, given=None):
        done = subprocess.run(self.command(*words), capture_output=True, text=True, input=given, check=False)
        if check and done.returncode != 0:
            raise SystemExit(f"systemd: {' '.join(map(str, words))}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def shell(self, script, given=None):
        return self.run("sh", "-euc", script, given=given)

    def write(self, path, text):
        self.run("install", "-D", "-m", "644", "/dev/stdin", path, given=text)

    def put(self, file):
        """Copies a file of this machine's to its /root."""
        path = f"/root/{pathlib.Path(file).name}"
        with open(file, "rb") as source:
            subprocess.run(self.command("dd", "status=none", f"of={path}"), stdin=source, check=True)
        return path

    def unit(self, name):
        return self.run("systemctl", "show", "--value", f"--property={name}", "blobcast").strip()
