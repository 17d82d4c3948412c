"""Every public entry of every pipeline runs once on the pretended GPU, and answers as on the CPU.

What is refused here would be refused by every GPU: a prompt, a feature or a row that did not follow the
device of what it meets.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from assistant.attention.maps import attend
from assistant.few_shot.features import PocketFeatureExtractor
from assistant.few_shot.matcher import Matcher
from assistant.few_shot.prompt_encoder import PromptEncoder
from assistant.grammar import Turn
from assistant.loading.sams import load_segmenter
from assistant.mllm.grounding_prompts import marks_schema
from assistant.mllm.local_model import MultimodalLLM
from assistant.mllm.probe_loading import load_probe
from assistant.mllm.structured_output import StructuredLLM
from assistant.mllm.trained import load_trained_pipeline
from assistant.mllm.zero_shot import ZeroShotPipeline
from assistant.pocket.sam import build_pocket_sam
from assistant.sam import concepts, image_opener
from assistant.sam.backends import PocketSegmenter
from assistant.sam.image_opener import SamImageOpener
from assistant.sam.proposals import everything
from assistant.sam.segmenter import Segmenter
from assistant.scene import Assistant
from finetune import __main__ as finetune
from finetune.mllm import train
from tests.helpers import rectangles
from tests.helpers.few_shot import RED, image_with_box, tiny_matcher, write_boxes
from tests.helpers.marked_image import ScriptedModel
from tests.helpers.pocket_wheels import require_pocket_wheels
from tests.helpers.pretended_gpu import GPU, PretendedGpu
from tests.helpers.tiny_concepts import tiny_grounding_dino, tiny_owlv2, tiny_sam3
from tests.helpers.tiny_matchers import tiny_blip, tiny_clip
from tests.helpers.tiny_models import tiny_llava, tiny_qwen3_vl, tiny_sam, tiny_smolvlm
from tests.helpers.tiny_sams import tiny_edgetam, tiny_official_sam, tiny_sam2, tiny_sam_hq
from tests.helpers.tuning_runs import command_line, tensors

IMAGE, MASK = image_with_box(48, 64, (8, 8, 40, 30), RED)
SAMS = ("official", "transformers", "hq", "sam2", "sam3", "edgetam", "pocket")
RESTORABLE_SAMS = ("official", "transformers", "pocket")  # whose decoder reads the stored features alone
# What a model answers without training, by the selection.
ANSWERS = {
    "marks": '{"thought": "Red.", "targets": [{"phrase": "box", "marks": [1]}]}',
    "hybrid": '{"thought": "Red.", "targets": [{"phrase": "box", "marks": [1], "boxes": [{"bbox_2d": '
    '[99, 99, 600, 600], "point_2d": [300, 300]}]}]}',
    "boxes": '{"thought": "Red.", "targets": [{"phrase": "box", "boxes": [{"bbox_2d": [99, 99, 600, 600], '
    '"point_2d": [300, 300]}]}]}',
}


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """{name: folder or file} of the models."""
    root = tmp_path_factory.mktemp("parts")
    torch.save(tiny_official_sam().state_dict(), root / "sam.pth")
    tiny_sam2().save_pretrained(root / "sam2")
    tiny_edgetam().save_pretrained(root / "edgetam")
    tiny_sam_hq().save_pretrained(root / "hq")
    builders = {
        "transformers": tiny_sam,
        "qwen": tiny_qwen3_vl,
        "llava": tiny_llava,
        "smolvlm": tiny_smolvlm,
        "blip": tiny_blip,
        "clip": tiny_clip,
        "sam3": tiny_sam3,
        "grounding_dino": tiny_grounding_dino,
        "owlv2": tiny_owlv2,
    }
    built = {name: build(root / name) for name, build in builders.items()}
    return built | {name: root / name for name in ("sam2", "edgetam", "hq")} | {"official": root / "sam.pth"}


@pytest.fixture(autouse=True)
def gpu(parts: dict[str, Path]):
    with PretendedGpu():
        yield


def segmenter_on(device: str, parts: dict[str, Path], kind: str) -> Segmenter:
    """A tiny SAM of one make."""
    if kind == "pocket":
        torch.manual_seed(0)
        return PocketSegmenter(build_pocket_sam(), device)
    return load_segmenter(parts[kind], device)[0]


@pytest.mark.parametrize("kind", SAMS)
def test_prompts(parts, kind):
    on_cpu, on_gpu = (segmenter_on(device, parts, kind) for device in ("cpu", "cuda"))
    embedding, on_gpu_embedding = on_cpu.encode(IMAGE), on_gpu.encode(IMAGE)
    assert on_gpu_embedding.features.device == GPU
    prompts: list[dict[str, Any]] = [
        {"points": [[20, 20]]},
        {"box": [8, 8, 40, 30], "multimask": False},
        {"mask": MASK},
        {"points": [[20, 20], [60, 40]], "labels": [1, 0], "box": [8, 8, 40, 30], "mask": MASK},
    ]
    for prompt in prompts:
        expected, answer = on_cpu.predict(embedding, **prompt), on_gpu.predict(on_gpu_embedding, **prompt)
        assert all(np.allclose(a, b, atol=1e-3) for a, b in zip(answer[1:], expected[1:], strict=True))


@pytest.mark.parametrize("kind", SAMS)
def test_everything_mode(parts, kind):
    settings = {"points_per_side": 3, "pred_iou_thresh": -9, "stability_score_thresh": 0}
    found = []
    for device in ("cpu", "cuda"):
        segmenter = segmenter_on(device, parts, kind)
        embedding = segmenter.encode(IMAGE)
        for more in ({"fast": True}, {"granularity": 0.2, "min_mask_region_area": 9}):
            found.append(everything(segmenter, embedding, **settings, **more).rles)
    assert found[:2] == found[2:]
    assert found[0] or kind not in ("official", "transformers")  # others, untrained, find nothing


@pytest.mark.parametrize("kind", RESTORABLE_SAMS)
def test_features_that_were_stored_on_disk(parts, kind, tmp_path):
    segmenter = segmenter_on("cuda", parts, kind)
    embedding = segmenter.encode(IMAGE)
    torch.save(embedding.features.cpu(), tmp_path / "features.pt")
    restored = segmenter.restore(torch.load(tmp_path / "features.pt"), embedding.size)
    expected, answer = (segmenter.predict(e, points=[[20, 20]]) for e in (embedding, restored))
    assert all(np.allclose(a, b, atol=1e-3) for a, b in zip(answer, expected, strict=True))


@pytest.mark.parametrize("kind", SAMS)
@pytest.mark.parametrize("label", [None, "mug"])
def test_segment_like(parts, kind, label):
    scores = []
    for device in ("cpu", "cuda"):
        segmenter = segmenter_on(device, parts, kind)
        torch.manual_seed(1)
        assistant = Assistant(ZeroShotPipeline(SamImageOpener(segmenter, points_per_side=1), None), {})  # type: ignore[arg-type]
        assistant.matcher = tiny_matcher(parts["clip"], segmenter)
        scores.append(assistant.open(IMAGE).segment_like(IMAGE, MASK, label)[1])
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)


def test_segment_like_with_the_pocket_presets_features(parts):
    require_pocket_wheels()
    segmenter = segmenter_on("cuda", parts, "pocket")
    extractor = PocketFeatureExtractor()
    sizes = (extractor.width, extractor.joint_width, segmenter.prompt_width)
    encoders = {name: PromptEncoder(*sizes, text=name == "text").eval() for name in ("plain", "text")}
    matcher = Matcher(segmenter, extractor, encoders)
    reference = matcher.reference(IMAGE, MASK)
    for label in (None, "mug"):
        mask, score = matcher.segment(matcher.open(IMAGE), [reference], label)
        assert mask.shape == MASK.shape and 0 <= score <= 1


@pytest.mark.parametrize("finder, sam", [("sam3", "sam3"), ("grounding_dino", "sam2"), ("owlv2", "official")])
def test_concepts(parts, finder, sam, monkeypatch):
    monkeypatch.setattr(concepts, "MIN_SCORE", 0.0)  # random models are sure of nothing
    found = []
    for device in ("cpu", "cuda"):
        segmenter = segmenter_on(device, parts, sam)
        opened = SamImageOpener(segmenter, points_per_side=1).open(IMAGE)
        found.append(concepts.load_concepts(parts[finder], segmenter).find(opened, "red box"))
    assert len(found[0]) and np.allclose(found[0].scores, found[1].scores, atol=1e-3)


@pytest.mark.parametrize("selection", ANSWERS)
def test_zero_shot_selections(parts, selection):
    answers = []
    for device in ("cpu", "cuda"):
        opener = SamImageOpener(load_segmenter(parts["transformers"], device)[0], points_per_side=3)
        model = ScriptedModel([ANSWERS[selection]])
        scene = Assistant(ZeroShotPipeline(opener, model, selection), {}).open(IMAGE)
        answers.append(scene.ask("what is red?"))
    assert answers[0].targets[0].present and answers[0].text == answers[1].text
    assert np.array_equal(answers[0].mask, answers[1].mask)


@pytest.mark.parametrize("mllm", ["qwen", "llava", "smolvlm"])
def test_constrained_answers(parts, mllm):
    texts = []
    for device in ("cpu", "cuda"):
        model = StructuredLLM(MultimodalLLM.load(parts[mllm], device=device, dtype=torch.float32))
        turns = [Turn("what is red?", images=[IMAGE])]
        answer = model.ask(turns, "Answer.", marks_schema([1, 2]), max_new_tokens=20, temperature=1, seed=3)
        texts.append(answer.text)
    assert texts[0] == texts[1] and texts[0].startswith('{"thought": "')


@pytest.mark.parametrize("mllm", ["qwen", "llava", "smolvlm", "blip"])
def test_attention(parts, mllm):
    heats = []
    for device in ("cpu", "cuda"):
        probe = load_probe(parts[mllm], device)
        heats.append(attend(probe, probe.open(IMAGE), "a mug"))
        tuned = {name: parameter.detach() * 1.1 for name, parameter in probe.tunable_words(["mug"]).items()}
        tuned |= {name: value.detach() for name, value in probe.tunable_attention([1]).items()}
        probe.restore({name: value.cpu() for name, value in tuned.items()})  # as they come from a file
        attend(probe, probe.open(IMAGE), "a mug")
    assert heats[0].shape == IMAGE.shape[:2] and np.abs(heats[0] - heats[1]).max() < 0.2


def tune(parts: dict[str, Path], folder: Path, out: Path, *more: str) -> int:
    data = rectangles.write_dataset(folder, 2)
    options = ("--max-steps", "2", "--save-every", "1", "--device", "cuda", "--val", str(data), *more)
    words = command_line(parts["qwen"], data, out, *options)
    words[words.index("--sam") + 1] = str(parts["transformers"])
    return finetune.main(words)


def test_tuning_saves_continues_and_answers(parts, tmp_path, monkeypatch):
    """Steps with backward, a checkpoint, a run that continues from it, and the trained pipeline."""
    monkeypatch.setattr(image_opener, "POINTS_PER_SIDE", 3)
    monkeypatch.setattr(train, "MAX_ANSWER_TOKENS", 3)
    assert tune(parts, tmp_path, tmp_path / "out") == 0
    assert tune(parts, tmp_path, tmp_path / "out") == 0  # continues a run that is complete
    assert all(weight.isfinite().all() for weight in tensors(tmp_path / "out").values())
    answers = []
    for device in ("cpu", "cuda"):
        llm = MultimodalLLM.load(parts["qwen"], device=device, dtype=torch.float32)
        opener = SamImageOpener(load_segmenter(parts["transformers"], device)[0], points_per_side=6)
        pipeline = load_trained_pipeline(llm, opener, tmp_path / "out")
        scene = Assistant(pipeline, {}).open(IMAGE)
        answers.append(scene.ask("where is the red one?", max_new_tokens=12))
        assert scene.attend("the red one").shape == IMAGE.shape[:2]
    assert answers[0].said == answers[1].said


def test_training_references(parts, tmp_path, capsys):
    """Steps with and without SAM, a checkpoint that is read back, and the file that is written."""
    data = write_boxes(tmp_path, 8)
    options = f"--data {data} --out {tmp_path / 'out'} --clip {parts['clip']} --sam {parts['official']}"
    words = [*options.split(), "--steps", "3", "--alone", "0.4", "--episodes", "6", "--batch", "2"]
    for _ in range(2):
        assert finetune.main(["reference", *words, "--save-every", "0", "--device", "cuda"]) == 0
    assert "resuming at step 3" in capsys.readouterr().out
    matcher = Matcher.load(tmp_path / "out", segmenter_on("cuda", parts, "official"))
    reference = matcher.reference(IMAGE, MASK)
    assert matcher.segment(matcher.open(IMAGE), [reference], "cup")[0].shape == MASK.shape
