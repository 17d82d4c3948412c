"""Loading tiny random models from folders and asking them; the options that commands share; bad input."""

import argparse
import json
from dataclasses import replace

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from assistant import Assistant
from assistant.cli import add_model_arguments, model_options, open_assistant
from assistant.errors import BadInput
from assistant.grammar import Turn
from assistant.loading.devices import pick_device
from assistant.loading.sams import load_segmenter
from assistant.mllm.coordinates import UNIT, frame_of, scale_of
from assistant.mllm.grounding_prompts import (
    BOXES_PROMPT,
    boxes_schema,
    hybrid_schema,
    marks_schema,
    read_targets,
)
from assistant.mllm.local_model import MultimodalLLM
from assistant.mllm.structured_answer import StructuredAnswer, read_json
from assistant.mllm.structured_output import StructuredLLM
from assistant.presets import PRESETS, load_attention_probe
from assistant.record import Record, RecordTarget, write_records
from assistant.sam.mask_ops import encode_rle
from assistant.weights import fingerprint
from eval.__main__ import main as eval_command
from tests.helpers.marked_image import ScriptedModel
from tests.helpers.refusals import refusal
from tests.helpers.tiny_models import (
    tiny_llava,
    tiny_parrot,
    tiny_qwen2_5_vl,
    tiny_qwen3_vl,
    tiny_sam,
    tiny_smolvlm,
)
from tests.helpers.tiny_sams import tiny_official_sam

MODELS = {
    "qwen3_vl": tiny_qwen3_vl,
    "qwen2_5_vl": tiny_qwen2_5_vl,
    "smolvlm": tiny_smolvlm,
    "llava": tiny_llava,
}
IMAGE = skimage.data.chelsea()  # 300 x 451


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    models = {name: build(tmp_path_factory.mktemp(name)) for name, build in MODELS.items()}
    return models | {"sam": tiny_sam(tmp_path_factory.mktemp("sam"))}


@pytest.fixture(scope="module", params=MODELS)
def local(folders, request):
    return StructuredLLM(MultimodalLLM.load(folders[request.param]))


@pytest.fixture(autouse=True)
def few_clicks(monkeypatch):
    monkeypatch.setattr("assistant.sam.image_opener.POINTS_PER_SIDE", 3)


def checked_targets(answer: StructuredAnswer) -> list[dict]:
    """The targets of an answer, which must have the form asked for and the probabilities of its tokens."""
    value = json.loads(answer.text)
    assert list(value) == ["thought", "targets"] and 1 <= len(value["targets"]) <= 24
    assert b"".join(step.token for step in answer.steps).decode() == answer.text
    for step in answer.steps:
        assert 0 < step.likely[step.token] and 0 < sum(step.likely.values()) < 1.001
    return value["targets"]


def short(schema: dict) -> dict:
    """The schema with room for few words, as random models do not stop by themselves."""
    fields = schema["properties"]
    fields["thought"]["maxLength"], fields["targets"]["maxItems"] = 12, 2
    fields["targets"]["items"]["properties"]["phrase"]["maxLength"] = 8
    return schema


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_local_model_can_only_name_marks_that_exist(local, seed):
    schema = short(marks_schema([2, 3, 11, 12, 40]))
    turns = [Turn("which?", "a", [IMAGE]), Turn("and that?")]
    answer = local.ask(turns, "Look.", schema, temperature=1.2, seed=seed)
    for row in checked_targets(answer):
        assert set(row["marks"]) <= {2, 3, 11, 12, 40} and row["phrase"]
    targets, _ = read_targets(answer, "marks")
    assert all(0 < t.confidence < 1 for t in targets)
    answer = local.ask([Turn("which?", images=[IMAGE])], "Look.", short(marks_schema([])), seed=seed)
    assert '"marks": []' in answer.text


def test_boxes_lie_in_the_image(local):
    frame = frame_of(scale_of(local.name), IMAGE.shape[:2], local.input_size(IMAGE), local.image_fit.padded)
    schema = short(boxes_schema(frame))
    schema["properties"]["targets"]["items"]["properties"]["boxes"]["maxItems"] = 2
    answer = local.ask([Turn("which?", images=[IMAGE])], BOXES_PROMPT, schema, temperature=1.0, seed=1)
    for row in checked_targets(answer):
        for box in row["boxes"]:
            numbers = box["bbox_2d"] + box["point_2d"]
            assert len(box["bbox_2d"]) == 4 and all(0 <= v <= max(frame.extent) for v in numbers)
            assert frame.scale != UNIT or all(round(v, 2) == v for v in box["point_2d"])


def test_an_answer_cut_short_is_read_as_far_as_it_goes(local):
    schema = short(marks_schema([1, 2]))
    answer = local.ask([Turn("which?", images=[IMAGE])], "Look.", schema, max_new_tokens=6)
    assert answer.tokens == 6 and answer.text.startswith('{"th') and not read_json(answer.text)


def test_qwen2_5_sees_multiples_of_28_px(folders):
    model = StructuredLLM(MultimodalLLM.load(folders["qwen2_5_vl"]))
    w, h = model.input_size(IMAGE)
    assert (w % 28, h % 28) == (0, 0) and w * h <= 112 * 112 and w > h
    frame = frame_of(scale_of(model.name), IMAGE.shape[:2], (w, h))
    assert frame.point(w, h) == (451, 300) and frame.point(w / 2, h / 4) == (225.5, 75)


def test_a_model_that_thinks_first(folders, monkeypatch):
    llm = MultimodalLLM.load(folders["qwen3_vl"])
    llm.processor.chat_template += "{% if add_generation_prompt %}<think>\n{% endif %}"
    monkeypatch.setattr("assistant.mllm.structured_output.MAX_THINKING_TOKENS", 12)
    answer = StructuredLLM(llm).ask([Turn("which?", images=[IMAGE])], "Look.", short(marks_schema([1])))
    assert answer.reasoning and checked_targets(answer) and answer.tokens > len(answer.steps)


@pytest.mark.parametrize("selection", ["hybrid", "marks", "boxes"])
def test_from_pretrained_folders(folders, selection, monkeypatch):
    for name in MODELS:
        assistant = Assistant.from_pretrained(
            mllm=folders[name], sam=folders["sam"], selection=selection, device="cpu"
        )
        assert assistant.pipeline.selection == selection
        assert all(len(assistant.weights[k]) == 64 for k in ("mllm", "sam"))
        scene = assistant.open(IMAGE)
        assert len(scene.proposals) and scene.proposals.size == IMAGE.shape[:2]
        monkeypatch.setattr(
            "assistant.mllm.zero_shot.marks_schema", lambda numbers: short(marks_schema(numbers))
        )
        monkeypatch.setattr("assistant.mllm.zero_shot.boxes_schema", lambda frame: short(boxes_schema(frame)))
        monkeypatch.setattr(
            "assistant.mllm.zero_shot.hybrid_schema",
            lambda numbers, frame: short(hybrid_schema(numbers, frame)),
        )
        answer = scene.ask(
            "where is the cat, and is there a dog?", temperature=1.0, seed=2, max_new_tokens=400
        )
        again = scene.ask("and now?", max_new_tokens=400, verify=True)
        for target in answer.targets + again.targets:
            assert target.present == (target.mask is not None) and 0 <= target.confidence <= 1
            assert set(target.proposals) <= set(range(len(scene.proposals)))
        assert answer.targets and answer.tokens > 10 and len(scene.turns) == 2


def test_the_selection_that_a_model_gets(folders):
    for name, selection in (("qwen3_vl", "hybrid"), ("smolvlm", "marks"), ("llava", "boxes")):
        assistant = Assistant.from_pretrained(folders[name], folders["sam"], device="cpu")
        assert assistant.pipeline.selection == selection
    assert {name: p.selection for name, p in PRESETS.items()} == {
        "pocket": "trained",
        "small": "hybrid",
        "base": "hybrid",
        "large": "hybrid",
        "llava": "boxes",
        "agent": "concepts",
        "agent-small": "concepts",
        "grounded": "concepts",
    }


def test_a_known_answer_becomes_a_known_mask(tmp_path, folders):
    answer = (
        '{"thought": "It purrs.", '
        '"targets": [{"phrase": "cat", "marks": [1]}, {"phrase": "dog", "marks": []}]}'
    )
    scene = Assistant.from_pretrained(tiny_parrot(tmp_path, answer), folders["sam"], device="cpu").open(IMAGE)
    # The constraint does not accept the parrot's one token as JSON; test_openai_client asks it on a server.
    scene.assistant.pipeline.model = ScriptedModel([answer])
    cat, dog = scene.ask("what purrs, and is there a dog?").targets
    number_one = scene.opened.cache["sheets"][0][1]
    assert np.array_equal(cat.mask, scene.proposals.mask(number_one)) and not dog.present


# --------------------------------------------------------------------------------------- options and errors


def parsed(*words):
    parser = argparse.ArgumentParser()
    add_model_arguments(parser)
    return parser.parse_args(words)


def refused(*words) -> str:
    return refusal(lambda: open_assistant(model_options(parsed(*words))))


def test_options_open_what_they_name(folders):
    mllm, sam = folders["qwen3_vl"], folders["sam"]
    args = parsed(
        "--mllm", str(mllm), "--sam", str(sam), "--selection", "boxes", "--second-look", "--device", "cpu"
    )
    assistant = open_assistant(model_options(args))
    assert assistant.pipeline.selection == "boxes" and assistant.pipeline.verify
    described = f"pocket, mllm {mllm.name}, sam {sam.name}, selection boxes, verification yes"
    assert model_options(args).describe() == described
    assert model_options(parsed()).describe() == "pocket"


def test_pixels_reach_every_kind_of_model(folders, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setattr("assistant.mllm.openai_client.OpenAIClient.check", lambda self: None)
    sam = str(folders["sam"])
    for mllm in (str(folders["qwen3_vl"]), "openai:gpt-9"):
        options = model_options(parsed("--mllm", mllm, "--sam", sam, "--pixels", "400000", "--device", "cpu"))
        assert open_assistant(options).pipeline.model.image_fit.max_pixels == 400_000
        assert options.describe().endswith("pixels 400000")
    probe, _ = load_attention_probe(replace(options, mllm=str(folders["qwen3_vl"])))
    assert probe.llm.image_fit.max_pixels == 400_000
    assert "too few: give 65536" in refused("--mllm", "openai:gpt-9", "--pixels", "640")
    assert "leave out --pixels" in refused("--pixels", "400000")


def test_max_tokens_reach_every_kind_of_model(folders, monkeypatch):
    llm_limits, server_limits = [], []
    generate = MultimodalLLM.generate

    def generate_two(self, text, turns, max_new_tokens, *values, **named):
        llm_limits.append(max_new_tokens)
        return generate(self, text, turns, 2, *values, **named)

    def complete(self, messages, body):
        server_limits.append(body["max_tokens"])
        raise BadInput("enough")

    monkeypatch.setattr(MultimodalLLM, "generate", generate_two)
    monkeypatch.setattr("assistant.mllm.openai_client.OpenAIClient.check", lambda self: None)
    monkeypatch.setattr("assistant.mllm.openai_client.OpenAIClient._complete", complete)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    for mllm in (str(folders["qwen3_vl"]), "openai:gpt-9"):
        words = ("--mllm", mllm, "--sam", str(folders["sam"]), "--device", "cpu", "--max-tokens", "333")
        options = model_options(parsed(*words))
        assert options.describe().endswith("tokens 333")
        with pytest.raises(BadInput):
            open_assistant(options).open(IMAGE).ask("what is it?")
    assert set(llm_limits) == {333} and server_limits == [333]
    assert "too few for an answer: give 64" in refused("--mllm", "openai:gpt-9", "--max-tokens", "3")
    assert "leave out --max-tokens" in refused("--max-tokens", "400")


def test_what_does_not_go_together_is_one_line(folders, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    mllm, sam = str(folders["qwen3_vl"]), str(folders["sam"])
    assert "choose one of: pocket, small" in refused("--preset", "huge")
    assert "give --mllm" in refused("--sam", sam) and "too small" in refused("--selection", "marks")
    assert "--base-url goes with" in refused(
        "--mllm", mllm, "--sam", sam, "--base-url", "http://127.0.0.1:1/v1"
    )
    assert "needs --adapter" in refused("--mllm", mllm, "--sam", sam, "--selection", "trained")
    assert "no hub" in refused("--preset", "small") or "no model hub reached" in refused("--preset", "small")
    assert "no model folder" in refused("--mllm", str(tmp_path / "none"))
    assert "set OPENAI_API_KEY" in refused("--mllm", "openai:gpt-9")
    assert "used as it is" in refused(
        "--mllm", "openai:x", "--base-url", "http://127.0.0.1:1/v1", "--four-bit"
    )
    assert "no device" in refused("--mllm", mllm, "--sam", sam, "--device", "tpu9")
    if not torch.cuda.is_available():
        assert "no GPU" in refused("--mllm", mllm, "--sam", sam, "--device", "cuda")
        assert pick_device(None) == "cpu"
    assert "no SAM checkpoint" in refused(
        "--mllm", mllm, "--sam", str(tmp_path / "sam.pth"), "--device", "cpu"
    )
    assert "holds a qwen3_vl model, not SAM" in refused("--mllm", mllm, "--sam", mllm, "--device", "cpu")


def test_too_little_memory_says_what_to_change(folders, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    llm = MultimodalLLM.load(folders["qwen3_vl"])
    monkeypatch.setattr(llm.model, "generate", full)
    with pytest.raises(BadInput, match="not enough memory for a conversation of .* tokens: .*--four-bit"):
        StructuredLLM(llm).ask([Turn("which?", images=[IMAGE])], "Look.", marks_schema([1]))
    monkeypatch.setattr("transformers.AutoModelForImageTextToText.from_pretrained", full)
    with pytest.raises(BadInput, match="not enough memory for .*--four-bit, or a smaller --preset"):
        MultimodalLLM.load(folders["qwen3_vl"])


def test_four_bit_weights_select_marks(folders):
    pytest.importorskip("bitsandbytes")
    assistant = Assistant.from_pretrained(folders["qwen3_vl"], folders["sam"], device="cpu", four_bit=True)
    model = assistant.pipeline.model
    assert any(p.dtype == torch.uint8 for p in model.llm.model.parameters())
    answer = model.ask([Turn("which?", images=[IMAGE])], "Look.", short(marks_schema([1, 2])))
    assert checked_targets(answer)


def test_sam_of_every_kind(folders, tmp_path):
    torch.save(tiny_official_sam().state_dict(), tmp_path / "sam.pth")
    for where in (folders["sam"], tmp_path / "sam.pth"):
        segmenter, checksum = load_segmenter(str(where), "cpu")
        masks, _, _ = segmenter.predict(segmenter.encode(IMAGE), points=[[200, 100]])
        assert masks.shape == (3, *IMAGE.shape[:2]) and len(checksum) == 64


def test_a_fingerprint_tells_weights_apart(folders, tmp_path):
    tiny_sam(tmp_path / "same")
    tiny_sam(tmp_path / "other", seed=1)
    assert fingerprint(tmp_path / "same") == fingerprint(folders["sam"]) != fingerprint(tmp_path / "other")


def run_eval(benchmark, folders, root, out, *words):
    """The result.json of a benchmark on tiny models."""
    options = ["--root", str(root), "--sam", str(folders["sam"]), "--device", "cpu", "--out", str(out)]
    assert eval_command([benchmark, *options, *words]) == 0
    return json.loads((out / "result.json").read_text())


def test_eval_records_end_to_end(folders, tmp_path, monkeypatch):
    Image.fromarray(IMAGE).save(tmp_path / "cat.png")
    mask = np.zeros(IMAGE.shape[:2], bool)
    mask[40:260, 100:400] = True
    records = [
        Record("cat.png", 451, 300, "what purrs?", "the cat [SEG].", [RecordTarget("cat", encode_rle(mask))]),
        Record("cat.png", 451, 300, "is there a bus?", "no bus [ABS].", [RecordTarget("bus", None)]),
    ]
    write_records(tmp_path / "records.jsonl", records)
    monkeypatch.setattr("assistant.mllm.zero_shot.marks_schema", lambda numbers: short(marks_schema(numbers)))
    words = ["--mllm", str(folders["qwen3_vl"]), "--selection", "marks"]
    result = run_eval("records", folders, tmp_path / "records.jsonl", tmp_path / "out", *words)
    assert result["n"] == 2 and result["bad"] == [] and set(result["weights"]) == {"mllm", "sam"}
    assert result["preset"].startswith("pocket, mllm qwen3_vl")
    assert 0 <= result["gIoU"] <= 1 and result["tokens_per_query"] > 10


def test_eval_proposals_end_to_end(folders, tmp_path):
    (tmp_path / "images").mkdir()
    Image.fromarray(IMAGE).save(tmp_path / "images/cat.png")
    annotation = {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "bbox": [100, 40, 300, 220],
        "area": 66000,
        "iscrowd": 0,
        "segmentation": [[100, 40, 400, 40, 400, 260, 100, 260]],
    }
    coco = {
        "images": [{"id": 1, "file_name": "cat.png", "width": 451, "height": 300}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [annotation],
    }
    (tmp_path / "instances.json").write_text(json.dumps(coco))
    result = run_eval(
        "proposals", folders, tmp_path, tmp_path / "proposals", "--setting", "points_per_side=3"
    )
    assert list(result["weights"]) == ["sam"]
