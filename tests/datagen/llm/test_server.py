"""A language model behind a server, which answers well or badly: nothing is lost, nothing is asked twice."""

import json
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("openai", reason="the openai client is not installed")

from datagen.__main__ import main
from tests.helpers.datagen_images import command
from tests.helpers.datagen_server import KEY
from tests.helpers.written_questions import generate, statistics_of, writer_command

PROJECT = Path(__file__).parents[3]


def test_nothing_is_asked_twice(three_images, model_server):
    _, first = generate(three_images, model_server)
    count = len(model_server.bodies)
    _, again = generate(three_images, model_server)
    assert again == first and len(model_server.bodies) == count


def test_a_killed_run_goes_on_where_it_was(three_images, model_server):
    _, whole = generate(three_images, model_server, out="whole")
    model_server.bodies.clear()
    model_server.seconds = 0.2
    arguments = writer_command(three_images, model_server, "--concurrency", 2)
    process = subprocess.Popen(
        [sys.executable, "-m", "datagen", *arguments], cwd=PROJECT, stderr=subprocess.DEVNULL
    )
    while len(model_server.bodies) < 8 and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -9 and not (three_images / "out/records.jsonl").exists()
    model_server.seconds = 0.0
    _, records = generate(three_images, model_server)
    # What was on its way is asked again.
    assert records == whole and 24 <= len(model_server.bodies) <= 24 + 2


@pytest.mark.parametrize("faults", [[429, 429], [500], ["nothing"], ["half", "rubbish"], ["form"], ["empty"]])
def test_a_server_in_trouble_costs_retries_and_no_row(three_images, model_server, faults):
    model_server.faults = list(faults)
    _, records = generate(three_images, model_server, "--concurrency", 1)
    assert len(records) == 18 and len(model_server.bodies) == 24 + len(faults)


def test_rubbish_without_end_costs_a_counted_drop(three_images, model_server):
    model_server.faults = ["rubbish"] * 6  # three for each of the two images that are worked on at first
    _, records = generate(three_images, model_server, "--concurrency", 1)
    assert len(records) == 6
    assert statistics_of(three_images)["drops"]["photo: no usable answer"] == 2
    _, records = generate(three_images, model_server)  # and the same again asks for what is missing
    assert len(records) == 18 and len(model_server.bodies) == 6 + 24


def test_a_server_without_schemas_is_told_them_in_the_text(three_images, model_server):
    """Requests that were on their way when the first was refused are not lost."""
    model_server.enforces_schemas = False
    model_server.seconds = 0.05
    _, records = generate(three_images, model_server, "--concurrency", 3)
    assert len(records) == 18
    refused = [body for body in model_server.bodies if "response_format" in body]
    assert 1 < len(refused) <= 3 and len(model_server.bodies) == 24 + len(refused)


@pytest.mark.parametrize("status, message", [(401, "refuses the key"), (404, "does not know stub")])
def test_what_no_retry_can_mend_is_one_line(three_images, model_server, status, message, capsys):
    model_server.faults = [status] * 100
    assert generate(three_images, model_server)[0] == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1] and "Traceback" not in error


def test_a_server_that_is_not_there_is_one_line(three_images, model_server, monkeypatch, capsys):
    monkeypatch.setattr("datagen.llm.server.MAX_RETRIES", 0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        model_server.url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    assert generate(three_images, model_server)[0] == 2
    assert f"no server answers at {model_server.url}" in capsys.readouterr().err.splitlines()[-1]


def test_the_budget_is_kept_and_a_larger_one_goes_on(three_images, model_server, capsys):
    cost = (100 * 10 + 50 * 20) / 1e6  # of a request
    price = ("--price", 10, 20)
    code, _ = generate(three_images, model_server, *price, "--budget", 4.5 * cost, "--concurrency", 1)
    assert code == 2 and "the budget of" in capsys.readouterr().err and len(model_server.bodies) == 5
    _, records = generate(three_images, model_server, *price, "--budget", 40 * cost)
    assert len(records) == 18 and len(model_server.bodies) == 24


def test_requests_are_many_at_a_time_and_never_more_than_allowed(three_images, model_server):
    model_server.seconds = 0.05
    generate(three_images, model_server, "--concurrency", 4)
    assert 2 <= model_server.most <= 4


def test_two_models_share_the_slots_and_the_ledger(three_images, model_server, capsys):
    model_server.seconds = 0.05
    _, records = generate(three_images, model_server, "--concurrency", 3, "--describe-with", "describer")
    assert records and 2 <= model_server.most <= 3
    assert f"requests={len(model_server.bodies)}," in capsys.readouterr().err


def test_every_slot_is_filled(three_images, model_server):
    """The server answers nobody until all its slots hold a request: only the last few wait in vain."""
    data = json.loads((three_images / "instances.json").read_text())
    for k in range(4, 40):
        Image.fromarray(np.full((100, 200, 3), k, np.uint8)).save(three_images / f"images/{k}.jpg")
        data["images"].append(data["images"][0] | {"id": k, "file_name": f"{k}.jpg"})
        data["annotations"] += [
            row | {"id": 10 * k + n, "image_id": k} for n, row in enumerate(data["annotations"][:3])
        ]
    (three_images / "instances.json").write_text(json.dumps(data))
    model_server.barrier = threading.Barrier(4)
    _, records = generate(three_images, model_server, "--concurrency", 4)
    assert len(records) == 6 * 39 and len(model_server.bodies) == 8 * 39
    assert model_server.released >= 0.95 * 8 * 39


@pytest.mark.parametrize("more", [["--concurrency", 0], ["--captions", "nowhere.json"]])
def test_bad_options_are_one_line(three_images, model_server, more, capsys):
    assert generate(three_images, model_server, *more)[0] == 2
    assert re.search(r"^error: ", capsys.readouterr().err, re.M) and not model_server.bodies


def test_no_model_and_no_key(three_images, model_server, monkeypatch, capsys):
    arguments = command(three_images, "out", "--writer", "openai")
    assert main(arguments) == 2 and "--model" in capsys.readouterr().err
    monkeypatch.delenv("OPENAI_API_KEY")
    assert main([*arguments, "--model", "x"]) == 2 and "OPENAI_API_KEY" in capsys.readouterr().err


def test_the_key_is_not_in_the_source():
    assert KEY not in (PROJECT / "datagen/llm/server.py").read_text()
