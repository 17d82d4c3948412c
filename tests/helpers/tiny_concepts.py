"""Tiny random models that find things by their name, in the layouts of the hub.

folder = tiny_sam3(tmp_path / "sam3")               # as facebook/sam3: detector and tracker of one backbone
folder = tiny_grounding_dino(tmp_path / "dino")
folder = tiny_owlv2(tmp_path / "owl")
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

SIDE, PATCH = 112, 14
GRID = SIDE // PATCH
TEXT_LENGTH = 32  # tokens of a phrase, to which SAM 3 fills it up


def tiny_sam3(folder: Path | str, seed: int = 0) -> Path:
    """Write a SAM 3 of 112 px with its processor, in the layout of facebook/sam3."""
    from transformers import Sam3ImageProcessor, Sam3Processor, Sam3VideoConfig, Sam3VideoModel

    folder = Path(folder)
    backbone = {
        "model_type": "sam3_vit_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": PATCH,
        "window_size": 4,
        "global_attn_indexes": [1],
        "pretrain_image_size": SIDE // 2,
    }
    vision = {
        "model_type": "sam3_vision_model",
        "backbone_config": backbone,
        "fpn_hidden_size": 32,
        "backbone_feature_sizes": [[4 * GRID, 4 * GRID], [2 * GRID, 2 * GRID], [GRID, GRID]],
    }
    layers: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 2}
    wide = layers | {"num_layers": 1, "intermediate_size": 64}
    text = {
        "model_type": "clip_text_model",
        "vocab_size": 2 * len(string.printable) + 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "projection_dim": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": TEXT_LENGTH,
    }
    detector = {
        "model_type": "sam3",
        "vision_config": vision,
        "text_config": text,
        "geometry_encoder_config": wide,
        "detr_encoder_config": wide,
        "detr_decoder_config": wide | {"num_queries": 10},
        "mask_decoder_config": layers,
    }
    tracker = {
        "model_type": "sam3_tracker_video",
        "image_size": SIDE,
        "vision_config": vision | {"scale_factors": [4.0, 2.0, 1.0]},
        "prompt_encoder_config": {
            "hidden_size": 32,
            "image_size": SIDE,
            "patch_size": PATCH,
            "mask_input_channels": 8,
        },
        "mask_decoder_config": {
            "hidden_size": 32,
            "mlp_dim": 64,
            "num_attention_heads": 4,
            "iou_head_hidden_dim": 32,
        },
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Sam3VideoModel(Sam3VideoConfig(detector_config=detector, tracker_config=tracker))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "tracker" in name and "neck" not in name:  # wide enough that prompts make a difference
                    parameter.normal_(0, 0.3 if parameter.ndim > 1 else 0.1)
    model.save_pretrained(folder)
    # transformers 5.24 writes a prefix twice that the published file has once.
    file = folder / "model.safetensors"
    tensors = load_file(file)
    renamed = {key.replace("tracker_model.tracker_model.", "tracker_model."): tensors[key] for key in tensors}
    save_file(renamed, file, metadata={"format": "pt"})
    side = {"height": SIDE, "width": SIDE}
    Sam3Processor(Sam3ImageProcessor(size=side), tiny_clip_tokenizer()).save_pretrained(folder)
    return folder


def tiny_clip_tokenizer() -> Any:
    """A tokenizer of CLIP's kind that knows characters only."""
    from transformers import CLIPTokenizer

    characters = sorted(string.printable)
    words = [*characters, *(character + "</w>" for character in characters)]
    vocabulary = {word: number for number, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TEXT_LENGTH)


def tiny_grounding_dino(folder: Path | str, seed: int = 0) -> Path:
    """Write a random Grounding DINO with its processor."""
    from transformers import (
        BertConfig,
        BertTokenizer,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
        SwinConfig,
    )

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *string.ascii_lowercase]
    words += [f"##{letter}" for letter in string.ascii_lowercase]
    backbone = SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage2", "stage3", "stage4"],
    )
    text = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    config = GroundingDinoConfig(
        backbone_config=backbone,
        text_config=text,
        num_queries=8,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_text_len=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        GroundingDinoForObjectDetection(config).save_pretrained(folder)
    size = {"shortest_edge": 96, "longest_edge": 128}  # of a square photo the coarsest map has 2 x 2 cells
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    GroundingDinoProcessor(GroundingDinoImageProcessor(size=size), tokenizer).save_pretrained(folder)
    return Path(folder)


def tiny_owlv2(folder: Path | str, seed: int = 0) -> Path:
    """Write a random OWLv2 with its processor."""
    from transformers import (
        Owlv2Config,
        Owlv2ForObjectDetection,
        Owlv2ImageProcessor,
        Owlv2Processor,
        Owlv2TextConfig,
        Owlv2VisionConfig,
    )

    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    words = 2 * len(string.printable) + 2
    text = Owlv2TextConfig(vocab_size=words, max_position_embeddings=TEXT_LENGTH, **sizes)
    vision = Owlv2VisionConfig(image_size=64, patch_size=16, **sizes)
    config = Owlv2Config(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=32)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Owlv2ForObjectDetection(config)
        with torch.no_grad():
            model.box_head.dense2.weight.zero_()  # each box stays near its place in the grid
            model.box_head.dense2.bias.zero_()
        model.save_pretrained(folder)
    size = {"height": 64, "width": 64}
    Owlv2Processor(Owlv2ImageProcessor(size=size), tiny_clip_tokenizer()).save_pretrained(folder)
    return Path(folder)
