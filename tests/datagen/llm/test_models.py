"""Real language models that write questions: one behind `transformers serve` on loopback, and ones in this process. They
are weak or random: what is asked here is that the way to them works, and that their rubbish is counted and costs no run."""

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
from datagen.llm.describe import with_picture
from datagen.llm.server import fits
from datagen.llm.writer import DESCRIPTION, NUMBERS, OPINION, form
from datagen.result_cache import Kept
from tests.datagen.llm.test_openai import photos  # noqa: F401
from tests.helpers.tiny_models import tiny_llava, tiny_qwen3_vl, tiny_smolvlm

CHOICE = form("choice", sure={"type": "string", "enum": ["yes", "no"]}, numbers=NUMBERS)


@pytest.fixture(scope="module")
def smollm2():
    from assistant.errors import BadInput
    from assistant.weights import smollm2_folder

    try:
        return smollm2_folder()
    except (BadInput, OSError) as error:
        pytest.skip(f"SmolLM2 cannot be had here ({error})")


@pytest.fixture
def server(smollm2, tmp_path):
    """The address of `transformers serve` with SmolLM2."""
    for needed in ("fastapi", "uvicorn"):
        pytest.importorskip(needed, reason="transformers serve needs it")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "import sys; from transformers.cli.transformers import main; sys.exit(main())"
    log = tmp_path / "serve.log"
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            code,
            "serve",
            str(smollm2),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--device",
            "cpu",
            "--dtype",
            "float32",
        ],
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


def words(folder, *more):
    return [
        "--images",
        str(folder / "images"),
        "--annotations",
        str(folder / "instances.json"),
        "--per-image",
        "2",
        "--out",
        str(folder / "out"),
        *map(str, more),
    ]


def rubbish(code, capsys):
    """A weak model may have made some questions, or none: what is wrong is counted, and nothing breaks."""
    said = capsys.readouterr()
    assert code in (0, 2) and "Traceback" not in said.err
    assert "given up" in said.out + said.err
    print(said.err)
    return int(said.err.split("requests=")[1].split(",")[0])


def test_the_writer_asks_a_real_server(photos, server, smollm2, capsys, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    code = main(
        words(
            photos,
            "--writer",
            "openai",
            "--model",
            smollm2,
            "--base-url",
            server,
            "--answer-tokens",
            8,
            "--pick",
            1,
            "--concurrency",
            2,
        )
    )
    assert rubbish(code, capsys) == 3  # eight tokens hold no answer


def test_a_real_model_answers_in_the_form(smollm2):
    from datagen.llm.local import Local

    async def ask():
        async with Local(str(smollm2), Kept(None), tokens=40) as model:
            messages = [{"role": "user", "content": "Which of these numbers is larger than five: 3, 4, 7?"}]
            found = await asyncio.gather(model.ask(messages, OPINION), model.ask(messages, CHOICE))
            return found, model.ledger

    found, ledger = asyncio.run(ask())
    assert fits(found[0], OPINION) and fits(found[1], CHOICE) and ledger.completion_tokens > 0


@pytest.mark.parametrize("make", [tiny_qwen3_vl, tiny_smolvlm, tiny_llava])
def test_any_model_answers_in_the_form(tmp_path, make):
    """With random weights: only the grammar can have done it. Those that wait are answered together."""
    from datagen.llm.local import Local

    async def ask():
        kept = Kept(tmp_path / "kept.sqlite")
        async with Local(str(make(tmp_path / "model")), kept, batch=4, tokens=500) as model:
            told = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Which?"}]
            shown = with_picture([{"role": "user", "content": "Describe."}], np.zeros((60, 80, 3), np.uint8))
            sizes, generate = [], model.generate
            model.generate = lambda batch: sizes.append(len(batch)) or generate(batch)
            asked = [(told, OPINION), (told, CHOICE), (shown, CHOICE), (shown, DESCRIPTION)]
            found = await asyncio.gather(*(model.ask(messages, schema) for messages, schema in asked))
            again = await asyncio.gather(*(model.ask(messages, schema) for messages, schema in asked))
            return asked, found, again, sizes, model.ledger

    asked, found, again, sizes, ledger = asyncio.run(ask())
    good = [
        answer for answer, (_, schema) in zip(found, asked) if answer is not None and fits(answer, schema)
    ]
    assert len(good) >= 2 and found[1] and found[1]["sure"] in ("yes", "no") and max(sizes) >= 2
    assert [a for a in again if a] == [a for a in found if a] and ledger.from_cache == len(good)


def test_a_text_model_sees_no_pictures_and_a_broken_folder_is_one_line(photos, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(words(photos, "--writer", "hf", "--model", tmp_path / "empty")) == 2
    assert "cannot load" in capsys.readouterr().err.splitlines()[-1]
    assert main(words(photos, "--writer", "hf")) == 2 and "--model" in capsys.readouterr().err


def test_questions_of_a_scripted_local_model(photos, monkeypatch):
    """The good path through --writer hf: the steps are the server's."""
    from datagen.llm import local
    from tests.datagen.llm.test_openai import MEANT, WRITTEN

    class Scripted:
        def __init__(self, name, kept, batch, device, tokens):
            self.model, self.kept, self.ledger = name, kept, Counter()

        async def __aenter__(self):
            return self

        async def __aexit__(self, *error):
            pass

        async def ask(self, messages, schema, seed=0):
            self.ledger[schema["title"]] += 1
            if schema["title"] == "questions":
                return {"questions": WRITTEN}
            asked = messages[-1]["content"].split("The question: ")[1]
            return {"numbers": next(v for k, v in MEANT.items() if k in asked)}

    monkeypatch.setattr(local, "Local", Scripted)
    assert main(words(photos, "--writer", "hf", "--model", "scripted", "--per-image", 8)) == 0
    rows = [json.loads(line) for line in (photos / "out/records.jsonl").read_text().splitlines()]
    assert len(rows) == 18 and {row["source"]["writer"] for row in rows} == {"hf"}
    assert Counter(row["source"]["kind"] for row in rows)["followup"] == 3
