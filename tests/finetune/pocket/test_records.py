"""`python -m finetune records`: three phases that learn names and selection, and continue when stopped."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from assistant.grammar import Turn, parse
from assistant.pocket.heads import Heads
from assistant.pocket.llm import PocketLLM
from finetune.pocket import language, records
from tests.helpers.pocket_records import random_regions, records_arguments


def test_three_phases_learn_and_can_be_loaded(folder, llm_folder, capsys):
    out = folder / "out"
    records.main(records_arguments(folder, out))
    named = float(capsys.readouterr().out.split("not trained on: ")[1].split()[0])
    assert named > 0.9  # the encoders name what they were not trained on
    held_out = json.loads((out / "aside.json").read_text())
    assert (
        held_out["targets"] and held_out["iou"] > 0.5
    )  # and the selector goes by the name: the LLM is random
    heads = Heads.load(out / "heads.safetensors")
    llm = PocketLLM.load(llm_folder, out / "lora", heads.encoder, heads.phrase_rows)
    regions = heads.encoder(random_regions(np.random.default_rng(5)).features)
    reply = llm.reply([Turn("where is the cat?")], regions, max_new_tokens=8)
    assert len(reply.states) == len(reply.markers) == len(parse(reply.text)) and reply.states.shape[1] == 48


@pytest.mark.slow
def test_a_stopped_training_resumes_to_the_same_weights(folder, stopped):
    records.main(records_arguments(folder, folder / "whole"))
    stopped(language, "read_batch", 3, lambda: records.main(records_arguments(folder, folder / "parts")))
    records.main(records_arguments(folder, folder / "parts"))
    for file in ("lora/adapter_model.safetensors", "heads.safetensors"):
        whole, parts = (load_file(folder / run / file) for run in ("whole", "parts"))
        assert all(torch.allclose(whole[k].float(), parts[k].float(), atol=1e-6) for k in whole)
