"""What runs have found: a line of JSON for each, added up by scenario.

A file of them makes repeated runs resumable: what is in it has been run."""

import collections
import json
import pathlib
import statistics


class Results:
    """The runs so far, in a file if there is one."""

    def __init__(self, path=None):
        self.path = pathlib.Path(path) if path else None
        self.runs = read([self.path]) if self.path and self.path.exists() else []

    def add(self, run):
        self.runs.append(run)
        if self.path:
            with self.path.open("a") as file:
                file.write(json.dumps(run) + "\n")

    def count(self, scenario):
        return sum(run["scenario"] == scenario for run in self.runs)


def read(paths):
    """A line that was cut off is left out, and its run is made again."""
    runs = []
    for path in paths:
        for line in pathlib.Path(path).read_text().splitlines():
            try:
                runs.append(json.loads(line))
            except ValueError:
                continue
    return runs


def added_up(runs, names):
    """By scenario, in the order of `names`."""
    by_name = {name: some for name in names if (some := [run for run in runs if run["scenario"] == name])}
    return [{"scenario": name} | sums(some) for name, some in by_name.items()]


def sums(runs):
    total = lambda figure: sum(run[figure] for run in runs)
    silences = [run["silence_seconds"] for run in runs]
    return {
        "runs": len(runs),
        "failed": sum(run["problem"] is not None for run in runs),
        "acknowledged": total("acknowledged"),
        "missing": total("missing"),
        "doubled": total("doubled"),
        "refused": total("refused"),
        "unanswered": total("unanswered"),
        "silence_seconds_median": round(statistics.median(silences), 1),
        "silence_seconds_max": round(max(silences), 1),
        "ends": dict(collections.Counter(run["ends"] for run in runs if run["ends"])),
        "seeds_of_failures": [run["seed"] for run in runs if run["problem"] is not None],
    }


def as_json(runs, names):
    return json.dumps({"scenarios": added_up(runs, names), "all": sums(runs)}, indent=2)


def as_table(runs, names):
    """In Markdown. Where the load ends for good the silence says nothing, and what it ends by is there instead."""
    rows = [
        "| scenario | runs | acknowledged | missing | doubled | longest silence: median, longest |",
        "|---|---|---|---|---|---|",
    ]
    for row in added_up(runs, names):
        seconds = f"{row['silence_seconds_median']:.1f} s, {row['silence_seconds_max']:.1f} s"
        ends = ", ".join(
            end if count == row["runs"] else f"{seconds}; {count} times {end}" for end, count in row["ends"].items()
        )
        failed = f", of which {row['failed']} failed" if row["failed"] else ""
        rows.append(
            f"| {row['scenario']} | {row['runs']}{failed} | {row['acknowledged']:,} | {row['missing']:,} | {row['doubled']:,}"
            f" | {ends or seconds} |"
        )
    whole = sums(runs)
    rows.append(
        f"| all | {whole['runs']} | {whole['acknowledged']:,} | {whole['missing']:,} | {whole['doubled']:,} | |"
    )
    return "\n".join(rows)
