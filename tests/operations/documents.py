"""Whether somebody who has only the package can read on: the links of its documents, and its man pages."""

import gzip
import pathlib
import re
import subprocess
import unicodedata

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
DOCS = "usr/share/doc/blobcast"
# What a reader of the package does without: how it is tested, built and measured.
SOURCE_ONLY = (
    ".ci/",
    ".github/",
    "tests/",
    "src/",
    "benches/",
    "deploy/",
    "examples/",
    "docs/pictures/",
    "buf.yaml",
    "deny.toml",
    "Cargo.toml",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
)
LINK = re.compile(r"\[[^][]*\]\((?!https?:)([^()\s#]*)(#[^()\s]*)?\)")
OPTION = re.compile(r"^ +(?:-\w, )?(--[a-z][a-z-]*)", re.MULTILINE)
COMMAND = re.compile(r"^  ([a-z][a-z-]*) ", re.MULTILINE)


def check_links(tree, expect):
    """Every link leads to a file and a heading that are there, and only links into the source were left out."""
    docs, count = tree / DOCS, 0
    documents = sorted(docs.rglob("*.md"))
    expect({"README.md", "SECURITY.md"} <= {document.name for document in documents}, True, "the documents are there")
    for document in documents:
        packaged = links(document)
        for path, anchor in packaged:
            target = document.parent / path if path else document
            expect(
                target.exists() or target.is_symlink(), True, f"{document.name} links to {path}: whether that is there"
            )
            if anchor and target.suffix == ".md":
                expect(
                    anchor[1:] in headings(target),
                    True,
                    f"{document.name} links to {path}{anchor}: whether it has that heading",
                )
        source = ROOT / document.relative_to(docs)
        for path, _ in links(source) - packaged:
            target = (source.parent / path).resolve()
            expect(target.exists(), True, f"{source.relative_to(ROOT)} links to {path}: whether that is there")
            expect(
                str(target.relative_to(ROOT)).startswith(SOURCE_ONLY),
                True,
                f"{path} is only in the source, and {source.name} links to it",
            )
        count += len(packaged)
    return count


def links(document):
    return {(path, anchor) for path, anchor in LINK.findall(without_code(document))}


def without_code(document):
    return re.sub(r"^ *```.*?^ *```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)


def headings(document):
    """As GitHub names them."""
    names = re.findall(r"^#+ (.*)$", without_code(document), re.MULTILINE)
    return {"".join(letter for letter in name.lower().replace(" ", "-") if is_kept(letter)) for name in names}


def is_kept(letter):
    return letter in "-_" or unicodedata.category(letter)[0] in "LN"


def check_manual(tree, expect):
    """A page for each command, which groff renders without a word of warning, with all of the command's help."""
    broker, directory = tree / "usr/bin/blobcast", tree / "usr/share/man/man1"
    pages = {
        page.name.removesuffix(".1.gz"): gzip.decompress(page.read_bytes()).decode() for page in directory.iterdir()
    }
    commands = dict(helps(broker))
    expect(set(pages), set(commands), "the man pages, by the commands of the help")
    for name, roff in pages.items():
        text = render(name, roff, expect)
        for option in OPTION.findall(commands[name]):
            expect(option in text, True, f"{name}(1) has {option}")
        name_line = re.search(r"^NAME\n +(\S+) +- +\S", text, re.MULTILINE)
        expect(name_line and name_line[1], name, f"{name}(1) begins with its name and what it is for")
    for section in ("EXIT STATUS", "ENVIRONMENT", "FILES", "SEE ALSO"):
        expect(f"\n{section}\n" in render("blobcast", pages["blobcast"], expect), True, f"blobcast(1) has {section}")
    for page, word in (
        ("blobcast", "124"),
        ("blobcast-serve", "BLOBCAST_CONFIG"),
        ("blobcast-wait", "EXAMPLES"),
        ("blobcast-token-new", "blobcast-token(1)"),
    ):
        expect(word in render(page, pages[page], expect), True, f"{page}(1) has {word}")
    return len(pages)


def helps(broker, words=()):
    """Each command's name and help, walked down from the top."""
    text = subprocess.run([broker, *words, "--help"], check=True, capture_output=True, text=True).stdout
    yield "-".join(("blobcast", *words)), text
    listed = re.search(r"^Commands:\n(.*?)\n\n", text, re.MULTILINE | re.DOTALL)
    for command in COMMAND.findall(f"{listed[1]} ") if listed else []:
        if command != "help":
            yield from helps(broker, (*words, command))


def render(name, roff, expect):
    done = subprocess.run(
        ["groff", "-k", "-man", "-Tutf8", "-ww", "-rLL=100n", "-P-cbou"],
        input=roff,
        capture_output=True,
        text=True,
        check=True,
    )
    expect(done.stderr, "", f"what groff says of {name}(1)")
    return done.stdout
