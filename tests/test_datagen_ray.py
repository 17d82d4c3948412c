"""The Ray engine gives the rows of the plain one; the rounds of the vLLM engine, with a scripted model in vLLM's place."""

import json

import numpy as np
import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'maskpick[scale]'")
pytest.importorskip("ray.data", reason="Ray Data is not installed: pip install 'maskpick[scale]'")
pytest.importorskip("openai", reason="the openai client is not installed")

from datagen.__main__ import main, open_photos, parser  # noqa: E402
from datagen.engine_vllm import ROUNDS, Asks, gathered  # noqa: E402
from tests import test_datagen_openai as written  # noqa: E402
from tests.test_datagen_openai import model, photos as three  # noqa: E402, F401
from tests.test_datagen_stream import contents, photos, words  # noqa: E402, F401


def test_two_workers_give_the_same_rows(photos):  # noqa: F811
    assert main(words(photos, "plain")) == 0
    assert main(words(photos, "ray", "--engine", "ray", "--workers", 2)) == 0
    assert contents(photos / "ray") == contents(photos / "plain")
    # What is kept is not made again, by whichever engine.
    assert main(words(photos, "ray")) == 0 and contents(photos / "ray") == contents(photos / "plain")


def scripted(row):
    """In the place of vLLM: what the stand-in server of the other tests answers."""
    title, messages = json.loads(row["schema"])["title"], json.loads(row["messages"])
    found = {"questions": written.WRITTEN}
    if title == "opinion":
        asked = messages[-1]["content"].split("The question: ")[1]
        found = {"numbers": next(v for k, v in written.MEANT.items() if k in asked)}
    return {key: row[key] for key in ("number", "rounds", "place")} | {"text": json.dumps(found)}


def test_rounds_of_requests_give_the_rows_of_the_server(three, model):  # noqa: F811
    """The vLLM engine's rounds, on lists in the place of Ray's data sets."""
    assert written.generate(three, model)[0] == 0
    options = parser().parse_args(["--images", str(three / "images"), "--annotations", str(three / "instances.json"), "--writer", "vllm",
                                   "--model", "stub", "--per-image", "8", "--engine", "ray", "--out", str(three / "out")])
    asks, made = Asks(options), {}
    rows = [{"number": json.dumps(photo.id), "rounds": "[]"} for photo in open_photos(options)]
    for _ in range(ROUNDS + 1):
        asked = [one for row in rows for one in asks(row)]
        made |= {one["number"]: json.loads(one["made"]) for one in asked if one["place"] < 0}
        groups = {}
        for one in map(scripted, reversed([one for one in asked if one["place"] >= 0])):  # they come in any order
            groups.setdefault(one["number"], []).append(one)
        rows = [{key: value[0] for key, value in gathered({k: np.array([one[k] for one in group]) for k in group[0]}).items()}
                for group in groups.values()]
    assert not rows and len(made) == 3
    ours = [row for number in sorted(made) for row in made[number]["rows"]]
    theirs = [json.loads(line) for line in (three / "out/records.jsonl").read_text().splitlines()]
    for row in ours + theirs:
        row["source"].pop("writer"), row.pop("image")
    assert ours == theirs and len(ours) == 18


def test_what_vllm_cannot_do_is_one_line(photos, capsys):  # noqa: F811
    assert main(words(photos, "out", "--writer", "vllm", "--model", "x")) == 2
    assert main(words(photos, "out", "--writer", "vllm", "--model", "x", "--engine", "ray", "--describe-with", "y")) == 2
    assert "sends no pictures" in capsys.readouterr().err
