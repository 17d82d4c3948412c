"""The rounds of the vLLM engine, with a scripted model in vLLM's place, and what Ray's processor is told."""

import json

import pytest

pytest.importorskip("ray.data", reason="Ray Data is not installed: pip install 'maskpick[scale]'")
pytest.importorskip("openai", reason="the openai client is not installed")

from datagen.__main__ import main
from datagen.engines import vllm as vllm_engine
from datagen.llm.prompts import OPINION
from datagen.settings import Settings
from tests.helpers.cached_results import delete_image_results
from tests.helpers.datagen_images import command, generated_files
from tests.helpers.datagen_server import scripted_answer
from tests.helpers.written_questions import generate

ON_VLLM = ("--writer", "vllm", "--model", "stub", "--engine", "ray")


def scripted_processor(attempts):
    """In the place of `vllm_processor`: answers as the scripted server does, but for one bad answer."""

    def build(settings, gpu_count, attempt):
        def answered(row):
            title = json.loads(row["schema"])["title"]
            last = json.loads(row["messages"])[-1]["content"]
            text = json.dumps(scripted_answer(title, last))
            if attempt == 1 and "purring" in last:
                text = "{"  # not of the form asked for
            return {"name": row["name"], "schema": row["schema"], "text": text, "read": 7, "written": 3}

        attempts.append(attempt)
        return lambda rows: rows.map(answered)

    return build


def rows_of(folder):
    rows = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    for row in rows:
        del row["source"]["writer"]
    return rows


def test_rounds_of_requests_give_the_rows_of_the_server(
    three_images, model_server, cluster, monkeypatch, capsys
):
    assert generate(three_images, model_server)[0] == 0
    attempts = []
    monkeypatch.setattr(vllm_engine, "vllm_processor", scripted_processor(attempts))
    arguments = command(three_images, "vllm", *ON_VLLM, "--per-image", 8)
    out = three_images / "vllm"
    assert main(arguments) == 0
    assert attempts == [0, 1, 2]  # the questions, second opinions, the one that was answered badly
    assert "bad_answers=3" in capsys.readouterr().err
    assert rows_of(out) == rows_of(three_images / "out") and len(rows_of(out)) == 18
    assert not (out / "requests").exists()
    # Answers are cached as they come: with the images' results lost, nothing is asked again.
    before = generated_files(out)
    delete_image_results(out)
    assert main(arguments) == 0 and attempts == [0, 1, 2] and generated_files(out) == before


ROW = {
    "name": "n",
    "schema": json.dumps(OPINION),
    "messages": json.dumps([{"role": "user", "content": "?"}]),
    "seed": 2**32,
}


def settings(folder, **more):
    return Settings(
        images=folder, out=folder, annotations=folder, writer="vllm", model="stub", engine="ray", **more
    )


def sent_to_vllm(processor):
    """What the processor makes of a request before vLLM sees it."""
    return processor.preprocess(ROW)["__data"]


def test_rays_own_processor_takes_our_configuration(tmp_path, cluster):
    on_gpus = vllm_engine.vllm_processor(settings(tmp_path, vllm={"tensor_parallel_size": 2}), 16, 1)
    on_cpus = vllm_engine.vllm_processor(settings(tmp_path), 0, 1)
    assert list(on_gpus.stages) == list(on_cpus.stages) == ["ChatTemplateStage", "vLLMEngineStage"]
    engines = [processor.stages["vLLMEngineStage"] for processor in (on_gpus, on_cpus)]
    backends = [
        engine.fn_constructor_kwargs["engine_kwargs"]["distributed_executor_backend"] for engine in engines
    ]
    assert backends == ["ray", "uni"]
    assert engines[1].map_batches_kwargs["num_cpus"] == 1
    assert not engines[1].map_batches_kwargs.get("num_gpus")
    for engine in engines:
        assert engine.map_batches_kwargs["max_restarts"] == vllm_engine.MAX_RESTARTS
    sent = sent_to_vllm(on_cpus)
    assert sent["messages"] == [{"role": "user", "content": "?"}] and sent["name"] == "n"
    assert sent["sampling_params"]["seed"] == 1
    assert json.loads(sent["sampling_params"]["structured_outputs"]["json"]) == OPINION


def test_vllm_takes_our_sampling_parameters(tmp_path, cluster):
    vllm = pytest.importorskip("vllm", reason="vLLM is not installed")
    parameters = sent_to_vllm(vllm_engine.vllm_processor(settings(tmp_path), 0))["sampling_params"]
    form = vllm.sampling_params.StructuredOutputsParams(**parameters.pop("structured_outputs"))
    sampling = vllm.SamplingParams(**parameters, structured_outputs=form)
    assert sampling.structured_outputs.json == json.dumps(OPINION)


def test_what_vllm_cannot_do_is_one_line(many_images, capsys):
    assert main(command(many_images, "out", "--writer", "vllm", "--model", "x")) == 2
    assert main(command(many_images, "out", *ON_VLLM, "--vllm", "[2]")) == 2
    assert "JSON object" in capsys.readouterr().err
    assert main(command(many_images, "out", *ON_VLLM, "--describe-with", "y")) == 2
    assert "sends no images" in capsys.readouterr().err
