"""Any multimodal LLM of transformers, answering in the reply grammar.

    llm = MultimodalLLM.load("path/to/Qwen3-VL-4B-Instruct", adapter="runs/lora", device="cuda")
    reply = llm.reply([Turn("what keeps the rain off?", images=[image])], stream=print)
    reply.text, reply.markers, reply.states      # "The umbrella [SEG] does.", [True], (1, hidden)

Each [SEG] or [ABS] comes with the hidden state that predicts it: the last layer's output at the position
before the token, which is the vector that the output embedding reads. It is recorded while the reply is
generated, so it is right wherever images stand in the conversation and however many positions they take.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from assistant.errors import BadInput, memory_advice
from assistant.grammar import ABS, SEG, SYSTEM_PROMPT, Turn
from assistant.mllm.chat_messages import chat_messages
from assistant.mllm.loading import (
    add_markers,
    check_folder,
    first_line,
    load_model,
    peft_deprecations_ignored,
)
from assistant.mllm.model_image import FittedImages, image_fit_of
from assistant.mllm.reply_text import ReplyStreamer, neutralise_spelled_markers
from assistant.pipeline import Reply

# Attributes of transformers' configurations that hold the token which stands for an image or a video.
IMAGE_TOKEN_ATTRIBUTES = ("image_token_id", "image_token_index", "video_token_id")
# Characters by which tokens that structure a chat can be told from ordinary ones, such as runs of spaces.
STRUCTURE_CHARACTERS = set("<>[]{}|")


class MultimodalLLM:
    """A multimodal LLM with its processor, both of which know [SEG] and [ABS].

    It generates one reply at a time; calls from other threads wait.

    Args:
        model: Of transformers.
        processor: The model's.
        pixels: px of an image that the model is shown, at most; None for what suits its family.
        markers: Whether the model gets rows for [SEG] and [ABS] where it lacks them. Only what was trained on
            them needs them; without them `reply` cannot be used.

    Attributes:
        pixels: The argument.
        image_fit: How the model is shown images.
        has_markers: Whether [SEG] and [ABS] are tokens.
        seg: Token id of [SEG]; -1 where it is none.
        abs: Token id of [ABS]; -1 where it is none.
        end_tokens: Token ids that end a reply.
        live_tokens: Texts of the tokens that must have no power where a user types them.
        lock: Held while the model generates.
    """

    def __init__(self, model: Any, processor: Any, pixels: int | None = None, markers: bool = True):
        self.model = model.eval()
        self.processor = processor
        self.show_pixels(pixels)
        self._fitted_images = FittedImages()
        self.tokenizer = processor.tokenizer
        if markers:
            add_markers(model, self.tokenizer)
        vocabulary = self.tokenizer.get_vocab()
        self.has_markers = SEG in vocabulary and ABS in vocabulary
        self.seg, self.abs = (vocabulary.get(token, -1) for token in (SEG, ABS))
        self.end_tokens = self._find_end_tokens()
        added = self.tokenizer.added_tokens_decoder
        special = {i for i, token in added.items() if token.special}
        self._hidden_tokens = (special | set(self.end_tokens)) - {self.seg, self.abs}
        # Tokens such as <think> are not "special" but structure a chat all the same.
        self.live_tokens = [
            token.content
            for token in added.values()
            if token.special or STRUCTURE_CHARACTERS & set(token.content)
        ]
        model.generation_config = self._generation_config()
        can_think = "enable_thinking" in processor.chat_template
        self._template_options = {"enable_thinking": False} if can_think else {}
        self._has_system_role = True
        self._has_system_role = self._template_writes_system_prompt()
        self.lock = threading.Lock()

    def show_pixels(self, pixels: int | None) -> None:
        """Set how many pixels of an image the model is shown; see `model_image.image_fit_of`."""
        self.pixels = pixels
        self.image_fit = image_fit_of(self.processor.image_processor, pixels)

    def _find_end_tokens(self) -> list[int]:
        ends = self.model.generation_config.eos_token_id
        ends = [self.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])]
        return list(dict.fromkeys(int(end) for end in ends if end is not None))

    def _generation_config(self) -> Any:
        """How replies are generated, in place of the checkpoint's own defaults.

        A repetition penalty, for example, would suppress the second [SEG] of a reply. The token of an image
        is never generated, since it would stand for an image that does not exist.
        """
        from transformers import GenerationConfig

        pad = self.tokenizer.pad_token_id
        return GenerationConfig(
            eos_token_id=self.end_tokens,
            pad_token_id=self.end_tokens[0] if pad is None else pad,
            suppress_tokens=sorted(self._image_tokens()) or None,
        )

    def _image_tokens(self) -> set[int]:
        """The tokens that stand for a part of an image."""
        config = self.model.config
        tokens = (getattr(config, name, None) for name in IMAGE_TOKEN_ATTRIBUTES)
        return {token for token in tokens if token is not None}

    def count_image_tokens(self, ids: Tensor) -> int:
        """How many token ids, of any shape, stand for a part of an image; none of those that it writes do."""
        return sum(int((ids == token).sum()) for token in self._image_tokens())

    def _template_writes_system_prompt(self) -> bool:
        try:
            return SYSTEM_PROMPT in self.prompt([Turn("?")])
        except Exception:  # templates refuse a role by raising whatever they like
            return False

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        adapter: str | Path | None = None,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        four_bit: bool = False,
        pixels: int | None = None,
        markers: bool = True,
        spread: bool = False,
    ) -> "MultimodalLLM":
        """Load a model.

        Args:
            name_or_path: A folder in transformers' layout, or a hub id.
            adapter: A peft folder or hub id to put on the model.
            device: Where the model runs, such as "cpu", "cuda" or "cuda:1".
            dtype: Precision; None for what suits the device, see `loading.default_dtype`.
            four_bit: Keep the weights in 4 bits (nf4, through bitsandbytes). The adapter then stays beside
                the weights; otherwise it is merged into them.
            pixels: px of an image that the model is shown, at most; None for what suits its family.
            markers: Whether it gets rows for [SEG] and [ABS]; with an adapter it always does.
            spread: See `loading.load_model`.

        Raises:
            BadInput: The model or the adapter cannot be loaded.
        """
        check_folder(adapter)
        model, processor = load_model(name_or_path, device, dtype, four_bit, spread)
        markers = markers or adapter is not None
        if markers and any(parameter.is_meta for parameter in model.parameters()):
            # Layers that wait in the CPU's memory can neither be given rows nor take an adapter in.
            raise BadInput(
                f"{name_or_path} does not fit into the GPU, as it must with an adapter: use --four-bit, or "
                "an adapter of a smaller --preset"
            )
        with memory_advice(f"on {device} to add tokens to {name_or_path}: use a smaller --preset"):
            llm = cls(model, processor, pixels, markers)
        if adapter is not None:
            llm.adapt(adapter, merge=not four_bit)
        return llm

    def adapt(self, adapter: str | Path, merge: bool) -> None:
        """Put an adapter on the model.

        Args:
            adapter: A peft folder or hub id.
            merge: Whether to merge it into the weights.

        Raises:
            BadInput: The adapter cannot be read, or was trained on another model.
        """
        from peft import PeftModel

        try:
            with peft_deprecations_ignored():
                tuned = PeftModel.from_pretrained(self.model, adapter)
        except Exception as e:
            raise BadInput(
                f"cannot load the adapter {adapter}; give a folder that peft "
                f"saved for this model ({first_line(e)})"
            ) from e
        rows = tuned.active_peft_config.to_dict().get("trainable_token_indices")
        for ids in rows.values() if isinstance(rows, dict) else [rows] if rows else []:
            if not {self.seg, self.abs} <= set(ids):
                raise BadInput(
                    f"the adapter {adapter} was trained on another model: its [SEG] and [ABS] are tokens "
                    f"{sorted(ids)}, here they are {self.seg} and {self.abs}"
                )
        self.model = (tuned.merge_and_unload() if merge else tuned.get_base_model()).eval()

    @property
    def width(self) -> int:
        """The size of a hidden state."""
        return self.model.get_output_embeddings().weight.shape[-1]

    @property
    def context_length(self) -> int | None:
        """Number of tokens that the model reads and writes in all; None where it does not say."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @property
    def is_quantized(self) -> bool:
        """Whether the weights are kept in 4 bits."""
        return bool(getattr(self.model, "is_quantized", False))

    def marker_rows(self) -> dict[str, list[int]]:
        """The rows of [SEG] and [ABS] in both embeddings.

        This is what peft's `LoraConfig(trainable_token_indices=...)` takes.
        """
        embeddings = (self.model.get_input_embeddings(), self.model.get_output_embeddings())
        return {
            name.rsplit(".", 1)[-1]: [self.seg, self.abs]
            for name, module in self.model.named_modules()
            if any(module is embedding for embedding in embeddings)
        }

    def prompt(self, turns: list[Turn], system: str = SYSTEM_PROMPT) -> str:
        """A conversation as the text that the model reads.

        If the last turn has no answer yet, the text ends where the assistant speaks next.
        """
        messages = chat_messages(turns, self.live_tokens, system)
        if not self._has_system_role:
            instruction = messages.pop(0)["content"][0]["text"]
            question = messages[0]["content"][-1]
            question["text"] = f"{instruction}\n\n{question['text']}"
        return self.processor.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=turns[-1].answer is None,
            **self._template_options,
        )

    def tokenizer_options(self, text: str) -> dict[str, bool]:
        """Options under which the tokenizer adds no second <bos> to one that a template wrote."""
        bos = self.tokenizer.bos_token
        return {"add_special_tokens": False} if bos and text.startswith(bos) else {}

    def encode(self, text: str, turns: list[Turn]) -> Any:
        """The model's inputs for a text of `prompt` and the images of its turns, a batch of one.

        Raises BadInput where the processor cannot read them.
        """
        return self.encode_batch([text], [turns])

    def encode_batch(self, texts: list[str], conversations: list[list[Turn]]) -> Any:
        """The model's inputs for several texts of `prompt` and the images of their turns.

        This is where images reach the processor, each in the size and shape of `image_fit`.

        Args:
            texts: Shorter ones are padded, if there are several.
            conversations: For each text, the turns that hold its images.

        Raises:
            BadInput: The processor cannot read them.
        """
        from PIL import Image

        images = [
            [
                Image.fromarray(self._fitted_images.fit(image, self.image_fit))
                for turn in turns
                for image in turn.images
            ]
            for turns in conversations
        ]
        try:
            inputs = self.processor(
                text=texts,
                images=images if any(images) else None,
                images_kwargs=dict(self.image_fit.processor_options),
                return_tensors="pt",
                padding=len(texts) > 1,
                **self.tokenizer_options(texts[0]),
            )
        except ValueError as e:
            raise BadInput(f"this model cannot read the image or the question: {first_line(e)}") from e
        # The `.weight` of an embedding that peft tunes is computed anew at each access.
        weight = next(self.model.get_input_embeddings().parameters())
        return inputs.to(weight.device, dtype=weight.dtype)

    def reply(
        self,
        turns: list[Turn],
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        seed: int | None = None,
        stream: Callable[[str], Any] | None = None,
    ) -> Reply:
        """Answer the last turn.

        Args:
            turns: Earlier turns with their answers, then the one to answer. Images, (H, W, 3) uint8 RGB,
                belong to the turn they came with; there may be any number.
            max_new_tokens: The reply is cut off after so many tokens.
            temperature: 0 for greedy decoding.
            seed: Fixes what is sampled.
            stream: Called with each new piece of the text.

        Raises:
            BadInput: The conversation is too long for the model or the memory.
        """
        if not turns or turns[-1].answer is not None:
            raise ValueError("the last turn is the question to answer")
        if not self.has_markers:
            raise ValueError("this model was loaded without tokens for [SEG] and [ABS]")
        states: list[Tensor] = []
        head = self.model.get_output_embeddings()
        with self.lock, head.register_forward_pre_hook(lambda _, args: states.append(args[0][0, -1])):
            ids, output = self.generate(
                self.prompt(turns),
                turns,
                max_new_tokens,
                temperature,
                seed,
                streamer=ReplyStreamer(self.decode, stream) if stream else None,
                output_logits=True,
            )
        places = [k for k, token in enumerate(ids) if token in (self.seg, self.abs)]
        margins = [logits[0, self.seg] - logits[0, self.abs] for logits in output.logits]
        return Reply(
            text=neutralise_spelled_markers(ids, places, self.decode).strip(),
            tokens=len(ids),
            markers=[ids[k] == self.seg for k in places],
            states=torch.stack(states)[places].float(),
            margins=torch.stack(margins)[places].float(),
            read_tokens=output.sequences.shape[1] - len(ids),
            image_tokens=self.count_image_tokens(output.sequences),
        )

    def generate(
        self,
        text: str,
        turns: list[Turn],
        max_new_tokens: int,
        temperature: float,
        seed: int | None,
        **options: Any,
    ) -> tuple[list[int], Any]:
        """Generate what follows a text of `prompt`.

        Args:
            text: What the model reads.
            turns: Hold the images of the text.
            max_new_tokens, temperature, seed: See `reply`.
            options: Of transformers' `generate`.

        Returns:
            The new token ids, and all that transformers' `generate` returns.

        Raises:
            BadInput: The conversation is too long for the model or the memory.
        """
        inputs = self.encode(text, turns)
        length = inputs["input_ids"].shape[1]
        limit = self.context_length
        if limit and length + max_new_tokens > limit:
            raise BadInput(
                f"the conversation takes {length:,} tokens and leaves no room for an answer (this model "
                f"reads {limit:,} in all); start a new one, use fewer images, or lower --pixels"
            )
        advice = (
            f"for a conversation of {length:,} tokens: start a new one, lower --pixels (now "
            f"{self.image_fit.max_pixels}), or use --four-bit or a smaller --preset"
        )
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature > 0 else {}
        with torch.inference_mode(), torch.random.fork_rng(enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            with memory_advice(advice):
                output = self.model.generate(
                    **inputs,
                    **sampling,
                    **options,
                    max_new_tokens=max_new_tokens,
                    return_dict_in_generate=True,
                )
        return output.sequences[0, length:].tolist(), output

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, without the tokens that a user does not see."""
        visible = [i for i in ids if i not in self._hidden_tokens]
        return self.tokenizer.decode(visible, clean_up_tokenization_spaces=False)
