"""Image-text matchers with random weights, saved in the layout of the real ones."""

from pathlib import Path

import torch
from tokenizers import processors

from tests.helpers.tiny_tokenizer import byte_level_tokenizer


def tiny_clip(folder: Path | str, seed: int = 0) -> Path:
    """Write a CLIP of 32 px with patches of 8.

    Its features differ from patch to patch and from word to word.
    """
    from transformers import CLIPConfig, CLIPModel

    tokenizer = byte_level_tokenizer(["<|startoftext|>", "<|endoftext|>"])
    tokenizer.add_special_tokens(
        {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    )
    start, end = tokenizer.convert_tokens_to_ids(["<|startoftext|>", "<|endoftext|>"])
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>",
        special_tokens=[("<|startoftext|>", start), ("<|endoftext|>", end)],
    )
    tokenizer.model_max_length = 77
    config = CLIPConfig(
        text_config=dict(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=77,
            bos_token_id=start,
            eos_token_id=end,
        ),
        vision_config=dict(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
        ),
        projection_dim=24,
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = CLIPModel(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def tiny_blip(folder: Path | str, seed: int = 0) -> Path:
    """Write BLIP's image-text matcher, for `BlipForImageTextRetrieval`."""
    from transformers import (
        BertTokenizerFast,
        BlipConfig,
        BlipForImageTextRetrieval,
        BlipImageProcessor,
        BlipProcessor,
    )

    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "image",
        "of",
        "mug",
        "sky",
        *letters,
        *(f"##{c}" for c in letters),
    ]
    tokenizer = BertTokenizerFast(vocab={word: k for k, word in enumerate(words)})
    processor = BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer)
    config = BlipConfig(
        text_config=dict(
            vocab_size=len(words),
            hidden_size=32,
            encoder_hidden_size=48,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=64,
            initializer_range=0.1,
            bos_token_id=2,
            eos_token_id=3,
            pad_token_id=0,
            sep_token_id=3,
        ),
        vision_config=dict(
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
            initializer_range=0.1,
        ),
        image_text_hidden_size=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BlipForImageTextRetrieval(config)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)
