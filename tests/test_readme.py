"""The project as a text: equations can be found, and README lists every place where the code reads or departs from the paper."""

import collections
import importlib
import re
import sys

import pytest
from conftest import ROOT

SCRIPTS = ("model.py", "losses.py", "data.py", "masks.py", "train.py", "evaluate.py")


@pytest.mark.parametrize("number", range(1, 20))
def test_every_equation_stands_at_a_line_of_code_and_in_a_test(number):
    tag = f"Eq. ({number})"
    code = [line for name in ("model.py", "losses.py") for line in (ROOT / name).read_text().splitlines() if f"# {tag}" in line]
    assert any(line.split("#")[0].strip() or number in (1, 2) for line in code), f"no line computes {tag}"
    assert any(tag in path.read_text() for path in (ROOT / "tests").glob("test_*.py")), f"no test of {tag}"


def test_readme_lists_exactly_the_readings_and_departures_of_the_code():
    """Compared by file, kind and equation, section or table, as often as each stands in the code."""
    place = r"(READING|DEPARTURE) (Eq\. \(\d+\)|Sec\. [IV]+(?:-[A-G]\d?)?|Table [IV]+)"
    code = collections.Counter()
    for name in SCRIPTS:
        text = (ROOT / name).read_text()
        found = re.findall(place, text)
        assert len(found) == len(re.findall("READING|DEPARTURE", text)), f"a tag in {name} does not name its place"
        code.update((name, *tag) for tag in found)
    rows = re.findall(r"^\| `(\w+\.py)` \| " + place + r" \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert collections.Counter(rows) == code


@pytest.mark.parametrize("script", ["data", "data faces", "data check", "masks", "train", "evaluate"])
def test_every_command_line_answers_help(script, monkeypatch, capsys):
    module, *command = script.split()
    monkeypatch.setattr(sys, "argv", [f"{module}.py", *command, "--help"])
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(module).main()
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "usage" in text and ("default" in text or script == "data")
