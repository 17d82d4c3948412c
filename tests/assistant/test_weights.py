"""Checksums of committed weights, and what is wrong with the name of a model."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from assistant import weights
from assistant.errors import BadInput
from tests.helpers.refusals import refusal


def test_committed_weights_are_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "POCKET", tmp_path)
    with pytest.raises(BadInput, match="checksums.json is missing"):
        weights.pocket_file("sam.safetensors")
    (tmp_path / "lora").mkdir()
    for name in ("sam.safetensors", "lora/adapter_model.safetensors"):
        (tmp_path / name).write_bytes(name.encode())
    weights.write_checksums()
    assert set(json.loads((tmp_path / "checksums.json").read_text())) == {
        "sam.safetensors",
        "lora/adapter_model.safetensors",
    }
    assert weights.pocket_file("sam.safetensors") == tmp_path / "sam.safetensors"
    assert weights.pocket_file("lora") == tmp_path / "lora"
    with pytest.raises(BadInput, match="no weights named other"):
        weights.pocket_file("other")
    (tmp_path / "lora" / "adapter_model.safetensors").write_bytes(b"lor")
    with pytest.raises(BadInput, match="damaged or of another version"):
        weights.pocket_file("lora")
    (tmp_path / "sam.safetensors").unlink()
    with pytest.raises(BadInput, match="sam.safetensors is missing"):
        weights.pocket_file("sam.safetensors")


def test_weights_are_read_as_float32_with_their_metadata(tmp_path):
    file = weights.adapter_file(saved(tmp_path / "heads.safetensors").parent)
    tensors, metadata = weights.read_weights(file)
    assert tensors["a"].dtype == torch.float32 and tensors["a"].tolist() == [1.0, 2.0]
    assert metadata == {"forms": "{}"}
    file.write_bytes(b"cut")
    with pytest.raises(BadInput, match="cannot read .*heads.safetensors"):
        weights.read_weights(file)
    with pytest.raises(BadInput, match="no other.safetensors in"):
        weights.adapter_file(tmp_path, "other.safetensors")


def saved(file):
    save_file({"a": torch.tensor([1.0, 2.0]).half()}, file, {"forms": "{}"})
    return file


def test_a_fingerprint_tells_models_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "MEGABYTE", 4)
    monkeypatch.setattr(weights, "LARGE_FILE_BYTES", 16)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.bin").write_bytes(b"first middle last")
    fingerprint = weights.fingerprint(folder)
    (folder / "README.md").write_text("does not count")
    assert weights.fingerprint(folder) == fingerprint
    (folder / "model.bin").write_bytes(b"first MIDDLE last")  # of a large file only the ends count
    assert weights.fingerprint(folder) == fingerprint
    (folder / "model.bin").write_bytes(b"first middle LAST")
    assert weights.fingerprint(folder) != fingerprint
    (folder / "model.bin").write_bytes(b"first middle last")
    (folder / "config.json").write_text("[]")
    assert weights.fingerprint(folder) != fingerprint


def test_models_are_folders_or_hub_ids(tmp_path):
    with pytest.raises(BadInput, match="it has no config.json"):
        weights.resolve_model(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert weights.resolve_model(tmp_path) == str(tmp_path)
    with pytest.raises(BadInput, match="no model folder at"):
        weights.resolve_model(tmp_path / "missing")
    with pytest.raises(BadInput, match="no model folder at"):
        weights.resolve_model("")
    with pytest.raises(BadInput, match="neither a folder nor a hub id"):
        weights.resolve_model("a b/c?")
    with pytest.raises(BadInput, match="no model hub reached.*--preset pocket") as caught:
        weights.resolve_model("nobody/such-a-model")
    assert "\n" not in str(caught.value)


def test_importing_weights_is_light():
    program = "import sys, assistant.weights; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize("load", ["agent", "sam", "concepts"])
def test_gated_weights_without_access_are_one_line(load, tmp_path, monkeypatch):
    """SAM 3 is had by those who have accepted its terms, whichever part it is asked for as."""
    import httpx
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError

    from assistant.loading.concepts import load_concept_segmenter
    from assistant.loading.sams import load_segmenter
    from assistant.presets import load_preset

    def gated(*args, **options):
        response = httpx.Response(403, request=httpx.Request("HEAD", "https://hub.invalid"))
        raise GatedRepoError("Access to this model is restricted.\nPlease log in.", response=response)

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", gated)
    works = {
        "agent": lambda: load_preset("agent", mllm="nobody/never-uploaded", device="cpu"),
        "sam": lambda: load_segmenter("facebook/never-cached-sam3", "cpu"),
        "concepts": lambda: load_concept_segmenter("facebook/never-cached-sam3", None),
    }
    line = refusal(works[load])
    assert "accept the terms of" in line and "hf auth login" in line
