"""A tiny random llama in a GGUF file, as llama.cpp would write it."""

from pathlib import Path

import gguf
import numpy as np
from transformers.convert_slow_tokenizer import bytes_to_unicode

WIDTH = 32
HEADS = 2
MLP_WIDTH = 64
LAYERS = 2
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tiny_gguf(path: Path) -> None:
    """Write a llama of 2 layers with a byte-level vocabulary. Seed 0 draws its weights, embeddings first."""
    tokens = [*SPECIAL_TOKENS, *bytes_to_unicode().values(), "12", "Ġa"]
    writer = gguf.GGUFWriter(path, "llama")
    _add_sizes(writer, len(tokens))
    _add_tokenizer(writer, tokens)
    _add_weights(writer, len(tokens))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_sizes(writer: gguf.GGUFWriter, vocabulary: int) -> None:
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(MLP_WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    writer.add_vocab_size(vocabulary)
    writer.add_rope_dimension_count(WIDTH // HEADS)


def _add_tokenizer(writer: gguf.GGUFWriter, tokens: list[str]) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_merges(["1 2", "Ġ a"])
    control, normal = 3, 1
    writer.add_token_types([control] * len(SPECIAL_TOKENS) + [normal] * (len(tokens) - len(SPECIAL_TOKENS)))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _add_weights(writer: gguf.GGUFWriter, vocabulary: int) -> None:
    rng = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, rng.normal(0, 0.3, shape).astype(np.float32))

    add("token_embd.weight", vocabulary, WIDTH)
    add("output_norm.weight", WIDTH)
    for k in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{k}.{name}.weight", WIDTH, WIDTH)
        add(f"blk.{k}.ffn_gate.weight", MLP_WIDTH, WIDTH)
        add(f"blk.{k}.ffn_up.weight", MLP_WIDTH, WIDTH)
        add(f"blk.{k}.ffn_down.weight", WIDTH, MLP_WIDTH)
        add(f"blk.{k}.attn_norm.weight", WIDTH)
        add(f"blk.{k}.ffn_norm.weight", WIDTH)
