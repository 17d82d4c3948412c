"""Tuning the published weights of the pocket preset, with its SAM and its LLM, on two small photos."""

import json

import numpy as np
import pytest
from PIL import Image
from skimage import data

from assistant.record import Record, RecordTarget, write_records
from assistant.sam.mask_ops import decode_rle, encode_rle
from assistant.weights import POCKET, pocket_file
from finetune import __main__ as command
from finetune.image_record import read_image_records
from finetune.pocket import tune
from finetune.pocket.language import load_trainable_llm
from tests.helpers.pocket_wheels import require_pocket_wheels

SIDE = 256  # px, of the longest side


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder with train.jsonl and val.jsonl about two photos, with names that the preset knows."""
    require_pocket_wheels()
    cat = write_photo(tmp_path / "cat.png", data.chelsea())
    cup = write_photo(tmp_path / "cup.png", data.coffee())
    cat_mask, cup_mask = np.zeros(cat, bool), np.zeros(cup, bool)
    cat_mask[10:160, 60:250] = True
    cup_mask[20:110, 80:170] = True
    questions = [
        question("cat.png", "where is the cat?", "cat", cat_mask),
        question("cat.png", "is there a cup?", "cup", np.zeros_like(cat_mask)),
        question("cup.png", "where is the cup?", "cup", cup_mask),
        question("cup.png", "is there a cat?", "cat", np.zeros_like(cup_mask)),
    ]
    write_records(tmp_path / "train.jsonl", questions[:2])
    write_records(tmp_path / "val.jsonl", questions[2:])
    monkeypatch.setattr(tune, "HELD_OUT_EXAMPLES", 2)
    monkeypatch.setattr(tune, "MIN_SELECTOR_STEPS", 2)
    return tmp_path


def write_photo(file, pixels) -> tuple[int, int]:
    """Write a small copy of a photo; returns its (height, width)."""
    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE))
    image.save(file)
    return image.height, image.width


def question(image: str, text: str, phrase: str, mask: np.ndarray) -> Record:
    height, width = mask.shape
    rle = encode_rle(mask) if mask.any() else None
    answer = f"I see the {phrase} [SEG]." if rle else f"I see no {phrase} [ABS]."
    source = {"kind": "named" if rle else "absent", "categories": [phrase]}
    return Record(image, width, height, text, answer, [RecordTarget(phrase, rle)], source)


def run(folder, *words) -> list[dict]:
    """Tune for two steps; returns the validations."""
    out = folder / "out"
    options = {"preset": "pocket", "data": folder / "train.jsonl", "out": out, "max-steps": 2, "batch": 1}
    line = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    assert command.main([*line, *map(str, words)]) == 0
    return [json.loads(row) for row in (out / "val.jsonl").read_text().splitlines()]


def test_a_known_name_is_answered_in_training(photos):
    """Selecting the masks of a known name needs SAM's embedding, which stored regions do not have."""
    start = tune.load_start(None)
    llm = load_trainable_llm(rank=0, adapter=POCKET / "lora")
    llm.encoder, llm.phrase_rows = start.encoder, start.phrase_rows
    llm.model.eval()
    questions = read_image_records(photos / "train.jsonl")[:1]
    answered = tune.AnsweredQuestions(photos / "out", llm, pocket_file("sam.safetensors"), questions)
    answered.add(0, start.selector, {})
    (row,) = answered.report.rows()
    ((reply, masks),) = row["answers"]
    assert reply == "I see the cat [SEG]." and decode_rle(masks[0])[85, 125]
    assert all(opened.semantic_map is not None for opened in answered.opened.values())


@pytest.mark.slow
def test_known_names_are_asked_at_each_validation(photos):
    rows = run(photos, "--val", photos / "val.jsonl", "--rehearsal", 0)
    assert [row["step"] for row in rows] == [0, 2]
    answers = [reply for row in rows for reply, _ in row["answers"]]
    assert len(answers) == 4 and "the cup" in answers[0]
    assert rows[0]["answers"][0][1][0]["size"] == list(np.asarray(Image.open(photos / "cup.png")).shape[:2])
    report = (photos / "out/report.html").read_text()
    assert report.count("where is the cup?") == report.count("is there a cat?") == 1


@pytest.mark.slow
def test_rehearsed_questions_are_not_shown(photos):
    """Without --val the report asks about held-out images; those of rehearsed questions have no files."""
    rows = run(photos, "--rehearsal", 0.5)
    assert rows and all(row["answers"] == [] for row in rows)
    assert "where is" not in (photos / "out/report.html").read_text()
