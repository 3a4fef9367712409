"""docs/security.md: the files, tests and settings that it names are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from serving.settings import Settings

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "security.md").read_text("utf-8")
# In tests/serving where no folder of the project begins the path.
CITED = sorted(set(re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", PAGE)))
LINKS = sorted(set(re.findall(r"\]\(([^)\s]+)\)", PAGE)))


def find(path: str) -> Path:
    beside = Path(__file__).parents[1] / path
    return beside if beside.exists() else ROOT / path


@pytest.mark.parametrize(("path", "test"), CITED)
def test_what_the_page_cites_is_there(path: str, test: str) -> None:
    text = find(path).read_text("utf-8")
    if test:
        assert re.search(rf"^(?:async )?def {test}\(", text, re.MULTILINE)


def test_attacks_that_the_page_names_are_sent() -> None:
    sent = (ROOT / "tests" / "support" / "attacks.py").read_text("utf-8")
    named = re.findall(r'`test_attacks\.py` \("([^"]+)"\)', PAGE)
    assert named
    assert [name for name in named if f'"{name}"' not in sent] == []


def test_every_row_of_attacks_names_a_test() -> None:
    table = PAGE.partition("| attack |")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    attacks = [row for row in rows if row[1]]
    assert len(attacks) > 40
    assert [row[0] for row in attacks if ".py" not in row[3]] == []


def test_settings_and_their_defaults_are_the_servers() -> None:
    named = set(re.findall(r"`([a-z]+(?:_[a-z0-9]+)+)`", PAGE))
    # Of other programs, and of the lines of a key file.
    others = {"memfd_create", "limit_req", "limit_conn", "requests_per_second", "no_new_privs"}
    others |= {"segserve_client", "uint_contents", "segserve_log_lines_dropped_total"}
    assert named - others - set(Settings.model_fields) == set()
    units = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
    defaults = re.findall(r"`([a-z0-9_]+)` \(([\d,]+)(?: ([KMG]iB))?\)", PAGE)
    assert len(defaults) > 25
    for name, digits, unit in defaults:
        says = int(digits.replace(",", "")) * units.get(unit, 1)
        assert (name, Settings.model_fields[name].default) == (name, says)


@pytest.mark.parametrize("link", LINKS)
def test_links_lead_somewhere(link: str) -> None:
    path, _, anchor = link.partition("#")
    target = (ROOT / "docs" / path).resolve() if path else ROOT / "docs" / "security.md"
    assert target.exists()
    if anchor:
        headings = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.MULTILINE)
        anchors = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
        assert anchor in anchors
