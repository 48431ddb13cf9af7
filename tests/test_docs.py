"""The pages: every link leads somewhere, and the settings of every command are those of its job."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from jobs.main import JOBS

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "pipeline").rglob("*.md")])


def prose(page: Path) -> str:
    """Without code, in which brackets mean something else."""
    return re.sub(r"```.*?```|^ {4,}.*?$|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)


def anchors(page: Path) -> set[str]:
    """What `#...` may name on a page: its headings as GitHub writes them, and its own anchors."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.M)
    named = re.findall(r'<a name="(.+?)"', text)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings} | set(named)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{link}: there is no {file}"
        assert not anchor or anchor in anchors(target), f"{link}: {target.name} has no heading '{anchor}'"


def test_every_page_can_be_reached_from_the_readme():
    reached, new = set(), {ROOT / "README.md"}
    while new:
        reached |= new
        links = {
            (page.parent / file).resolve() for page in new for file in re.findall(r"\]\(([^)#\s]+\.md)", prose(page))
        }
        new = {page for page in links if page.is_file()} - reached
    assert not set((ROOT / "docs").glob("*.md")) - reached


def commands(page: Path) -> list[str]:
    """`python -m jobs.NAME ...` as a reader would copy it; not those that leave something to the reader."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.findall(r"^ *(?:\$ )?python -m (jobs\..+)$", text, flags=re.M)
    return [
        command
        for command in found
        if command.split()[0].removeprefix("jobs.") in JOBS and "..." not in command and "my.yaml" not in command
    ]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if commands(page)], ids=lambda page: str(page.relative_to(ROOT))
)
def test_commands_have_settings_of_their_jobs(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for command in commands(page):
        module, *arguments = shlex.split(command, comments=True)
        importlib.import_module(module).JOB.load(arguments)
