"""Tables that the benchmarks write, and their places in README.md."""

from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def markdown(columns, rows):
    """A table; rows of strings."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rate(images_per_s):
    return f"{images_per_s:,.0f}" if images_per_s >= 100 else f"{images_per_s:.1f}"


def into_readme(name, text):
    """Put the table between the marks of that name, if there are some."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    head, begin, rest = README.read_text().partition(begin)
    _, end, tail = rest.partition(end)
    if begin and end:
        README.write_text(f"{head}{begin}{text}\n{end}{tail}")
