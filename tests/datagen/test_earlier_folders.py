"""Folders of earlier versions still open, and what a model has answered for them is never asked again."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from datagen import versions
from datagen.__main__ import main
from datagen.engines import worker
from datagen.engines.worker import Worker
from tests.helpers.cached_results import delete_image_results

PROJECT = Path(__file__).parents[2]
EARLIER = PROJECT / "tests/data/datagen-48e4087"
MODIFIED = 1_700_000_000  # time of its images, seconds
PHRASES_STATE = "b099f14c48871fdffb639aec5343fd5d320ca057217d6e8fbabb5d43ea277731"  # of the phrase banks then

INPUTS = ["--images", "images", "--annotations", "instances.json"]
PHRASE_BANK = [*INPUTS, "--per-image", "4", "--out", "phrasebank"]
# Nothing listens at the address: a request would end the run.
LLM_WRITER = [*INPUTS, "--writer", "openai", "--model", "writer", "--base-url", "http://127.0.0.1:9/v1"]
LLM_WRITER += ["--per-image", "8", "--out", "openai"]


@pytest.fixture
def earlier(tmp_path, monkeypatch):
    """A copy of the folders, as the current one: the commands name the images by relative paths."""
    folder = tmp_path / "earlier"
    shutil.copytree(EARLIER, folder)
    for file in (folder / "images").iterdir():
        os.utime(file, (MODIFIED, MODIFIED))
    monkeypatch.chdir(folder)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("datagen.llm.server.MAX_RETRIES", 0)
    return folder


@pytest.fixture
def same_phrases(monkeypatch):
    """The phrase banks count as unchanged, whatever has been added to them since."""
    monkeypatch.setattr(worker, "phrases_state", lambda bank: PHRASES_STATE)


def forbid_making(monkeypatch):
    """From now on, every image's result has to come from the cache."""

    async def make(self, image):
        raise AssertionError(f"{image.file} is made again")

    monkeypatch.setattr(Worker, "make", make)


@pytest.mark.parametrize(
    "folder, arguments",
    [
        ("phrasebank", PHRASE_BANK),
        ("openai", [*LLM_WRITER, "--captions", "captions.json"]),
        ("openai", [*LLM_WRITER, "--describe-with", "describer"]),
    ],
)
def test_every_result_is_used_again(earlier, same_phrases, monkeypatch, folder, arguments):
    if folder == "openai":
        pytest.importorskip("openai", reason="the openai client is not installed")
    forbid_making(monkeypatch)
    records = (earlier / folder / "records.jsonl").read_bytes()
    statistics = json.loads((earlier / folder / "statistics.json").read_text())
    assert main(arguments) == 0
    assert (earlier / folder / "records.jsonl").read_bytes() == records
    assert json.loads((earlier / folder / "statistics.json").read_text()) == statistics


def test_every_answer_is_used_again(earlier, monkeypatch):
    """Also where an image's result is not: after a new version of a step, and with other phrase banks."""
    pytest.importorskip("openai", reason="the openai client is not installed")
    records = (earlier / "openai/records.jsonl").read_bytes()
    monkeypatch.setattr(worker, "LLM_WRITER_VERSION", "another")
    assert main([*LLM_WRITER, "--captions", "captions.json"]) == 0
    assert (earlier / "openai/records.jsonl").read_bytes() == records
    delete_image_results(earlier / "openai")
    assert main([*LLM_WRITER, "--captions", "captions.json"]) == 0
    assert (earlier / "openai/records.jsonl").read_bytes() == records


def test_other_options_add_results_and_delete_none(earlier, same_phrases, monkeypatch):
    assert main([*PHRASE_BANK, "--seed", "1"]) == 0
    forbid_making(monkeypatch)
    assert main(PHRASE_BANK) == 0
    records = (EARLIER / "phrasebank/records.jsonl").read_bytes()
    assert (earlier / "phrasebank/records.jsonl").read_bytes() == records


def test_comments_and_names_make_no_result_stale(earlier, tmp_path):
    """With a comment more in every source file, all results and the index are found."""
    assert main(PHRASE_BANK) == 0
    changed = tmp_path / "changed"
    shutil.copytree(PROJECT / "datagen", changed / "datagen", ignore=shutil.ignore_patterns("__pycache__"))
    for file in (changed / "datagen").rglob("*.py"):
        file.write_text(file.read_text() + "\n# One comment more.\n")
    code = """
import sys
from datagen import engines, generate
from datagen.engines.worker import Worker
from datagen.sources import index

async def make(self, image):
    raise AssertionError("made again")

Worker.make = make
index._fill = None
from datagen.__main__ import main
assert "changed" in generate.__file__
sys.exit(main())
"""
    path = os.pathsep.join([str(changed), str(PROJECT)])
    subprocess.run(
        [sys.executable, "-c", code, *PHRASE_BANK],
        cwd=earlier,
        env=os.environ | {"PYTHONPATH": path},
        check=True,
        capture_output=True,
    )


def test_versions_of_the_steps_are_those_that_folders_hold():
    """A new version makes every user's folder do the step again: it comes with a change of its output."""
    assert versions.ANNOTATION_READER_VERSION == "2"
    assert versions.OUTLINER_VERSION == "ea8c5836baecc884"
    assert versions.COMPOSER_VERSION == "4fbf4385083d96ff"
    assert versions.LLM_WRITER_VERSION == "1f0c7b31b5f7cba1"


def test_prompts_are_those_that_answers_are_cached_under():
    """Another prompt asks every user's model again: it comes with better questions, not with better style."""
    from datagen.llm.naming import NAMES, NAMING_PROMPT
    from datagen.llm.prompts import DESCRIPTION, PROMPT_VERSION
    from datagen.result_cache import fingerprint

    assert PROMPT_VERSION == "954b5acc934b"
    assert fingerprint(DESCRIPTION, NAMES, NAMING_PROMPT)[:12] == "b5c3982331e5"
