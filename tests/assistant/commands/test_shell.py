"""`maskpick` has every command of the modules, and its help is instant."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import assistant.__main__
from assistant.commands import shell
from assistant.commands.shell import GROUPS, MODULES, main

ROOT = Path(__file__).parents[3]
LISTED = [name for group in GROUPS.values() for name in group]


def started(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "assistant.commands.shell", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_help_lists_every_command_once_and_starts_with_what_most_people_want(capsys):
    for words in ([], ["--help"]):
        assert main(words) == 0
        text = capsys.readouterr().out
        assert re.findall(r"^  ([a-z-]+) {2,}", text, re.M) == LISTED
    assert LISTED[:3] == ["chat", "ask", "label"]
    assert max(map(len, text.splitlines())) <= 80


def test_every_command_of_the_package_is_listed(capsys):
    with pytest.raises(SystemExit):
        assistant.__main__.main(["--help"])
    (offered,) = re.findall(r"\{([a-z,-]+)\}", capsys.readouterr().out.partition("\n\n")[0])
    assert sorted(offered.split(",")) == sorted(set(LISTED) - set(MODULES))


@pytest.mark.parametrize("name", LISTED)
def test_each_command_has_its_help(name):
    done = started(name, "--help")
    assert done.returncode == 0 and done.stdout.startswith("usage: ") and done.stderr == ""
    if name not in MODULES:
        assert done.stdout.startswith(f"usage: maskpick {name} ")


def test_the_help_loads_no_library():
    program = "import sys; from assistant.commands.shell import main; main(['--help']); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True).stdout
    assert not {"torch", "numpy", "PIL", "gradio"} & set(loaded.split())


def test_the_commands_are_the_modules_own(tmp_path):
    done = started("datagen", "--images", str(tmp_path), "--annotations", "none.json", "--out", str(tmp_path))
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "none.json" in done.stderr
    done = started("ask", "none.jpg", "what?", "--preset", "none")
    assert done.returncode == 2 and "there is no preset 'none'" in done.stderr


def test_an_unknown_command_is_one_line(capsys):
    assert main(["lable"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: there is no command 'lable'") and error.count("\n") == 1


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert re.fullmatch(r"maskpick \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize("end, code", [("", 0), ("raise SystemExit(3)", 3), ("raise SystemExit('no')", 2)])
def test_the_exit_code_is_the_modules(end, code, tmp_path, monkeypatch):
    (tmp_path / "one_command.py").write_text(end)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", [])
    assert shell.run_module("one_command", ["x"]) == code and sys.argv == ["one_command", "x"]
