"""The Ray engine gives the rows of the plain one; the rounds of the vLLM engine, with a scripted model in vLLM's place."""

import contextlib
import json
import os
import sqlite3
import zlib

import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'maskpick[scale]'")
pytest.importorskip("ray.data", reason="Ray Data is not installed: pip install 'maskpick[scale]'")
pytest.importorskip("openai", reason="the openai client is not installed")

from assistant.errors import BadInput
from datagen.__main__ import main, parser
from datagen.engines import vllm as engine_vllm
from datagen.engines.ray import on_cluster
from datagen.llm.writer import OPINION
from tests.datagen.engines.test_stream import contents, photos, words  # noqa: F401
from tests.datagen.llm import test_openai as written
from tests.datagen.llm.test_openai import model  # noqa: F401


@pytest.fixture(scope="module")
def cluster():
    """One local Ray for all tests; started and ended as the command does. Nothing of it is left running."""
    os.environ.setdefault("RAY_worker_niceness", "0")  # else its workers wait for whatever else is running
    options = parser().parse_args(["--images", ".", "--out", "."])
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(on_cluster(options))
        except BadInput as error:
            pytest.skip(str(error))
        yield
    assert not ray.is_initialized()


def test_two_workers_give_the_same_rows(photos, cluster):
    assert main(words(photos, "plain")) == 0
    assert main(words(photos, "ray", "--engine", "ray", "--workers", 2)) == 0
    assert contents(photos / "ray") == contents(photos / "plain")
    # What is kept is not made again, by whichever engine.
    assert main(words(photos, "ray")) == 0 and contents(photos / "ray") == contents(photos / "plain")


def scripted(asked):
    """In the place of vLLM: a processor that answers as the stand-in server of the other tests does, but for one bad answer."""
    wrote, meant = written.WRITTEN, written.MEANT

    def build(options, gpus, attempt):
        def answered(row):
            title, last = json.loads(row["schema"])["title"], json.loads(row["messages"])[-1]["content"]
            found = {"questions": wrote}
            if title == "opinion":
                found = {"numbers": next(v for k, v in meant.items() if k in last.split("The question: ")[1])}
            text = (
                "{" if attempt == 1 and "purring" in last else json.dumps(found)
            )  # not of the form asked for
            return {"name": row["name"], "schema": row["schema"], "text": text, "read": 7, "written": 3}

        asked.append(attempt)
        return lambda rows: rows.map(answered)

    return build


def vllm_words(folder, out, *more):
    return [
        "--images",
        str(folder / "images"),
        "--annotations",
        str(folder / "instances.json"),
        "--writer",
        "vllm",
        "--model",
        "stub",
        "--per-image",
        "8",
        "--engine",
        "ray",
        "--out",
        str(folder / out),
        *more,
    ]


def test_rounds_of_requests_give_the_rows_of_the_server(three, model, cluster, monkeypatch, capsys):
    assert written.generate(three, model)[0] == 0
    asked = []
    monkeypatch.setattr(engine_vllm, "vllm_processor", scripted(asked))
    assert main(vllm_words(three, "vllm")) == 0
    assert asked == [0, 1, 2]  # the questions, second opinions, the one that was answered badly
    assert "bad_answers=3" in capsys.readouterr().err
    ours, theirs = (
        list(map(json.loads, (three / out / "records.jsonl").read_text().splitlines()))
        for out in ("vllm", "out")
    )
    for row in ours + theirs:
        row["source"].pop("writer")
    assert ours == theirs and len(ours) == 18
    assert not (three / "vllm/requests").exists()
    # Answers are kept as they come: with the photos' results lost, nothing is asked again.
    before = contents(three / "vllm")
    store = sqlite3.connect(three / "vllm/kept.sqlite")
    for name, value in store.execute("select name, value from kept").fetchall():
        if "rows" in json.loads(zlib.decompress(value)):
            store.execute("delete from kept where name = ?", (name,))
    store.commit()
    assert main(vllm_words(three, "vllm")) == 0 and asked == [0, 1, 2] and contents(three / "vllm") == before


ROW = {
    "name": "n",
    "schema": json.dumps(OPINION),
    "messages": json.dumps([{"role": "user", "content": "?"}]),
    "seed": 2**32,
}


def given_to_vllm(processor) -> dict:
    """What the processor makes of a request before vLLM sees it."""
    return processor.preprocess(ROW)["__data"]


def test_rays_own_processor_takes_our_configuration(tmp_path, cluster):
    many, one = (
        engine_vllm.vllm_processor(parser().parse_args(vllm_words(tmp_path, "out", *more)), gpus, 1)
        for gpus, more in ((16, ("--vllm", '{"tensor_parallel_size": 2}')), (0, ()))
    )
    assert list(many.stages) == list(one.stages) == ["ChatTemplateStage", "vLLMEngineStage"]
    engines = [processor.stages["vLLMEngineStage"] for processor in (many, one)]
    assert [e.fn_constructor_kwargs["engine_kwargs"]["distributed_executor_backend"] for e in engines] == [
        "ray",
        "uni",
    ]
    assert engines[1].map_batches_kwargs["num_cpus"] == 1 and not engines[1].map_batches_kwargs.get(
        "num_gpus"
    )
    assert all(e.map_batches_kwargs["max_restarts"] == engine_vllm.RESTARTS for e in engines)
    given = given_to_vllm(one)
    assert given["messages"] == [{"role": "user", "content": "?"}] and given["name"] == "n"
    assert (
        given["sampling_params"]["seed"] == 1
        and json.loads(given["sampling_params"]["structured_outputs"]["json"]) == OPINION
    )


def test_vllm_takes_our_sampling_parameters(tmp_path, cluster):
    vllm = pytest.importorskip("vllm", reason="vLLM is not installed")
    given = given_to_vllm(engine_vllm.vllm_processor(parser().parse_args(vllm_words(tmp_path, "out")), 0))
    form = vllm.sampling_params.StructuredOutputsParams(**given["sampling_params"].pop("structured_outputs"))
    assert vllm.SamplingParams(
        **given["sampling_params"], structured_outputs=form
    ).structured_outputs.json == json.dumps(OPINION)


def test_what_vllm_cannot_do_is_one_line(photos, capsys):
    assert main(words(photos, "out", "--writer", "vllm", "--model", "x")) == 2
    assert (
        main(words(photos, "out", "--writer", "vllm", "--model", "x", "--engine", "ray", "--vllm", "[2]"))
        == 2
    )
    assert "JSON object" in capsys.readouterr().err
    assert (
        main(
            words(
                photos, "out", "--writer", "vllm", "--model", "x", "--engine", "ray", "--describe-with", "y"
            )
        )
        == 2
    )
    assert "sends no pictures" in capsys.readouterr().err
