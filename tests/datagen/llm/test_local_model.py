"""Real language models that write questions: one behind `transformers serve`, and some in this process.

They are weak or random: what is tested is that the way to them works, and that their rubbish is counted and
costs no run.
"""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("openai", reason="the openai client is not installed")

from datagen.__main__ import main
from datagen.llm import local_model
from datagen.llm.answers import Ledger, fits_schema
from datagen.llm.image_messages import with_image
from datagen.llm.local_model import LocalModel
from datagen.llm.prompts import DESCRIPTION, OPINION
from datagen.llm.requests import NUMBERS, object_schema
from datagen.result_cache import WorkerCache
from tests.helpers.datagen_images import command
from tests.helpers.datagen_server import scripted_answer
from tests.helpers.tiny_models import tiny_llava, tiny_qwen3_vl, tiny_smolvlm

CHOICE = object_schema("choice", sure={"type": "string", "enum": ["yes", "no"]}, numbers=NUMBERS)


@pytest.fixture(scope="module")
def smollm2():
    from assistant.errors import BadInput
    from assistant.pocket.wheels import smollm2_folder

    try:
        return smollm2_folder()
    except (BadInput, OSError) as error:
        pytest.skip(f"SmolLM2 cannot be had here ({error})")


@pytest.fixture
def transformers_server(smollm2, tmp_path):
    """The address of `transformers serve` with SmolLM2."""
    for needed in ("fastapi", "uvicorn"):
        pytest.importorskip(needed, reason="transformers serve needs it")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "import sys; from transformers.cli.transformers import main; sys.exit(main())"
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    log = tmp_path / "serve.log"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "serve", str(smollm2), *options],
        stdout=log.open("wb"),
        stderr=subprocess.STDOUT,
        env=os.environ | {"NO_PROXY": "127.0.0.1"},
    )
    for _ in range(400):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).read()
            break
        except OSError:
            if process.poll() is not None:
                pytest.skip(f"transformers serve does not start here: {log.read_text()[-200:]}")
            time.sleep(0.25)
    else:
        process.kill()
        pytest.skip("transformers serve did not come up")
    yield f"http://127.0.0.1:{port}/v1"
    process.kill()
    process.wait()


def test_the_writer_asks_a_real_server(three_images, transformers_server, smollm2, capsys, no_proxy):
    options = ["--writer", "openai", "--model", smollm2, "--base-url", transformers_server]
    limits = ["--per-image", 2, "--answer-tokens", 8, "--pick", 1, "--concurrency", 2]
    code = main(command(three_images, "out", *options, *limits))
    printed = capsys.readouterr()
    # A weak model may have made some questions, or none: what is wrong is counted, and nothing breaks.
    assert code in (0, 2) and "Traceback" not in printed.err
    assert "dropped" in printed.out + printed.err
    assert int(printed.err.split("requests=")[1].split(",")[0]) == 3  # eight tokens hold no answer


def test_a_real_model_answers_in_the_form(smollm2):
    ledger = Ledger()

    async def ask():
        async with LocalModel(str(smollm2), WorkerCache(), ledger, max_tokens=40) as model:
            messages = [{"role": "user", "content": "Which of these numbers is larger than five: 3, 4, 7?"}]
            return await asyncio.gather(model.ask(messages, OPINION), model.ask(messages, CHOICE))

    opinion, choice = asyncio.run(ask())
    assert fits_schema(opinion, OPINION) and fits_schema(choice, CHOICE) and ledger.completion_tokens > 0


@pytest.mark.parametrize("make", [tiny_qwen3_vl, tiny_smolvlm, tiny_llava])
def test_any_model_answers_in_the_form(tmp_path, make):
    """With random weights: only the grammar can have done it. Questions that wait are answered together."""
    text = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Which?"}]
    image = with_image([{"role": "user", "content": "Describe."}], np.zeros((60, 80, 3), np.uint8))
    questions = [(text, OPINION), (text, CHOICE), (image, CHOICE), (image, DESCRIPTION)]
    ledger, batch_sizes = Ledger(), []

    async def ask():
        path = str(make(tmp_path / "model"))
        async with LocalModel(path, WorkerCache(), ledger, batch_size=4, max_tokens=500) as model:
            generate = model.generate

            def counted(batch):
                batch_sizes.append(len(batch))
                return generate(batch)

            model.generate = counted
            first = await asyncio.gather(*(model.ask(messages, schema) for messages, schema in questions))
            again = await asyncio.gather(*(model.ask(messages, schema) for messages, schema in questions))
            return first, again

    first, again = asyncio.run(ask())
    good = [
        answer
        for answer, (_, schema) in zip(first, questions, strict=True)
        if answer is not None and fits_schema(answer, schema)
    ]
    assert len(good) >= 2 and first[1] and first[1]["sure"] in ("yes", "no") and max(batch_sizes) >= 2
    assert [answer for answer in again if answer] == [answer for answer in first if answer]
    assert ledger.from_cache == len(good)


def test_a_broken_folder_and_no_model_are_one_line(three_images, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    writer = ("--per-image", 2, "--writer", "hf")
    assert main(command(three_images, "out", *writer, "--model", tmp_path / "empty")) == 2
    assert "cannot load" in capsys.readouterr().err.splitlines()[-1]
    assert main(command(three_images, "out", *writer)) == 2 and "--model" in capsys.readouterr().err


class ScriptedModel:
    """In the place of `LocalModel`: answers as the scripted server does."""

    def __init__(self, name, cache, ledger, batch_size, device, max_tokens):
        self.name = name
        self.ledger = ledger

    async def __aenter__(self):
        return self

    async def __aexit__(self, *error):
        pass

    async def ask(self, messages, schema, seed=0):
        self.ledger.requests += 1
        return scripted_answer(schema["title"], messages[-1]["content"])


def test_questions_of_a_scripted_local_model(three_images, monkeypatch, capsys):
    """The good path through --writer hf: the steps are the server's."""
    monkeypatch.setattr(local_model, "LocalModel", ScriptedModel)
    assert main(command(three_images, "out", "--writer", "hf", "--model", "scripted", "--per-image", 8)) == 0
    rows = [json.loads(line) for line in (three_images / "out/records.jsonl").read_text().splitlines()]
    assert len(rows) == 18 and {row["source"]["writer"] for row in rows} == {"hf"}
    assert Counter(row["source"]["kind"] for row in rows)["followup"] == 3
    assert "requests=24" in capsys.readouterr().err
