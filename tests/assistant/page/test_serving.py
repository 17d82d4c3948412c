"""Starting the page: its command line, its port, its password."""

import resource
import subprocess
import sys
from pathlib import Path

import gradio
import pytest

import app
from assistant.errors import BadInput
from assistant.page.layout import build_page
from tests.helpers.fake_assistant import FakeAssistant


def test_help_is_instant():
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run([sys.executable, app.__file__, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert all(option in done.stdout for option in ("--preset", "--share", "--auth"))
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 1
    listed = subprocess.run(
        [
            sys.executable,
            "-c",
            "import app, sys; print([m for m in ('gradio', 'torch', 'numpy') if m in sys.modules])",
        ],
        cwd=Path(app.__file__).parent,
        capture_output=True,
        text=True,
    )
    assert listed.stdout.strip() == "[]"


def test_bad_start_is_one_line(monkeypatch, capsys):
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    assert app.main(["--preset", "poket"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: there is no preset 'poket'; choose one of: pocket, ")
    assert error.count("\n") == 1


def test_taken_port_is_one_line(served_page):
    port = int(served_page.address.rstrip("/").rsplit(":", 1)[1])
    with gradio.Blocks() as other:
        pass
    with pytest.raises(BadInput, match="--port"):
        app.serve(other, port=port, block=False)


def test_a_page_that_cannot_be_reached_is_one_line(monkeypatch):
    monkeypatch.setattr("gradio.networking.url_ok", lambda url: False)  # as behind a proxy
    with gradio.Blocks() as other:
        pass
    with pytest.raises(BadInput, match="NO_PROXY"):
        app.serve(other, port=None, block=False)


def test_a_password_keeps_others_out():
    import httpx

    blocks = build_page(FakeAssistant())
    auth = app.name_and_password("ada:pass:word")
    _, address, _ = app.serve(blocks, port=None, auth=auth, block=False)
    try:
        assert httpx.get(f"{address}config").status_code == 401
        wrong = httpx.post(f"{address}login", data={"username": "ada", "password": "pass"})
        assert wrong.status_code == 400
        with httpx.Client() as ada:
            right = ada.post(f"{address}login", data={"username": "ada", "password": "pass:word"})
            assert right.status_code == 200
            assert ada.get(f"{address}config").status_code == 200
    finally:
        blocks.close()


@pytest.mark.parametrize(
    "wrong", [["--auth", "ada"], ["--auth", ":x"], ["--share", "maybe"], ["--port", "x"]]
)
def test_wrong_options_are_refused(wrong, capsys):
    with pytest.raises(SystemExit, match="2"):
        app.main(wrong)
    assert "error: argument" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["99999", "65536", "-1", "http", "8_0", "٣"])
def test_a_port_out_of_range_is_refused(port, capsys):
    with pytest.raises(SystemExit) as ended:
        app.main([f"--port={port}"])
    assert ended.value.code == 2 and "a number from 0 to 65535" in capsys.readouterr().err


def test_the_line_of_a_start_is_true():
    address = "http://127.0.0.1:7860/"
    line = app.where_it_is(address, None, mcp=False)
    assert line == f"The chat is at {address}; --share on makes a public link. Ctrl-C ends it."
    line = app.where_it_is(address, "https://x.gradio.live", mcp=True)
    assert f"programs at {address}gradio_api/mcp/" in line
    assert "everybody can open https://x.gradio.live" in line and "--share" not in line
    assert app.build_parser().parse_args(["--share", "on"]).share == "on"  # which the line names


@pytest.mark.parametrize("screen", ["DISPLAY", "WAYLAND_DISPLAY", None])
def test_the_browser_is_opened_where_there_is_a_screen(screen, monkeypatch):
    opened = []
    monkeypatch.setattr(app.webbrowser, "open", opened.append)
    monkeypatch.setattr(app.sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    if screen:
        monkeypatch.setenv(screen, ":0")
    app.open_browser("http://127.0.0.1:7860/")
    assert opened == (["http://127.0.0.1:7860/"] if screen else [])


def test_a_machine_without_a_browser_is_no_error(monkeypatch):
    def refuse(address):
        raise app.webbrowser.Error("could not locate runnable browser")

    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(app.webbrowser, "open", refuse)
    app.open_browser("http://127.0.0.1:7860/")
