"""What becomes of the configuration when packages come and go: dpkg itself, in a root directory of its own.

dpkg asks about a conffile that both somebody and the package have changed, and fails where nobody can answer. Here nobody can.
"""

import concurrent.futures
import os
import pathlib
import shutil
import subprocess

CONFIGURATION = "etc/blobcast/blobcast.toml"
THREADS = 4
MINE = 'data_dir = "/srv/blobcast"\n'
CREDENTIALS = "etc/blobcast/credentials.toml"
# Of the packages that had all defaults as a conffile; no other script of theirs touched it.
OLD_SCRIPTS = {"postinst": "", "postrm": 'if [ "$1" = purge ]; then rm -rf "$DPKG_ROOT/var/lib/blobcast"; fi\n'}

# What is done, and what the configuration then is: "new" as in the package, "old" as in the one before, "mine", or None.
TRANSITIONS = [
    ("a first install", ["install new"], "new"),
    ("a first install beside a file that is there", ["write", "install new"], "mine"),
    ("an upgrade", ["install new", "install newer"], "new"),
    ("an upgrade after an edit", ["install new", "write", "install newer"], "mine"),
    ("an upgrade after a deletion", ["install new", "delete", "install newer"], None),
    ("the same package again, after an edit", ["install new", "write", "install new"], "mine"),
    ("the same package again, after a deletion", ["install new", "delete", "install new"], None),
    ("a downgrade after an edit", ["install newer", "write", "install new"], "mine"),
    ("removal and a new install, after an edit", ["install new", "write", "remove", "install newer"], "mine"),
    ("removal and a new install, after a deletion", ["install new", "delete", "remove", "install newer"], None),
    ("removal", ["install new", "write", "remove"], "mine"),
    ("purging", ["install new", "write", "purge"], None),
    ("purging after removal", ["install new", "remove", "purge"], None),
    ("a new install after purging", ["install new", "write", "purge", "install new"], "new"),
    ("from a conffile", ["install old", "install new"], "new"),
    ("from a conffile, and on", ["install old", "install new", "install newer"], "new"),
    ("from a conffile, an edit, and on", ["install old", "install new", "write", "install newer"], "mine"),
    ("from an edited conffile", ["install old", "write", "install new"], "mine"),
    ("from an edited conffile, and on", ["install old", "write", "install new", "install newer"], "mine"),
    ("from a deleted conffile", ["install old", "delete", "install new"], None),
    ("from a conffile that a removal left", ["install old", "remove", "install new"], "new"),
    ("from an edited conffile that a removal left", ["install old", "write", "remove", "install new"], "mine"),
    ("from an edited conffile, and purging", ["install old", "write", "install new", "purge"], None),
    ("from an edited conffile, and back", ["install old", "write", "install new", "install old"], "mine"),
    ("from a conffile, and back", ["install old", "install new", "install old"], "new"),
]


def check(tree, default, directory, expect):
    """`tree` is the package's, `default` what was its conffile."""
    packages = build(tree, default, directory)
    texts = {"new": (tree / "usr/share/blobcast/blobcast.toml").read_text(), "old": default, "mine": MINE, None: None}
    check_that_dpkg_asks(packages, directory / "asks", expect)

    def check_one(number, what, steps, expected, frontend):
        root = Root(directory / f"root-{number}-{frontend}", packages, frontend)
        for step in steps:
            code, said = root.do(step)
            expect(code, 0, f"{what}: the end of `{step}`, which said: {said}")
        expect(root.read(CONFIGURATION), texts[expected], f"{what}: the configuration")
        check_rest(root, steps, what, expect)

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        checks = []
        for number, (what, steps, expected) in enumerate(TRANSITIONS):
            # Nobody can answer in either case; a script that asks by debconf would notice that in one of them only.
            for frontend in ("", "noninteractive") if "edited" in what else ("noninteractive",):
                checks.append(pool.submit(check_one, number, what, steps, expected, frontend))
        for one in checks:
            one.result()
    return len(checks)


def check_rest(root, steps, what, expect):
    """Nothing that dpkg or a script puts beside a file is left, and what somebody put there is."""
    beside = {path.name for path in (root.path / "etc/blobcast").glob("*")} - {pathlib.Path(CONFIGURATION).name}
    expect(beside, set(), f"{what}: files beside it")
    if steps[-1] != "purge":
        mode = root.path / CONFIGURATION
        expect(mode.stat().st_mode & 0o777 if mode.exists() else 0o644, 0o644, f"{what}: its mode")
        return

    expect((root.path / "etc/blobcast").exists(), False, f"{what}: whether an empty directory is left")
    root.do("install new")
    (root.path / CREDENTIALS).write_text("x")
    root.do("purge")
    expect(root.read(CREDENTIALS), "x", f"{what}: a file that is not the package's")


def check_that_dpkg_asks(packages, directory, expect):
    """What the other checks rely on: with a conffile, this fails."""
    root = Root(directory, packages, "noninteractive")
    for step in ("install old", "write"):
        expect(root.do(step)[0], 0, step)
    code, said = root.do("install asking")
    expect(
        (code != 0, "end of file on stdin at conffile prompt" in said),
        (True, True),
        f"an edited conffile makes dpkg ask: {said}",
    )


def build(tree, default, directory):
    """Packages by name; without the broker, which no script runs here."""
    packages = {}
    for name, version, conffile in (
        ("old", "0.0.1-1", default),
        ("asking", "0.0.2-1", f"{default}# changed\n"),
        ("new", "1.0-1", None),
        ("newer", "1.1-1", None),
    ):
        one = directory / name
        shutil.copytree(
            tree, one, symlinks=True, ignore=lambda path, _: ["blobcast"] if path.endswith("usr/bin") else []
        )
        control = (one / "DEBIAN/control").read_text().splitlines()
        control = [f"Version: {version}" if line.startswith("Version: ") else line for line in control]
        (one / "DEBIAN/control").write_text("\n".join(control) + "\n")
        if name == "newer":
            template = one / "usr/share/blobcast/blobcast.toml"
            template.write_text(template.read_text() + "# changed\n")
        if conffile:
            make_old(one, conffile)
        packages[name] = directory / f"{name}.deb"
        run("dpkg-deb", "--root-owner-group", "-Znone", "--build", one, packages[name])
    return packages


def make_old(tree, conffile):
    shutil.rmtree(tree / "usr/share/blobcast")
    (tree / CONFIGURATION).write_text(conffile)
    (tree / "DEBIAN/conffiles").write_text(f"/{CONFIGURATION}\n")
    for script in ("postinst", "postrm"):
        (tree / "DEBIAN" / script).write_text(f"#!/bin/sh\nset -e\n{OLD_SCRIPTS[script]}")


class Root:
    """With nothing in it but what dpkg needs; scripts run outside, with `DPKG_ROOT`."""

    def __init__(self, path, packages, frontend):
        shutil.rmtree(path, ignore_errors=True)
        self.path, self.packages = path, packages
        for name in ("info", "updates", "triggers"):
            (path / "var/lib/dpkg" / name).mkdir(parents=True)
        for name in ("var/lib/dpkg/status", "var/lib/dpkg/available"):
            (path / name).touch()
        (path / "etc").mkdir()
        self.environment = {name: value for name, value in os.environ.items() if name != "DEBIAN_FRONTEND"}
        self.environment |= {"LC_ALL": "C"} | ({"DEBIAN_FRONTEND": frontend} if frontend else {})

    def do(self, step):
        """Returns the exit code, and what was said."""
        verb, _, name = step.partition(" ")
        configuration = self.path / CONFIGURATION
        match verb:
            case "write":
                configuration.parent.mkdir(exist_ok=True)
                configuration.write_text(MINE)
            case "delete":
                configuration.unlink()
            case "install":
                return self.dpkg("--install", self.packages[name])
            case _:
                return self.dpkg(f"--{verb}", "blobcast")
        return 0, ""

    def dpkg(self, *words):
        options = [
            f"--root={self.path}",
            "--force-script-chrootless",
            "--force-depends",
            "--force-unsafe-io",
            f"--log={self.path}/log",
        ]
        done = subprocess.run(
            ["dpkg", *options, *words],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self.environment,
        )  # fmt: skip
        return done.returncode, done.stdout

    def read(self, name):
        path = self.path / name
        return path.read_text() if path.exists() else None


def run(*words):
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
