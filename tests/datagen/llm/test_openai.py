"""Questions by a language model, against a real HTTP server on loopback that speaks the OpenAI protocol, well or badly."""

import json
import re
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("openai", reason="the openai client is not installed")

from assistant.grammar import Turn, parse
from assistant.record import check_records, read_records
from datagen.__main__ import main
from datagen.checks import Seen, Wanted, trouble
from datagen.composer.phrasebank import load
from datagen.llm.server import fits
from datagen.sources.photos import read_coco

BANK = load("coco")
IDS = {"cup": 1, "cat": 2, "dog": 3}


@pytest.fixture
def photos(tmp_path):
    """Three photos: two cups and a cat each."""
    (tmp_path / "images").mkdir()
    rows, outlines = [], []
    for k in range(1, 4):
        Image.fromarray(np.full((100, 200, 3), 60 * k, np.uint8)).save(tmp_path / f"images/{k}.jpg")
        rows.append({"id": k, "file_name": f"{k}.jpg", "width": 200, "height": 100})
        for n, (name, x) in enumerate((("cup", 5), ("cup", 150), ("cat", 70))):
            outlines.append(
                {
                    "id": 10 * k + n,
                    "image_id": k,
                    "category_id": IDS[name],
                    "bbox": [x, 20, 40, 50],
                    "area": 2000,
                    "iscrowd": 0,
                    "segmentation": [[x, 20, x + 40, 20, x + 40, 70, x, 70]],
                }
            )
    data = {
        "images": rows,
        "annotations": outlines,
        "categories": [{"id": n, "name": name} for name, n in IDS.items()],
    }
    (tmp_path / "instances.json").write_text(json.dumps(data))
    return tmp_path


def question(kind, text, *targets, before=()):
    turn = lambda text, targets: {
        "question": text,
        "targets": [{"phrase": p, "name": n, "numbers": list(ids)} for p, n, ids in targets],
    }
    return turn(text, targets) | {"kind": kind, "before": [turn(*earlier) for earlier in before]}


# In the list a model sees: 1 cat, 2 the left cup, 3 the right cup.
WRITTEN = [
    question("implicit", "Who is purring over there?", ("cat", "cat", [1])),
    question("implicit", "Which one is the cat that sleeps?", ("cat", "cat", [1])),  # names it
    question("implicit", "What could I drink out of?", ("cup", "cup", [2])),  # leaves one out
    question("named", "Please find all the cups.", ("cups", "cup", [2, 3])),
    question("named", "Find all the cups, please!", ("cups", "cup", [2, 3])),  # the same again
    question("position", "Where is the cup on the left?", ("cup on the left", "cup", [2])),
    question("absent", "Is anything here that barks?", ("dog", "dog", [])),
    question("absent", "Is there a kitten anywhere?", ("kitten", "cat", [])),  # there is a cat
    question(
        "multi", "I need the animal and the drinking vessels.", ("cat", "cat", [1]), ("cups", "cup", [2, 3])
    ),
    question(
        "position", "Show me the rightmost thing to drink from.", ("right cup", "cup", [3])
    ),  # opinion differs
    question("named", "Where is number nine?", ("cup", "cup", [9])),
    question(
        "followup",
        "And which of them is further to the left?",
        ("left cup", "cup", [2]),
        before=[("What could I drink out of?", [("cups", "cup", [2, 3])])],
    ),
    question("followup", "And the other one there?", ("cup", "cup", [3])),  # follows nothing
    question("part", "Where can I hold it by its handle?", ("handle", "cup", [2])),
]  # a cup is no part
MEANT = {
    "further to the left": [2],
    "purring": [1],
    "all the cups": [2, 3],
    "on the left": [2],
    "barks": [],
    "drinking vessels": [1, 2, 3],
    "rightmost": [2],
}


def sees_of(model, text):
    """The numbers of what the model sees of a list of things."""
    return [int(number) for number, name in re.findall(r"^(\d+)\. (.*)$", text, re.M) if name in model.sees]


class Model:
    """The server. `bad`: what it does instead of answering, one entry a request, as long as there are any."""

    def __init__(self):
        self.bad, self.asked, self.lock, self.most, self.now, self.seconds = (
            [],
            [],
            threading.Lock(),
            0,
            0,
            0.0,
        )
        self.sees = set()
        self.together, self.full = (
            None,
            0,
        )  # a Barrier that holds requests until so many are here; how many it released
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.asked.append(body)
                    outer.now += 1
                    outer.most = max(outer.most, outer.now)
                    bad = outer.bad.pop(0) if outer.bad else None
                time.sleep(outer.seconds)
                if outer.together:
                    try:
                        outer.together.wait(2)
                        with outer.lock:
                            outer.full += 1
                    except threading.BrokenBarrierError:  # the last few are too few
                        pass
                status, content = outer.answer(body, bad)
                with outer.lock:
                    outer.now -= 1
                if content is None:  # nothing at all
                    self.close_connection = True
                    return
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *_: None  # a client that hangs up is none of ours
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, body, bad):
        if bad in (401, 404, 429, 500):
            return bad, json.dumps({"error": {"message": "no", "type": "x"}}).encode()
        if bad == "nothing":
            return 200, None
        told = json.dumps(body["messages"])
        title = body["response_format"]["json_schema"]["schema"]["title"]
        if title == "questions":
            found = {"questions": WRITTEN}
        elif title == "description":
            found = {"description": "A cat between two cups."}
        elif isinstance(body["messages"][-1]["content"], list):
            found = {"numbers": sees_of(self, body["messages"][-1]["content"][-1]["text"])}
        else:
            asked = body["messages"][-1]["content"].split("The question: ")[1]
            found = {"numbers": next(v for k, v in MEANT.items() if k in asked)}
        content = json.dumps(found)
        content = {
            "half": content[: len(content) // 2],
            "rubbish": "Sure! Here you are: ...",
            "form": '{"questions": [{"kind": 3}]}',
            "empty": "",
        }.get(bad, content)
        assert "sk-secret" not in told
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
        return 200, json.dumps(
            {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": body["model"],
                "choices": [choice],
                "usage": {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150},
            }
        ).encode()


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    model = Model()
    yield model
    model.server.shutdown()
    model.server.server_close()


def generate(folder, model, *more, out="out"):
    words = [
        "--images",
        str(folder / "images"),
        "--annotations",
        str(folder / "instances.json"),
        "--writer",
        "openai",
        "--model",
        "stub",
        "--base-url",
        model.url,
        "--per-image",
        "8",
        "--out",
        str(folder / out),
        *map(str, more),
    ]
    code = main(words)
    return code, read_records(folder / out / "records.jsonl") if code == 0 else []


def test_what_passes_every_check_becomes_records(photos, model, capsys):
    code, records = generate(photos, model)
    assert code == 0 and len(records) == 18 and check_records(photos / "out/records.jsonl") == []
    first = [r for r in records if r.image.endswith("/1.jpg")]
    assert [r.source["kind"] for r in first] == [
        "implicit",
        "named",
        "position",
        "absent",
        "multi",
        "followup",
    ]
    assert first[0].question == "Who is purring over there?" and first[0].source["annotation_ids"] == [[12]]
    assert [t.rle is None for t in first[3].targets] == [True] and first[4].source["annotation_ids"] == [
        [12],
        [10, 11],
    ]
    assert first[2].targets[0].phrase == "cup on the left" and first[2].source["annotation_ids"] == [[10]]
    assert (
        first[0].source["writer"] == "openai"
        and first[0].source["model"] == "stub"
        and first[0].source["prompt"]
    )
    dropped = json.loads((photos / "out/statistics.json").read_text())["drops"]
    assert dropped == {
        "implicit: names its target (cat)": 3,
        "implicit: leaves out some of what it asks for": 3,
        "named: nearly asked before": 3,
        "absent: calls absent what is there": 3,
        "position: a second opinion disagrees": 3,
        "named: points at things that are not there": 3,
        "followup: follows nothing": 3,
        "part: not about a part": 3,
    }
    assert first[5].history == [Turn("What could I drink out of?", first[5].source["history"][0]["answer"])]
    assert parse(first[5].history[0].answer)[0].phrase == "cups" and first[5].source["annotation_ids"] == [
        [10]
    ]
    assert "requests=24" in capsys.readouterr().err
    generate(photos, model, "--val", 0.5, "--parquet", "--seed", 1)
    for file in (photos / "out").rglob("*"):
        assert file.is_dir() or b"sk-secret" not in file.read_bytes(), file
    kept = sqlite3.connect(photos / "out/kept.sqlite").execute("select name, value from kept").fetchall()
    assert len(kept) > 24 and not any(
        b"sk-secret" in name.encode() + zlib.decompress(value) for name, value in kept
    )


def test_nothing_is_asked_twice(photos, model):
    _, first = generate(photos, model)
    count = len(model.asked)
    _, again = generate(photos, model)
    assert again == first and len(model.asked) == count


def test_a_killed_run_goes_on_where_it_was(photos, model):
    _, whole = generate(photos, model, out="whole")
    model.asked.clear()
    model.seconds = 0.2
    words = [
        sys.executable,
        "-m",
        "datagen",
        "--images",
        photos / "images",
        "--annotations",
        photos / "instances.json",
        "--writer",
        "openai",
        "--model",
        "stub",
        "--base-url",
        model.url,
        "--per-image",
        8,
        "--concurrency",
        2,
        "--out",
        photos / "out",
    ]
    process = subprocess.Popen(
        list(map(str, words)), cwd=Path(__file__).parents[3], stderr=subprocess.DEVNULL
    )
    while len(model.asked) < 8 and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -9 and not (photos / "out/records.jsonl").exists()
    model.seconds = 0.0
    _, records = generate(photos, model)
    assert records == whole and 24 <= len(model.asked) <= 24 + 2  # what was on its way is asked again


@pytest.mark.parametrize("bad", [[429, 429], [500], ["nothing"], ["half", "rubbish"], ["form"], ["empty"]])
def test_a_server_in_trouble_costs_retries_and_no_row(photos, model, bad):
    model.bad = list(bad)
    _, records = generate(photos, model, "--concurrency", 1)
    assert len(records) == 18 and len(model.asked) == 24 + len(bad)


def test_rubbish_without_end_costs_a_counted_drop(photos, model):
    model.bad = ["rubbish"] * 6  # three for each of the two photos that are worked on at first
    _, records = generate(photos, model, "--concurrency", 1)
    assert len(records) == 6
    assert json.loads((photos / "out/statistics.json").read_text())["drops"]["photo: no usable answer"] == 2
    _, records = generate(photos, model)  # and the same again asks for what is missing
    assert len(records) == 18 and len(model.asked) == 6 + 24


@pytest.mark.parametrize("status, said", [(401, "refuses the key"), (404, "does not know stub")])
def test_what_no_retry_can_mend_is_one_line(photos, model, status, said, capsys):
    model.bad = [status] * 100
    assert generate(photos, model)[0] == 2
    error = capsys.readouterr().err
    assert said in error.splitlines()[-1] and "Traceback" not in error


def test_a_server_that_is_not_there_is_one_line(photos, model, monkeypatch, capsys):
    monkeypatch.setattr("datagen.llm.server.RETRIES", 0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        model.url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    assert generate(photos, model)[0] == 2
    assert f"no server answers at {model.url}" in capsys.readouterr().err.splitlines()[-1]


def test_the_budget_is_kept_and_a_larger_one_goes_on(photos, model, capsys):
    each = (100 * 10 + 50 * 20) / 1e6
    assert generate(photos, model, "--price", 10, 20, "--budget", 4.5 * each, "--concurrency", 1)[0] == 2
    assert "the budget of" in capsys.readouterr().err and len(model.asked) == 5
    assert (
        len(generate(photos, model, "--price", 10, 20, "--budget", 40 * each)[1]) == 18
        and len(model.asked) == 24
    )


def test_requests_are_many_at_a_time_and_never_more_than_allowed(photos, model):
    model.seconds = 0.05
    generate(photos, model, "--concurrency", 4)
    assert 2 <= model.most <= 4


def test_every_slot_is_filled(photos, model):
    """The server answers nobody until all its slots hold a request: only the last few wait in vain."""
    data = json.loads((photos / "instances.json").read_text())
    for k in range(4, 40):
        Image.fromarray(np.full((100, 200, 3), k, np.uint8)).save(photos / f"images/{k}.jpg")
        data["images"].append(data["images"][0] | {"id": k, "file_name": f"{k}.jpg"})
        data["annotations"] += [
            row | {"id": 10 * k + n, "image_id": k} for n, row in enumerate(data["annotations"][:3])
        ]
    (photos / "instances.json").write_text(json.dumps(data))
    model.together = threading.Barrier(4)
    _, records = generate(photos, model, "--concurrency", 4)
    assert len(records) == 6 * 39 and len(model.asked) == 8 * 39 and model.full >= 0.95 * 8 * 39


def test_a_description_is_asked_with_the_picture_or_taken_from_captions(photos, model):
    generate(photos, model, "--describe-with", "eyes", "--no-second-opinion")
    seen = [b for b in model.asked if b["model"] == "eyes" and "Describe" in str(b["messages"])]
    assert len(seen) == 3 and seen[0]["messages"][0]["content"][0]["image_url"]["url"].startswith(
        "data:image/jpeg;base64,"
    )
    assert all(
        "A cat between two cups." in b["messages"][-1]["content"] for b in model.asked if b["model"] == "stub"
    )
    model.asked.clear()
    captions = {
        "images": [{"id": 7, "file_name": "2.jpg"}],
        "annotations": [{"image_id": 7, "caption": "Tea for two."}],
    }
    (photos / "captions.json").write_text(json.dumps(captions))
    generate(photos, model, "--captions", photos / "captions.json", "--no-second-opinion", out="told")
    assert sum("Tea for two." in b["messages"][-1]["content"] for b in model.asked) == 1


def test_what_is_said_to_be_absent_is_looked_for_in_the_picture(photos, model):
    _, records = generate(photos, model, "--describe-with", "eyes", "--no-second-opinion")
    assert sum(r.source["kind"] == "absent" for r in records) == 3
    model.sees = {"dog"}  # nobody has outlined it
    _, records = generate(
        photos, model, "--describe-with", "eyes", "--no-second-opinion", "--seed", 1, out="seen"
    )
    assert not any(r.source["kind"] == "absent" for r in records)
    drops = json.loads((photos / "seen/statistics.json").read_text())["drops"]
    assert drops["absent: can be seen, though it is not outlined"] == 3


def test_lvis_says_what_is_absent_and_what_is_not_outlined_everywhere(photos, model):
    data = json.loads((photos / "instances.json").read_text())
    data["images"][0] |= {"neg_category_ids": [IDS["dog"]], "not_exhaustive_category_ids": [IDS["cup"]]}
    data["images"][1] |= {"neg_category_ids": [IDS["cup"] + 90]}  # of no name here
    data["images"][2] |= {"neg_category_ids": [77]}
    data["categories"] += [{"id": 77, "name": "handle", "supercategory": "PART"}]
    (photos / "instances.json").write_text(json.dumps(data))
    _, records = generate(photos, model)
    kinds = [[r.source["kind"] for r in records if r.image.endswith(f"/{k}.jpg")] for k in (1, 2, 3)]
    # Of the first not all cups are outlined, on the third nobody has looked for dogs.
    assert kinds == [
        ["implicit", "position", "absent", "followup"],
        ["implicit", "named", "position", "absent", "multi", "followup"],
        ["implicit", "named", "position", "multi", "followup"],
    ]
    told = [
        body["messages"][1]["content"]
        for body in model.asked
        if body["response_format"]["json_schema"]["name"] == "questions"
    ]
    assert sum("There are more of these than are listed: cup." in text for text in told) == 1
    assert sum("Looked for and not there: dog." in text for text in told) == 1


@pytest.mark.parametrize("more", [["--concurrency", 0], ["--captions", "nowhere.json"]])
def test_bad_options_are_one_line(photos, model, more, capsys):
    assert generate(photos, model, *more)[0] == 2
    assert re.search(r"^error: ", capsys.readouterr().err, re.M) and not model.asked


def test_no_model_and_no_key(photos, model, monkeypatch, capsys):
    words = [
        "--images",
        str(photos / "images"),
        "--annotations",
        str(photos / "instances.json"),
        "--writer",
        "openai",
        "--out",
        str(photos / "out"),
    ]
    assert main(words) == 2 and "--model" in capsys.readouterr().err
    monkeypatch.delenv("OPENAI_API_KEY")
    assert main([*words, "--model", "x"]) == 2 and "OPENAI_API_KEY" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, kind, targets, why",
    [
        ("What?", "implicit", [("cat", [12])], "too short"),
        ("word " * 61, "named", [("cat", [12])], "too long"),
        (
            "\u0433\u0434\u0435 \u0437\u0434\u0435\u0441\u044c \u043a\u043e\u0442?",
            "named",
            [("cat", [12])],
            "not in English",
        ),
        ("Where is the [SEG] cat?", "named", [("cat", [12])], "holds a token"),
        ("Where is the cat?", "riddle", [("cat", [12])], "of no known kind"),
        ("Where is the cat?", "named", [], "without a target"),
        ("Where is the cat?", "named", [("cup", [12])], "points at things that are not there"),
        ("Where is the dog?", "named", [("dog", [])], "nothing of it is there"),
        ("Is there a spoon?", "absent", [("spoon", [])], "calls absent what nobody"),
        ("Donde esta el gato que duerme?", "named", [("cat", [12])], "not in English"),
        ("Where is the handle?", "part", [("cup", [10])], "not about a part"),
        ("Is there a cat?", "absent", [("cat", [12])], "said to be absent"),
        ("The cups or cup?", "named", [("cup", [10, 11]), ("cup", [10])], "asks for one thing twice"),
        ("The cat and cups?", "named", [("cat", [12]), ("cup", [10, 11])], "of another kind"),
        ("The left of the cups?", "position", [("cup", [10, 11])], "does not choose"),
        ("Who purrs over there?", "implicit", [("cat", [12])], None),
        ("Something for felines and kitties?", "implicit", [("cat", [12])], "names its target"),
    ],
)
def test_checks(photos, text, kind, targets, why):
    photo = read_coco(photos / "instances.json", photos / "images", BANK, Counter())[0]
    found = trouble(text, kind, [Wanted("x", c, tuple(ids)) for c, ids in targets], photo, BANK, looked=False)
    assert found is None if why is None else found.startswith(why)


def test_nearly_the_same_question():
    seen = Seen()
    assert not seen.again("Where is the red cup?") and seen.again("where can I see the red cup")
    assert not seen.again("Where is the blue cup?") and not seen.again("???") and seen.again("???")


@pytest.mark.parametrize(
    "value, good",
    [
        ({"numbers": [1, 2]}, True),
        ({"numbers": [True]}, False),
        ({"numbers": 1}, False),
        ({}, False),
        ({"numbers": [], "more": 1}, False),
        ([], False),
    ],
)
def test_the_form_of_an_answer(value, good):
    from datagen.llm.writer import OPINION

    assert fits(value, OPINION) == good


def test_the_key_is_not_in_the_source():
    assert "sk-secret" not in (Path(__file__).parents[3] / "datagen/llm/server.py").read_text()
