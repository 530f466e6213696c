"""README and docs/ say what is so: commands that are understood, flags that exist, links that lead somewhere."""

import itertools
import re
import runpy
import shlex

import pytest
from checkout import ROOT
from commands import CONFIGS

from deepfake_ray.drivers import cli

PAGES = sorted(["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
OF_OTHERS = {"help", "no-wait", "runtime-env-json"}
"""Of every program, and of Ray's own."""


def shell_of(page):
    """The lines of a page's shell blocks, joined where they go on."""
    text = (ROOT / page).read_text().replace("\\\n", " ")
    fenced = re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL)
    return [line for language, block in fenced if language == "sh" for line in block.splitlines()]


def words_of(line):
    """As the shell reads them, to the end of the command: & | # may stand in quotes."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    return list(itertools.takewhile(lambda word: word.strip("();<>|&"), lexer))


def commands_of(page):
    """(job, its flags) of every `python jobs/...`."""
    return [
        (job, words_of(rest)) for line in shell_of(page) for job, rest in re.findall(r"python jobs/(\w+)\.py(.*)", line)
    ]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_understood(page):
    for job, flags in commands_of(page):
        cli.parse(CONFIGS[job], flags)


def test_the_commands_are_found():
    assert {job for page in PAGES for job, _ in commands_of(page)} == set(CONFIGS)
    assert {job for job, _ in commands_of("README.md")} == {"quickstart", "train", "score", "evaluate"}


def test_every_flag_that_is_named_exists():
    named = {flag for page in PAGES for flag in re.findall(r"`--([a-z][a-z-]+)", (ROOT / page).read_text())}
    known = {name.replace("_", "-") for config in CONFIGS.values() for name in config.__dataclass_fields__}
    assert len(named) > 40
    assert named - known <= OF_OTHERS


def anchors_of(path):
    """Of a page's headings, as they are made of their words."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_no_link_is_dead(page):
    place = ROOT / page
    text = re.sub(r"```.*?```", "", place.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (place.parent / path).resolve() if path else place
        assert target.exists(), link
        assert not anchor or anchor in anchors_of(target), link


def test_the_two_commands_come_first_each_on_one_line():
    commands = [line.partition(" #")[0].strip() for line in shell_of("README.md")[:2]]
    assert commands == ["pip install -e . && python jobs/quickstart.py", "pip install -e '.[test]' && pytest"]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_readme_names_every_package_and_job():
    text = (ROOT / "README.md").read_text()
    packages = [path.parent.name for path in sorted((ROOT / "deepfake_ray").glob("*/__init__.py"))]
    modules = [path.name for folder in ("deepfake_ray", "jobs") for path in sorted((ROOT / folder).glob("*.py"))]
    assert len(packages) >= 10
    for name in [*(f"{package}/" for package in packages), *modules]:
        assert name == "__init__.py" or re.search(rf"(^|[\s/]){re.escape(name)}\s", text), name


def test_the_reference_is_what_the_code_says():
    written = runpy.run_path(str(ROOT / "scripts" / "write_reference.py"))
    assert (ROOT / "docs" / "reference.md").read_text() == written["page"](), "run python scripts/write_reference.py"
