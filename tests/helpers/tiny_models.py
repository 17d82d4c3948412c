"""Multimodal LLMs with random weights, of about 100,000 parameters, saved in the layout of the real ones.

    folder = tiny_qwen3_vl(tmp_path)       # also tiny_qwen2_5_vl, tiny_smolvlm, tiny_llava python -m
    tests.helpers.tiny_models 4b FOLDER     # the shape of Qwen3-VL-4B, to measure with random weights

They differ in what matters to the code that uses them. Qwen3-VL gives an image as many tokens as its size
asks for and has tied or untied embeddings. SmolVLM cuts an image into tiles. LLaVA has a SentencePiece-like
tokenizer with a <bos>, spare rows, no place for a system prompt, and nothing that marks the end of an answer.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tests.helpers.tiny_tokenizer import SENTENCES, byte_level_tokenizer

QWEN_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
QWEN_TEMPLATE = """{% for m in messages %}<|im_start|>{{ m.role }}
{% for c in m.content %}{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}\
{{ c.text }}\
{% endif %}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


SMALL_VISION: dict[str, Any] = dict(
    depth=4, hidden_size=256, intermediate_size=1024, num_heads=4, deepstack_visual_indexes=[1]
)
VISION: dict[str, Any] = dict(
    depth=24,
    hidden_size=1024,
    intermediate_size=4096,
    num_heads=16,
    deepstack_visual_indexes=[5, 11, 17],
    num_position_embeddings=2304,
)
TEXT: dict[str, Any] = dict(
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=151936,
    initializer_range=0.02,
    rope_parameters={
        "rope_type": "default",
        "rope_theta": 5e6,
        "mrope_section": [24, 20, 20],
        "mrope_interleaved": True,
    },
)
# The text and vision parts of the real models, and of a small one for a CPU.
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "200m": (
        TEXT | dict(hidden_size=768, intermediate_size=2304, num_hidden_layers=10, num_attention_heads=8),
        SMALL_VISION,
    ),
    "2b": (
        TEXT | dict(hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16),
        VISION,
    ),
    "4b": (
        TEXT | dict(hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32),
        VISION,
    ),
    "8b": (
        TEXT | dict(hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32),
        VISION
        | dict(depth=27, hidden_size=1152, intermediate_size=4304, deepstack_visual_indexes=[8, 16, 24]),
    ),
}


def tiny_qwen3_vl(folder: Path | str, tied: bool = False, seed: int = 0, shape: str | None = None) -> Path:
    """Write a Qwen3-VL to a folder.

    Args:
        folder: Where it is written.
        tied: Whether both embeddings share their weights.
        seed: Of the weights.
        shape: One of `SHAPES`; None for a tiny one.

    Returns:
        The folder.
    """
    from transformers import (
        Qwen2VLImageProcessor,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    tokenizer = byte_level_tokenizer(QWEN_TOKENS)
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})
    tokenizer.add_tokens(["<think>", "</think>"])  # not "special", as in Qwen's own tokenizer
    token = tokenizer.convert_tokens_to_ids
    processor = Qwen3VLProcessor(
        Qwen2VLImageProcessor(
            patch_size=16,
            merge_size=2,
            temporal_patch_size=2,
            min_pixels=32 * 32,
            max_pixels=512 * 512 if shape else 96 * 96,
        ),
        tokenizer,
        Qwen3VLVideoProcessor(patch_size=16, merge_size=2, temporal_patch_size=2),
        chat_template=QWEN_TEMPLATE,
    )
    text, vision = SHAPES[shape] if shape else ({}, {})
    vision = vision | ({"out_hidden_size": text["hidden_size"]} if shape else {})
    config = Qwen3VLConfig(
        text_config=dict(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            head_dim=16,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=8192,
            tie_word_embeddings=tied,
            initializer_range=0.1,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [4, 2, 2],
                "mrope_interleaved": True,
            },
        )
        | text,
        vision_config=dict(
            depth=2,
            hidden_size=32,
            intermediate_size=48,
            num_heads=2,
            patch_size=16,
            spatial_merge_size=2,
            temporal_patch_size=2,
            out_hidden_size=64,
            num_position_embeddings=64,
            deepstack_visual_indexes=[0],
            initializer_range=0.1,
        )
        | vision,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=tied,
    )
    return _save(folder, Qwen3VLForConditionalGeneration, config, processor, seed)


def tiny_qwen2_5_vl(folder: Path | str, seed: int = 0) -> Path:
    """Write a Qwen2.5-VL to a folder."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = byte_level_tokenizer(QWEN_TOKENS)
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})
    token = tokenizer.convert_tokens_to_ids
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(
            patch_size=14, merge_size=2, temporal_patch_size=2, min_pixels=28 * 28, max_pixels=112 * 112
        ),
        tokenizer,
        Qwen2VLVideoProcessor(patch_size=14, merge_size=2, temporal_patch_size=2),
        chat_template=QWEN_TEMPLATE,
    )
    config = Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=8192,
            initializer_range=0.1,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
        ),
        vision_config=dict(
            depth=2,
            hidden_size=32,
            intermediate_size=48,
            num_heads=2,
            patch_size=14,
            out_hidden_size=64,
            window_size=56,
            fullatt_block_indexes=[1],
            initializer_range=0.1,
        ),
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    return _save(folder, Qwen2_5_VLForConditionalGeneration, config, processor, seed)


def tiny_parrot(folder: Path | str, answer: str) -> Path:
    """Write a Qwen3-VL that gives the same answer to everything.

    The answer is a token of its own. The token that ends the prompt leads to it and it leads to the end,
    because all weights that would mix other tokens in are zero.
    """
    from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

    tiny_qwen3_vl(folder)
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    tokenizer = processor.tokenizer
    tokenizer.add_tokens([answer])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    chain = [tokenizer.encode("\n")[0], tokenizer.convert_tokens_to_ids(answer), tokenizer.eos_token_id]
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        outputs.zero_()
        for k, (before, after) in enumerate(zip(chain, chain[1:], strict=False)):
            inputs[before] = 0.0
            inputs[before, k] = 1.0
            outputs[after, k] = 10.0
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)


SMOLVLM_TEMPLATE = """<|im_start|>{% for m in messages %}{{ m.role | capitalize }}:{% for c in m.content %}\
{% if c.type == 'image' %}<image>{% else %} {{ c.text }}{% endif %}{% endfor %}<end_of_utterance>
{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"""


def tiny_smolvlm(folder: Path | str, seed: int = 0) -> Path:
    """Write a SmolVLM to a folder."""
    from transformers import (
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    tiles = [f"<row_{i}_col_{j}>" for i in range(1, 4) for j in range(1, 4)]
    tokenizer = byte_level_tokenizer(
        [
            "<|endoftext|>",
            "<|im_start|>",
            "<end_of_utterance>",
            "<fake_token_around_image>",
            "<global-img>",
            "<image>",
            "<video>",
            *tiles,
        ],
        vocabulary=330,
    )
    tokenizer.add_special_tokens(
        {"bos_token": "<|im_start|>", "eos_token": "<end_of_utterance>", "pad_token": "<|endoftext|>"}
    )
    size = {"longest_edge": 64}
    processor = SmolVLMProcessor(
        SmolVLMImageProcessor(size=size, max_image_size={"longest_edge": 32}),
        tokenizer,
        SmolVLMVideoProcessor(size=size, max_image_size={"longest_edge": 32}),
        image_seq_len=4,
        chat_template=SMOLVLM_TEMPLATE,
    )
    config = SmolVLMConfig(
        text_config=dict(
            model_type="llama",
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=8192,
            initializer_range=0.1,
            pad_token_id=0,
        ),
        vision_config=dict(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    return _save(folder, SmolVLMForConditionalGeneration, config, processor, seed)


LLAVA_TEMPLATE = """{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}\
{{ raise_exception('no system') }}\
{% endif %}{{ m.role | upper }}: {% for c in m.content %}{% if c.type == 'image' %}<image>
{% else %}{{ c.text | trim }} {% endif %}{% endfor %}{% endfor %}\
{% if add_generation_prompt %}ASSISTANT:{% endif %}"""


def tiny_llava(folder: Path | str, seed: int = 0) -> Path:
    """Write a LLaVA-1.5 to a folder."""
    from transformers import (
        CLIPImageProcessor,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    letters = sorted(
        set("".join(SENTENCES) + "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ()[]<>:\n▁")
    )
    backend.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(
            vocab_size=456,
            special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{k:02X}>" for k in range(256)), "<image>"],
            initial_alphabet=letters,
            show_progress=False,
        ),
    )
    backend = Tokenizer.from_str(_with_ordinary_bytes(backend.to_str()))
    # It was trained on words one by one, so that no token goes on past a space, and reads whole texts.
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    config = LlavaConfig(
        text_config=dict(
            model_type="llama",
            vocab_size=512,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=8192,
            initializer_range=0.1,
        ),
        vision_config=dict(
            model_type="clip_vision_model",
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
            projection_dim=32,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    return _save(folder, LlavaForConditionalGeneration, config, processor, seed)


def _with_ordinary_bytes(tokenizer: str) -> str:
    """A tokenizer, as JSON, whose tokens of single bytes are not special.

    The trainer keeps tokens that do not occur in its texts only as special ones, which those of SentencePiece
    are not.
    """
    state = json.loads(tokenizer)
    state["added_tokens"] = [
        token for token in state["added_tokens"] if not token["content"].startswith("<0x")
    ]
    return json.dumps(state)


def _save(folder: Path | str, model_class: Any, config: Any, processor: Any, seed: int) -> Path:
    """Write a random model and its processor to a folder."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(config)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)


def tiny_sam(folder: Path | str, seed: int = 0) -> Path:
    """Write a SAM of 128 px in the layout of transformers; all of its masks are stable and called good."""
    from transformers import (
        SamConfig,
        SamImageProcessor,
        SamMaskDecoderConfig,
        SamModel,
        SamPromptEncoderConfig,
        SamVisionConfig,
    )

    side = {"height": 128, "width": 128}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SamModel(
            SamConfig(
                vision_config=SamVisionConfig(
                    hidden_size=32,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    image_size=128,
                    patch_size=16,
                    output_channels=32,
                    global_attn_indexes=[1],
                    window_size=4,
                    mlp_dim=64,
                    num_pos_feats=16,
                ),
                prompt_encoder_config=SamPromptEncoderConfig(
                    hidden_size=32, image_size=128, patch_size=16, mask_input_channels=8
                ),
                mask_decoder_config=SamMaskDecoderConfig(
                    hidden_size=32, mlp_dim=64, num_attention_heads=4, iou_head_hidden_dim=32
                ),
            )
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.3 if parameter.ndim > 1 else 0.1)
            # Logits so large that every mask is stable.
            for parameter in model.mask_decoder.upscale_conv2.parameters():
                parameter *= 1000
            model.mask_decoder.iou_prediction_head.proj_out.weight *= 0.001
            model.mask_decoder.iou_prediction_head.proj_out.bias.fill_(0.95)
    model.save_pretrained(folder)
    SamImageProcessor(size={"longest_edge": 128}, pad_size=side).save_pretrained(folder)
    return Path(folder)


if __name__ == "__main__":
    shape, folder = sys.argv[1:3]
    print(tiny_qwen3_vl(folder, tied=shape != "8b", shape=shape))
