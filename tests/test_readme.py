"""The project is also a text: every equation can be found, and every command explains itself."""

import importlib
import re
import sys

import pytest
from conftest import ROOT


@pytest.mark.parametrize("number", range(1, 20))
def test_every_equation_stands_at_a_line_of_code_and_in_a_test(number):
    """README promises that grep shows where an equation is computed and where it is tested."""
    tag = f"Eq. ({number})"
    lines = []
    for script in ("model.py", "losses.py"):
        lines.extend((ROOT / script).read_text().splitlines())
    tagged = [line for line in lines if f"# {tag}" in line and line.split("#")[0].strip()]
    assert tagged, f"no line of code computes {tag}"
    tests = [path.read_text() for path in (ROOT / "tests").glob("test_*.py")]
    assert any(tag in text for text in tests), f"no test of {tag}"


@pytest.mark.parametrize("command", [
    "data", "data faces", "data check", "masks", "train", "evaluate"])
def test_every_command_line_answers_help(command, monkeypatch, capsys):
    script, *arguments = command.split()
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *arguments, "--help"])
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(script).main()
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert "usage" in said
    if command == "data":
        assert "faces" in said and "check" in said
    else:
        assert "--root" in said and "default" in said


def test_every_script_and_picture_that_the_readme_names_is_there():
    text = (ROOT / "README.md").read_text()
    scripts = re.findall(r"python ([\w/]+\.py)", text)
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert "train.py" in scripts
    assert [name for name in scripts + pictures if not (ROOT / name).is_file()] == []
