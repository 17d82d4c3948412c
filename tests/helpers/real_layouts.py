"""Multimodal LLMs as the hubs hold them, but for their weights, which are tiny and random.

    folder = write_layout("qwen3_vl", tmp_path)       # any name of LAYOUTS

Each has a real vocabulary (`tests.helpers.real_vocabularies`), the settings of the published processor, a
chat template that does what the published one does, and the published size of tokens, patches and tiles. What
depends on these (how many tokens an image takes, where a token ends, what ends an answer, what a past answer
looks like) is therefore as in the real model. `tests.helpers.tiny_models` has smaller and faster ones for all
else.

Gemma 3's own vocabulary of 262,144 tokens is in no wheel; Llama's stands in for it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from assistant.mllm.local_model import MultimodalLLM
from assistant.mllm.structured_output import StructuredLLM
from tests.helpers.real_vocabularies import (
    llama_tokenizer,
    qwen3_tokenizer,
    qwen_tokenizer,
    smollm2_tokenizer,
)

HIDDEN = 32  # the width of all text parts

TEXT: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.1,
}
SMALL_VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}

# --------------------------------------------------------------------------------------------------- Qwen

QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
# Of Qwen3-VL-4B-Instruct, without tools and videos: a system prompt only where there is one.
QWEN3_VL_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- for content in message.content %}"
    "{%- if content.type == 'image' or 'image' in content or 'image_url' in content %}"
    "{{- '" + QWEN_IMAGE + "' }}"
    "{%- elif 'text' in content %}{{- content.text }}{%- endif %}{%- endfor %}"
    "{{- '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
# Of Qwen2.5-VL-7B-Instruct: with a system prompt of its own where there is none.
QWEN2_5_VL_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}" + QWEN_IMAGE + ""
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1]}


def _qwen_token_ids(tokenizer: Any) -> dict[str, int]:
    tokens = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}


def _qwen3_vl(folder: Path) -> None:
    """Qwen3-VL-4B-Instruct: one token per 32 x 32 px, up to 16 megapixels; tied embeddings."""
    from transformers import (
        Qwen2VLImageProcessor,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    tokenizer = qwen3_tokenizer()
    pixels = {"shortest_edge": 65536, "longest_edge": 16777216}
    normalisation = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    processor = Qwen3VLProcessor(
        Qwen2VLImageProcessor(
            size=pixels, patch_size=16, merge_size=2, temporal_patch_size=2, **normalisation
        ),
        tokenizer,
        Qwen3VLVideoProcessor(patch_size=16, merge_size=2, temporal_patch_size=2),
        chat_template=QWEN3_VL_TEMPLATE,
    )
    config = Qwen3VLConfig(
        text_config=TEXT
        | {
            "vocab_size": 151936,
            "head_dim": 8,
            "max_position_embeddings": 262144,
            "rope_parameters": QWEN_ROPE | {"mrope_interleaved": True},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": HIDDEN,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [0],
        },
        tie_word_embeddings=True,
        **_qwen_token_ids(tokenizer),
    )
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    _save(folder, Qwen3VLForConditionalGeneration, config, processor, ends)


def _qwen2_5_vl(folder: Path) -> None:
    """Qwen2.5-VL-7B-Instruct: one token per 28 x 28 px, up to 12.8 megapixels; writes coordinates in px."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = qwen_tokenizer()
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(
            min_pixels=3136, max_pixels=12845056, patch_size=14, merge_size=2, temporal_patch_size=2
        ),
        tokenizer,
        Qwen2VLVideoProcessor(patch_size=14, merge_size=2, temporal_patch_size=2),
        chat_template=QWEN2_5_VL_TEMPLATE,
    )
    config = Qwen2_5_VLConfig(
        text_config=TEXT
        | {"vocab_size": 152064, "max_position_embeddings": 128000, "rope_parameters": QWEN_ROPE},
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "patch_size": 14,
            "out_hidden_size": HIDDEN,
            "window_size": 112,
            "fullatt_block_indexes": [1],
        },
        tie_word_embeddings=False,
        **_qwen_token_ids(tokenizer),
    )
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    _save(folder, Qwen2_5_VLForConditionalGeneration, config, processor, ends)


# ------------------------------------------------------------------------------------------- LLaVA, SmolVLM

# Of llava-hf/llava-1.5-7b-hf: no system prompt, images first, and no end token after a past answer.
LLAVA_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
# Of SmolVLM2, without videos.
SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
MAX_TILES_PER_SIDE = 6  # that SmolVLM's vocabulary has tokens for


def _llava(folder: Path) -> None:
    """LLaVA-1.5-7B: the middle square in 336 x 336 px, always 576 tokens; 62 spare rows."""
    from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    tokenizer = llama_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<pad>"]})
    tokenizer.pad_token = "<pad>"
    tokenizer.padding_side = "left"
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    config = LlavaConfig(
        text_config=TEXT | {"model_type": "llama", "vocab_size": 32064, "max_position_embeddings": 4096},
        vision_config=SMALL_VISION
        | {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14, "projection_dim": 16},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    _save(folder, LlavaForConditionalGeneration, config, processor, tokenizer.eos_token_id)


def _smolvlm(folder: Path) -> None:
    """SmolVLM2-2.2B-Instruct: up to 4 x 4 tiles of 384 px and the whole image, with 81 tokens each."""
    from transformers import (
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    tokenizer = smollm2_tokenizer()
    sides = range(1, MAX_TILES_PER_SIDE + 1)
    tiles = [f"<row_{row}_col_{column}>" for row in sides for column in sides]
    added = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *tiles]
    tokenizer.add_special_tokens({"additional_special_tokens": added})
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.eos_token = "<end_of_utterance>"
    tokenizer.pad_token = "<|im_end|>"
    size = {"longest_edge": 1536}
    tile = {"longest_edge": 384}
    processor = SmolVLMProcessor(
        SmolVLMImageProcessor(size=size, max_image_size=tile, image_mean=[0.5] * 3, image_std=[0.5] * 3),
        tokenizer,
        SmolVLMVideoProcessor(size=size, max_image_size=tile),
        image_seq_len=81,
        chat_template=SMOLVLM_TEMPLATE,
    )
    config = SmolVLMConfig(
        text_config=TEXT | {"model_type": "llama", "vocab_size": 49280, "max_position_embeddings": 8192},
        vision_config=SMALL_VISION | {"image_size": 384, "patch_size": 14},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=3,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    _save(folder, SmolVLMForConditionalGeneration, config, processor, tokenizer.eos_token_id)


# ------------------------------------------------------------------------------------------ InternVL, Gemma

# Of OpenGVLab/InternVL3-8B-hf, without videos.
INTERNVL_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Of google/gemma-3-4b-it: the system prompt becomes the beginning of the first question, and turns that do
# not alternate are refused.
GEMMA3_TEMPLATE = (
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}"
    "{%- set first_user_prefix = messages[0]['content'][0]['text'] + '\n\n' -%}"
    "{%- set loop_messages = messages[1:] -%}"
    "{%- else -%}{%- set first_user_prefix = '' -%}{%- set loop_messages = messages -%}{%- endif -%}"
    "{%- for message in loop_messages -%}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{%- endif -%}"
    "{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}"
    "{{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else '') }}"
    "{%- for item in message['content'] -%}"
    "{%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}"
    "{%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}{%- endfor -%}"
    "{{ '<end_of_turn>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)


def _internvl(folder: Path) -> None:
    """InternVL3-8B: up to 12 tiles of 448 px and the whole image, with 256 tokens each."""
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
    )

    tokenizer = qwen_tokenizer()
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = _with_named_tokens(tokenizer, named)
    side = {"height": 448, "width": 448}
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size=side, crop_to_patches=True, min_patches=1, max_patches=12),
        tokenizer,
        InternVLVideoProcessor(size=side),
        image_seq_length=256,
        chat_template=INTERNVL_TEMPLATE,
    )
    config = InternVLConfig(
        text_config=TEXT | {"model_type": "qwen2", "vocab_size": 151674, "max_position_embeddings": 32768},
        vision_config=SMALL_VISION | {"image_size": [448, 448], "patch_size": [14, 14]},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=256,
        downsample_ratio=0.5,
    )
    _save(folder, InternVLForConditionalGeneration, config, processor, tokenizer.eos_token_id)


def _gemma3(folder: Path) -> None:
    """Gemma 3 4B: the whole image in 896 x 896 px, always 256 tokens; two tokens end a generation."""
    from tokenizers.processors import TemplateProcessing
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3ImageProcessor,
        Gemma3Processor,
    )

    tokenizer = llama_tokenizer()
    turns = ["<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>", "<pad>"]
    tokenizer.add_special_tokens({"additional_special_tokens": turns})
    bos = tokenizer.convert_tokens_to_ids("<bos>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", bos)]
    )
    tokenizer.bos_token = "<bos>"
    tokenizer.eos_token = "<eos>"
    tokenizer.pad_token = "<pad>"
    tokenizer.padding_side = "left"
    named = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    tokenizer = _with_named_tokens(tokenizer, named)
    side = {"height": 896, "width": 896}
    processor = Gemma3Processor(
        Gemma3ImageProcessor(size=side, image_mean=[0.5] * 3, image_std=[0.5] * 3),
        tokenizer,
        image_seq_length=256,
        chat_template=GEMMA3_TEMPLATE,
    )
    config = Gemma3Config(
        text_config=TEXT
        | {
            "vocab_size": 32064,
            "head_dim": 8,
            "max_position_embeddings": 131072,
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 1024,
            "query_pre_attn_scalar": 8,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": bos,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config=SMALL_VISION
        | {
            "model_type": "siglip_vision_model",
            "image_size": 896,
            "patch_size": 14,
            "vision_use_head": False,
        },
        mm_tokens_per_image=256,
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
    )
    ends = tokenizer.convert_tokens_to_ids(["<eos>", "<end_of_turn>"])
    _save(folder, Gemma3ForConditionalGeneration, config, processor, ends)


def _with_named_tokens(tokenizer: Any, named: dict[str, str]) -> Any:
    """The tokenizer with special tokens that processors find by their names."""
    tokenizer.add_special_tokens({"additional_special_tokens": list(named.values())})
    tokenizer.init_kwargs["extra_special_tokens"] = named
    tokenizer._set_model_specific_special_tokens(special_tokens=named)
    return tokenizer


def _save(folder: Path, model_class: Any, config: Any, processor: Any, ends: int | list[int]) -> None:
    """Write a random model and its processor to a folder."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config)
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.any():  # Gemma's projection begins at zero
                torch.nn.init.normal_(parameter, std=0.1)
    model.generation_config.eos_token_id = ends
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "qwen3_vl": _qwen3_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "llava": _llava,
    "smolvlm": _smolvlm,
    "internvl": _internvl,
    "gemma3": _gemma3,
}


def write_layout(name: str, folder: Path) -> Path:
    """Write a model of `LAYOUTS` to a folder, and return it."""
    LAYOUTS[name](folder)
    return folder


def unconstrained(llm: MultimodalLLM) -> StructuredLLM:
    """A model as it answers in JSON, of which nothing is generated: its grammar is not built."""
    with mock.patch("llguidance.hf.from_tokenizer", lambda *args, **options: None):
        return StructuredLLM(llm)
