"""Tables that the benchmarks write: NAME.csv, Markdown, and their places in docs/performance.md."""

import csv
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"


def markdown(columns, rows):
    """A table; rows of strings."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rate(images_per_s):
    return f"{images_per_s:,.0f}" if images_per_s >= 100 else f"{images_per_s:.1f}"


def write_runs(rows, output):
    with open(f"{output}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def kept_runs(output, numbers):
    """What an earlier command measured; `numbers` are the columns that hold some."""
    if not Path(f"{output}.csv").exists():
        return []
    with open(f"{output}.csv") as file:
        return [row | {name: float(row[name]) for name in numbers} for row in csv.DictReader(file)]


def into_performance(name, text):
    """Put the table between the marks of that name, if there are some."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    head, begin, rest = PAGE.read_text().partition(begin)
    _, end, tail = rest.partition(end)
    if begin and end:
        PAGE.write_text(f"{head}{begin}{text}\n{end}{tail}")
