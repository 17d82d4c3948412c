"""Questions by a language model: what passes every check, and what else the models are asked."""

import json
import sqlite3
import zlib

import pytest

pytest.importorskip("openai", reason="the openai client is not installed")

from assistant.grammar import Turn, parse
from assistant.record import check_records
from tests.helpers.datagen_images import CATEGORY_IDS
from tests.helpers.datagen_server import KEY
from tests.helpers.written_questions import generate, statistics_of


def test_what_passes_every_check_becomes_records(three_images, model_server, capsys):
    code, records = generate(three_images, model_server)
    assert code == 0 and len(records) == 18 and check_records(three_images / "out/records.jsonl") == []
    first = [record for record in records if record.image.endswith("/1.jpg")]
    kinds = [record.source["kind"] for record in first]
    assert kinds == ["implicit", "named", "position", "absent", "multi", "followup"]
    implicit, _, position, absent, multi, followup = first
    assert implicit.question == "Who is purring over there?"
    assert implicit.source["annotation_ids"] == [[12]]
    assert [target.rle is None for target in absent.targets] == [True]
    assert multi.source["annotation_ids"] == [[12], [10, 11]]
    assert position.targets[0].phrase == "cup on the left"
    assert position.source["annotation_ids"] == [[10]]
    assert implicit.source["writer"] == "openai" and implicit.source["model"] == "stub"
    assert implicit.source["prompt"]
    assert statistics_of(three_images)["drops"] == {
        "implicit: names its target (cat)": 3,
        "implicit: leaves out some of what it asks for": 3,
        "named: nearly asked before": 3,
        "absent: calls something absent that is present": 3,
        "position: a second opinion disagrees": 3,
        "named: refers to instances that do not exist": 3,
        "followup: has no earlier turn to follow": 3,
        "part: is not about a part": 3,
    }
    answer = followup.source["history"][0]["answer"]
    assert followup.history == [Turn("What could I drink out of?", answer)]
    assert parse(answer)[0].phrase == "cups" and followup.source["annotation_ids"] == [[10]]
    assert "requests=24" in capsys.readouterr().err


def test_the_key_is_written_nowhere(three_images, model_server):
    generate(three_images, model_server)
    generate(three_images, model_server, "--val", 0.5, "--parquet", "--seed", 1)
    for file in (three_images / "out").rglob("*"):
        assert file.is_dir() or KEY.encode() not in file.read_bytes(), file
    store = sqlite3.connect(three_images / "out/kept.sqlite")
    cached = store.execute("select name, value from kept").fetchall()
    assert len(cached) > 24
    assert not any(KEY.encode() in name.encode() + zlib.decompress(value) for name, value in cached)


def test_a_description_is_asked_with_the_image_or_taken_from_captions(three_images, model_server):
    generate(three_images, model_server, "--describe-with", "describer", "--no-second-opinion")
    descriptions = [
        body
        for body in model_server.bodies
        if body["model"] == "describer" and "Describe" in str(body["messages"])
    ]
    assert len(descriptions) == 3
    image = descriptions[0]["messages"][0]["content"][0]["image_url"]["url"]
    assert image.startswith("data:image/jpeg;base64,")
    writing = [body["messages"][-1]["content"] for body in model_server.bodies if body["model"] == "stub"]
    assert all("A cat between two cups." in text for text in writing)
    model_server.bodies.clear()
    captions = {
        "images": [{"id": 7, "file_name": "2.jpg"}],
        "annotations": [{"image_id": 7, "caption": "Tea for two."}],
    }
    (three_images / "captions.json").write_text(json.dumps(captions))
    generate(
        three_images,
        model_server,
        "--captions",
        three_images / "captions.json",
        "--no-second-opinion",
        out="captioned",
    )
    texts = [body["messages"][-1]["content"] for body in model_server.bodies]
    assert sum("Tea for two." in text for text in texts) == 1


def test_what_is_said_to_be_absent_is_verified_in_the_image(three_images, model_server):
    options = ("--describe-with", "describer", "--no-second-opinion")
    _, records = generate(three_images, model_server, *options)
    assert sum(record.source["kind"] == "absent" for record in records) == 3
    model_server.visible = {"dog"}  # nobody has outlined it
    _, records = generate(three_images, model_server, *options, "--seed", 1, out="visible")
    assert not any(record.source["kind"] == "absent" for record in records)
    drops = statistics_of(three_images, "visible")["drops"]
    assert drops["absent: can be seen, though it is not outlined"] == 3


def test_lvis_says_what_is_absent_and_what_is_not_outlined_throughout(three_images, model_server):
    data = json.loads((three_images / "instances.json").read_text())
    cup, dog = CATEGORY_IDS["cup"], CATEGORY_IDS["dog"]
    data["images"][0] |= {"neg_category_ids": [dog], "not_exhaustive_category_ids": [cup]}
    data["images"][1] |= {"neg_category_ids": [cup + 90]}  # of no name here
    data["images"][2] |= {"neg_category_ids": [77]}
    data["categories"] += [{"id": 77, "name": "handle", "supercategory": "PART"}]
    (three_images / "instances.json").write_text(json.dumps(data))
    _, records = generate(three_images, model_server)
    kinds = [
        [record.source["kind"] for record in records if record.image.endswith(f"/{k}.jpg")] for k in (1, 2, 3)
    ]
    # Of the first not all cups are outlined, on the third nobody has looked for dogs.
    assert kinds == [
        ["implicit", "position", "absent", "followup"],
        ["implicit", "named", "position", "absent", "multi", "followup"],
        ["implicit", "named", "position", "multi", "followup"],
    ]
    contexts = [
        body["messages"][1]["content"]
        for body in model_server.bodies
        if body["response_format"]["json_schema"]["name"] == "questions"
    ]
    assert sum("There are more of these than are listed: cup." in text for text in contexts) == 1
    assert sum("Looked for and not there: dog." in text for text in contexts) == 1
