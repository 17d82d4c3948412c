"""`python -m finetune calibrate` on scenes of shapes, and what the file changes."""

import json
import random

import numpy as np
import pytest
from PIL import Image

from assistant import Assistant
from assistant.loading import pipelines
from assistant.mllm.concept_pipeline import ConceptPipeline
from assistant.presets import ModelOptions
from assistant.record import Record, RecordTarget, write_records
from assistant.sam.mask_ops import encode_rle
from finetune import __main__ as command
from finetune.mllm.calibrate import calibration_error, matched
from tests.helpers import scripted_world
from tests.helpers.refusals import refusal
from tests.helpers.scripted_world import ErrorRates, ScriptedConcepts, ScriptedModel, ScriptedSegmenter

RATES = ErrorRates(misses=0.2, false_finds=0.4, wrong_names=0.15, wrong_picks=0.1)


class Worlds:
    """Opens the images of some scenes, and answers about the one that was opened last."""

    def __init__(self, worlds):
        self.worlds = worlds
        self.rng = random.Random(1)
        self.segmenter = ScriptedSegmenter(worlds[0])

    def open(self, image, progress=None):
        world = next(w for w in self.worlds if np.array_equal(w.image, image))
        opened = scripted_world.opened_world(world, self.rng)
        self.pipeline.model = ScriptedModel(world, RATES, self.rng, opened)
        self.pipeline.concepts = ScriptedConcepts(world, RATES, self.rng)
        self.pipeline.pointing.model = self.pipeline.model
        self.segmenter.world = world
        return opened


@pytest.fixture
def assistant():
    """Of the selection "concepts", over 24 scenes."""
    worlds = [scripted_world.make_world(random.Random(f"world {k}")) for k in range(24)]
    opener = Worlds(worlds)
    model = ScriptedModel(worlds[0], RATES, opener.rng, None)
    opener.pipeline = ConceptPipeline(opener, model, ScriptedConcepts(worlds[0], RATES, opener.rng))
    return Assistant(opener.pipeline, {"mllm": "1", "concepts": "2"})


@pytest.fixture
def records(assistant, tmp_path):
    rows = []
    for k, world in enumerate(assistant.pipeline.opener.worlds):
        Image.fromarray(world.image).save(tmp_path / f"{k}.png")
        rle = encode_rle(world.union()) if world.wanted else None
        marker = "[SEG]" if rle else "[ABS]"
        height, width = world.image.shape[:2]
        target = RecordTarget(world.kind, rle)
        rows.append(Record(f"{k}.png", width, height, world.question, f"{world.kind} {marker}.", [target]))
    write_records(tmp_path / "val.jsonl", rows)
    return tmp_path / "val.jsonl"


def test_the_command_writes_what_the_options_read(assistant, records, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ModelOptions, "load", lambda options: (assistant.pipeline, assistant.weights))
    out = tmp_path / "calibration.json"
    words = ["calibrate", "--preset", "agent", "--val", str(records), "--out", str(out)]
    assert command.main(words) == 0
    shown = capsys.readouterr().out
    assert "targets: 24" in shown and "ECE before: 0." in shown and "ECE after: 0." in shown
    row = json.loads(out.read_text())
    assert row["models"] == assistant.weights and row["targets"] == 24
    assert command.main([*words, "--calibration", str(out)]) == 2
    assert "leave out --calibration" in capsys.readouterr().err


def test_where_a_calibration_does_not_belong(tmp_path):
    for changes in ({"mllm": "pocket", "sam": "pocket"}, {"mllm": "openai:x", "sam": "pocket"}):
        line = refusal(lambda changes=changes: pipelines.load_pipeline(**changes, calibration=tmp_path / "c"))
        assert "--calibration goes with --selection concepts" in line


def test_targets_are_matched_by_words_then_by_place():
    cup, bench = RecordTarget("cup", None), RecordTarget("bench", None)
    assert matched(["the benches", "cups"], [cup, bench]) == [bench, cup]
    assert matched(["mug", "bench"], [cup, bench]) == [cup, bench]
    assert matched(["mug"], [cup, bench]) == [None]


def test_the_calibration_error_by_hand():
    assert calibration_error([0.9, 0.9, 0.1, 0.15], [True, False, False, False]) == pytest.approx(
        0.5 * abs(0.9 - 0.5) + 0.5 * 0.125
    )
    assert calibration_error([1.0, 0.0], [True, False]) == 0
