"""The reasoner: any multimodal LLM of transformers, answering in the reply grammar.

    reasoner = Reasoner.load("path/to/Qwen3-VL-4B-Instruct", adapter="runs/lora", device="cuda", four_bit=True)
    reply = reasoner.reply([Turn("what keeps the rain off?", images=[image])], stream=print)
    reply.text, reply.markers, reply.states      # "The umbrella [SEG] does.", [True], (1, hidden)

Each [SEG] or [ABS] comes with the hidden state that predicts it: the last layer's output at the position before the
token, the very vector that the output embedding reads. It is taken while the reply is generated, so it is right
wherever pictures stand in the conversation and whatever number of positions they take.
"""

import os
import threading
from pathlib import Path

import torch
from torch import Tensor

from assistant.errors import BadInput
from assistant.grammar import ABS, SEG, SYSTEM_PROMPT, Turn, chat_messages
from assistant.pipeline import Reply

# Left as they are by 4-bit loading: what sees is small, and suffers most; widths there are no multiple of a block's 64.
WHOLE = ["lm_head", r".*\b(visual|vision_tower|vision_model|multi_modal_projector|connector)\b"]


class MultimodalLLM:
    """A multimodal LLM with its processor; both know [SEG] and [ABS] afterwards. One reply at a time, the rest wait."""

    def __init__(self, model, processor):
        from transformers import GenerationConfig

        self.model, self.processor, self.tokenizer = model.eval(), processor, processor.tokenizer
        add_markers(model, self.tokenizer)
        self.seg, self.abs = self.tokenizer.convert_tokens_to_ids([SEG, ABS])
        added = self.tokenizer.added_tokens_decoder
        ends = model.generation_config.eos_token_id
        ends = [self.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])]
        self.ends = list(dict.fromkeys(int(end) for end in ends if end is not None))
        self.unspoken = {i for i, token in added.items() if token.special} | set(self.ends)
        self.unspoken -= {self.seg, self.abs}
        # Tokens such as <think> are not "special" and yet have power; runs of spaces, in other tokenizers, have none.
        self.typed = [t.content for t in added.values() if t.special or set("<>[]{}|") & set(t.content)]
        pad = self.tokenizer.pad_token_id
        # A checkpoint's own defaults would interfere: its repetition penalty, with the second [SEG] of a reply.
        # A picture's own token in a reply would stand for a picture that is not there.
        pictures = {
            getattr(model.config, k, None) for k in ("image_token_id", "image_token_index", "video_token_id")
        } - {None}
        model.generation_config = GenerationConfig(
            eos_token_id=self.ends,
            pad_token_id=self.ends[0] if pad is None else pad,
            suppress_tokens=sorted(pictures) or None,
        )
        self.quick = {"enable_thinking": False} if "enable_thinking" in processor.chat_template else {}
        self.system_role = True
        try:
            self.system_role = SYSTEM_PROMPT in self.prompt([Turn("?")])
        except Exception:  # templates refuse a role by raising whatever they like
            self.system_role = False
        self.lock = threading.Lock()

    @classmethod
    def load(
        cls,
        name_or_path,
        adapter=None,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        four_bit: bool = False,
    ) -> "MultimodalLLM":
        """name_or_path: a folder in transformers' layout, or a hub id. adapter: a peft folder or hub id on top.

        dtype: float32 on a CPU and bfloat16 elsewhere unless given. four_bit: nf4 weights through bitsandbytes; the
        adapter then stays beside the weights, otherwise it is merged into them. BadInput: what cannot be loaded.
        """
        if str(device).startswith("cuda") and not torch.cuda.is_available():
            raise BadInput(f"there is no GPU for device {device}; use --device cpu")
        check_folder(name_or_path), check_folder(adapter)
        from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig

        if dtype is None:
            dtype = torch.float32 if str(device) == "cpu" else torch.bfloat16
        quantised = (
            BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
                llm_int8_skip_modules=WHOLE,
            )
            if four_bit
            else None
        )
        try:
            processor = AutoProcessor.from_pretrained(name_or_path)
            model = AutoModelForImageTextToText.from_pretrained(
                name_or_path, dtype=dtype, device_map={"": device}, quantization_config=quantised
            )
        except torch.OutOfMemoryError:
            raise BadInput(
                f"{device} has not enough memory for {name_or_path}: use --four-bit, or a smaller --preset"
            ) from None
        except ImportError as e:
            advice = "; pip install 'maskpick[bnb]'" if four_bit and "bitsandbytes" in str(e) else ""
            raise BadInput(f"{name_or_path} needs a package that is missing: {first_line(e)}{advice}") from e
        except Exception as e:  # a broken folder and an unreachable hub raise a dozen kinds
            raise BadInput(
                f"cannot load {name_or_path} as a multimodal LLM; give a folder that holds one, or a hub id "
                f"while the hub can be reached ({first_line(e)})"
            ) from e
        if not hasattr(processor, "image_processor") or not processor.chat_template:
            raise BadInput(
                f"{name_or_path} has no image processor or no chat template; use a chat model that sees"
            )
        llm = cls(model, processor)
        if adapter is not None:
            llm.adapt(adapter, merge=not four_bit)
        return llm

    def adapt(self, adapter, merge: bool) -> None:
        """Put a peft folder or hub id on the model. BadInput: it cannot be read, or was trained on another one."""
        from peft import PeftModel

        try:
            tuned = PeftModel.from_pretrained(self.model, adapter)
        except Exception as e:
            raise BadInput(
                f"cannot load the adapter {adapter}; give a folder that peft saved for this model "
                f"({first_line(e)})"
            ) from e
        rows = tuned.active_peft_config.to_dict().get("trainable_token_indices")
        for ids in rows.values() if isinstance(rows, dict) else [rows] if rows else []:
            if not {self.seg, self.abs} <= set(ids):
                raise BadInput(
                    f"the adapter {adapter} was trained on another model: its [SEG] and [ABS] are tokens "
                    f"{sorted(ids)}, here they are {self.seg} and {self.abs}"
                )
        self.model = (tuned.merge_and_unload() if merge else tuned.get_base_model()).eval()

    def marker_rows(self) -> dict[str, list[int]]:
        """For peft's `LoraConfig(trainable_token_indices=...)`: the rows of [SEG] and [ABS] in both embeddings."""
        both = (self.model.get_input_embeddings(), self.model.get_output_embeddings())
        return {
            name.rsplit(".", 1)[-1]: [self.seg, self.abs]
            for name, module in self.model.named_modules()
            if any(module is one for one in both)
        }

    def prompt(self, turns: list[Turn], system: str = SYSTEM_PROMPT) -> str:
        """The conversation as text, up to where the assistant speaks next if the last turn has no answer yet."""
        messages = chat_messages(turns, self.typed, system)
        if not self.system_role:
            instruction = messages.pop(0)["content"][0]["text"]
            question = messages[0]["content"][-1]
            question["text"] = f"{instruction}\n\n{question['text']}"
        return self.processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=turns[-1].answer is None, **self.quick
        )

    def _bos(self, text: str) -> dict:
        """Options under which a tokenizer does not put a second <bos> before a template's own."""
        bos = self.tokenizer.bos_token
        return {"add_special_tokens": False} if bos and text.startswith(bos) else {}

    def _inputs(self, text: str, turns: list[Turn]):
        from PIL import Image

        images = [Image.fromarray(image) for turn in turns for image in turn.images]
        try:
            inputs = self.processor(
                text=[text], images=[images] if images else None, return_tensors="pt", **self._bos(text)
            )
        except ValueError as e:
            raise BadInput(f"this model cannot read the picture or the question: {first_line(e)}") from e
        weight = next(
            self.model.get_input_embeddings().parameters()
        )  # `.weight` of one that is tuned is computed anew
        return inputs.to(weight.device, dtype=weight.dtype)

    def reply(
        self,
        turns: list[Turn],
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        seed: int | None = None,
        stream=None,
    ) -> Reply:
        """Answer the last turn. Greedy at temperature 0, otherwise sampled (the same again for the same seed).

        turns: earlier ones with their answers; images, (H, W, 3) uint8, with the turn they came with, any number.
        stream: called with each new piece of the text. BadInput: the conversation is too long for the model.
        """
        if not turns or turns[-1].answer is not None:
            raise ValueError("the last turn is the question to answer")
        states: list[Tensor] = []
        head = self.model.get_output_embeddings()
        with self.lock, head.register_forward_pre_hook(lambda _, args: states.append(args[0][0, -1])):
            ids, out = self.generate(
                self.prompt(turns),
                turns,
                max_new_tokens,
                temperature,
                seed,
                streamer=_Pieces(self.spoken, stream) if stream else None,
                output_logits=True,
            )
        places = [k for k, token in enumerate(ids) if token in (self.seg, self.abs)]
        margins = [logits[0, self.seg] - logits[0, self.abs] for logits in out.logits]
        return Reply(
            text=self.spoken(ids).strip(),
            tokens=len(ids),
            markers=[ids[k] == self.seg for k in places],
            states=torch.stack(states)[places].float(),
            margins=torch.stack(margins)[places].float(),
        )

    def generate(
        self, text: str, turns: list[Turn], max_new_tokens: int, temperature: float, seed: int | None, **more
    ):
        """What the model goes on with after `text`: token ids, and all that transformers' `generate` returns."""
        inputs = self._inputs(text, turns)
        length = inputs["input_ids"].shape[1]
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if limit and length + max_new_tokens > limit:
            raise BadInput(
                f"the conversation takes {length:,} tokens and leaves no room for an answer (this model "
                f"reads {limit:,} in all); start a new one, or use fewer or smaller pictures"
            )
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature > 0 else {}
        with torch.inference_mode(), torch.random.fork_rng(enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            try:
                out = self.model.generate(
                    **inputs, **sampling, **more, max_new_tokens=max_new_tokens, return_dict_in_generate=True
                )
            except torch.OutOfMemoryError:
                raise BadInput(
                    f"not enough memory for a conversation of {length:,} tokens: start a new one, or use --four-bit "
                    "or a smaller --preset"
                ) from None
        return out.sequences[0, length:].tolist(), out

    def spoken(self, ids: list[int]) -> str:
        return self.tokenizer.decode(
            [i for i in ids if i not in self.unspoken], clean_up_tokenization_spaces=False
        )

    def teacher(self, turns: list[Turn]):
        """The last turn's answer as a lesson: exactly what `reply` would have to generate after the same question.

        Returns inputs for the model's forward (a batch of one), labels (1, L) int64 with -100 outside the answer and
        the token that ends it, and the positions (n,) int64 whose hidden states predict the answer's [SEG] and [ABS].
        """
        *earlier, last = turns
        if last.answer is None:
            raise ValueError("the last turn needs the answer to learn")
        answer = last.answer.strip()
        prompt = self.prompt([*earlier, Turn(last.question, None, last.images)])
        full = self.prompt([*earlier, Turn(last.question, answer, last.images)])
        # Where a template writes an answered turn differently (thinking models), what generation sees is what counts.
        said, found, rest = full.removeprefix(prompt).partition(answer)
        written = full.startswith(prompt) and found
        after = {
            rest.index(end): end for end in self.tokenizer.convert_ids_to_tokens(self.ends) if end in rest
        }
        end = after[min(after)] if after else self.tokenizer.eos_token
        text = prompt + (said if written else "") + answer + end
        # Pictures take positions that the text does not show, but none after the prompt: count from the end.
        asked, whole = (self.tokenizer(t, **self._bos(t)).input_ids for t in (prompt, text))
        shared = next(
            (k for k, (a, b) in enumerate(zip(asked, whole)) if a != b), min(len(asked), len(whole))
        )
        inputs = self._inputs(text, turns)
        labels = inputs["input_ids"].clone()
        labels[:, : labels.shape[1] - (len(whole) - shared)] = -100
        return inputs, labels, ((labels[0] == self.seg) | (labels[0] == self.abs)).nonzero()[:, 0] - 1

    def conversation(self, turns: list[Turn], taught: list[bool] | None = None):
        """The answers of a conversation as a lesson (taught: of which turns, else of all): inputs and labels as `teacher`
        gives them, and which turns are learned: a template that writes past answers differently from what was said
        leaves only the last."""
        inputs, labels, _ = self.teacher(turns)
        learned = []
        for k in range(len(turns) - 1):
            if taught and not taught[k]:
                learned.append(False)
                continue
            part, said, _ = self.teacher(turns[: k + 1])
            ids, length = part["input_ids"][0], part["input_ids"].shape[1]
            same = torch.equal(ids, inputs["input_ids"][0, :length])
            if same:
                labels[0, :length] = torch.where(said[0] != -100, said[0], labels[0, :length])
            learned.append(same)
        return inputs, labels, [*learned, True]


class _Pieces:
    """A streamer for `generate` that hands on text as soon as later tokens cannot change it."""

    def __init__(self, spoken, receive):
        self.spoken, self.receive, self.ids, self.shown = spoken, receive, None, ""

    def put(self, ids: Tensor) -> None:
        if self.ids is None:  # the prompt comes first
            self.ids = []
            return
        self.ids += ids.flatten().tolist()
        text = self.spoken(self.ids).lstrip()
        if (
            not text.endswith("\ufffd") and text != self.shown
        ):  # bytes that begin a character wait for the rest
            self.receive(text[len(self.shown) :])
            self.shown = text

    def end(self) -> None:
        text = self.spoken(self.ids or []).strip()
        if len(text) > len(self.shown):
            self.receive(text[len(self.shown) :])


def add_markers(model, tokenizer) -> None:
    """Make [SEG] and [ABS] one token each, with rows in both embeddings; those that are there already stay as they are.

    New rows start as the mean of the others, so that an untuned model does not say them; the same on every machine.
    """
    from tokenizers import AddedToken

    new = [token for token in (SEG, ABS) if token not in tokenizer.get_vocab()]
    if not new:
        return
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in new])
    ids = tokenizer.convert_tokens_to_ids(new)
    if max(ids) >= len(model.get_input_embeddings().weight):  # many models keep spare rows
        model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    with torch.no_grad():
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            for values in (module.weight, getattr(module, "bias", None)):
                if values is not None:
                    values[ids] = values[: min(ids)].float().mean(0).to(values.dtype)


def check_folder(name) -> None:
    """BadInput for what is written as a path and is not there; anything else may be a hub id."""
    text = str(name)
    written = (
        isinstance(name, Path) or os.path.isabs(text) or text.startswith((".", "~")) or text.count("/") > 1
    )
    if name is not None and written and not Path(text).is_dir():
        raise BadInput(f"there is no folder {text}; give one that holds the weights, or a hub id")


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
