"""A multimodal LLM behind an OpenAI-compatible server: vLLM, SGLang, llama.cpp, Ollama, `transformers serve`, the cloud.

    model = RemoteModel("Qwen/Qwen3-VL-32B-Instruct", base_url="http://127.0.0.1:8000/v1")
    said = model.ask([Turn("what keeps the rain off?", images=[image])], SYSTEM, SCHEMA)

Pictures travel inside the request. The form is asked for as structured output, and the probabilities of the tokens with
it; a server that refuses the one or the other is asked without. The key comes from OPENAI_API_KEY and is kept nowhere.
"""

import base64
import io
import os
from typing import NoReturn

import numpy as np

from assistant.errors import BadInput
from assistant.grammar import Turn, chat_messages
from assistant.mllm.structured_output import ALTERNATIVES, Said, Step

SECONDS = 300.0  # for one answer
RETRIES = 2  # of the client, for a server that is busy or away
TYPED = (
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<image>",
    "<s>",
    "</s>",
    "<think>",
    "</think>",
)  # what models use; a question that holds one must not act
BOUNDS = (
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minimum",
    "maximum",
    "multipleOf",
)  # not known to every server
OPTIONAL = (
    "logprobs",
    "response_format",
    "seed",
    "temperature",
)  # what a server may refuse, in the order of trying without


class OpenAIClient:
    """model: its name on the server. base_url: None for OPENAI_BASE_URL or the client's own. BadInput: no client, no key."""

    crops = False  # as far as is known

    def __init__(self, model: str, base_url: str | None = None):
        try:
            import openai
        except ImportError:
            raise BadInput("a model on a server needs the client: pip install 'maskpick[llm]'") from None

        base_url = base_url or os.environ.get("OPENAI_BASE_URL")
        key = os.environ.get("OPENAI_API_KEY", "none" if base_url else None)
        if key is None:
            raise BadInput("set OPENAI_API_KEY, or name a server of your own with --base-url")
        self.openai, self.name, self.where = openai, model, base_url or "the cloud"
        try:
            self.client = openai.OpenAI(api_key=key, base_url=base_url, timeout=SECONDS, max_retries=RETRIES)
        except Exception as error:  # an address that is none
            raise BadInput(f"--base-url {base_url} cannot be used: {_line(error)}") from None
        self.without: set[str] = set()  # what this server does not take

    def check(self) -> None:
        """BadInput where no server answers there, or it refuses the key; costs nothing."""
        try:
            self._errors(lambda: self.client.models.list())
        except self.openai.APIStatusError:  # many servers do not list their models
            pass

    def attention_probe(self) -> NoReturn:
        """A server exposes no attention. Raises BadInput."""
        raise BadInput(
            "a model on a server exposes no attention: use the pocket preset, or --mllm with a folder or a hub id"
        )

    def seen_size(self, image: np.ndarray) -> tuple[int, int]:
        """(w, h) px of a picture (H, W, 3) as the model sees it: as it is sent."""
        return image.shape[1], image.shape[0]

    def ask(
        self,
        turns: list[Turn],
        system: str,
        schema: dict,
        *,
        max_new_tokens: int = 1024,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> Said:
        """The answer to the last turn; that it has the form of `schema` is up to the server. BadInput: no answer."""
        form = {
            "type": "json_schema",
            "json_schema": {"name": schema["title"], "schema": unbounded(schema), "strict": True},
        }
        request = {
            "logprobs": True,
            "top_logprobs": ALTERNATIVES,
            "response_format": form,
            "temperature": temperature,
        }
        request |= {} if seed is None else {"seed": seed}
        messages, without = messages_of(turns, system), set(self.without)
        while True:
            wanted = {k: v for k, v in request.items() if k.removeprefix("top_") not in without}
            try:
                reply = self._errors(
                    lambda: self.client.chat.completions.create(
                        model=self.name, messages=messages, max_tokens=max_new_tokens, **wanted
                    )
                )
                break
            except (self.openai.BadRequestError, self.openai.UnprocessableEntityError) as error:
                left = [k for k in OPTIONAL if k in wanted]
                if not left:
                    raise BadInput(
                        f"the server at {self.where} refuses the request: {_line(error)}"
                    ) from None
                without.add(next((k for k in left if k in str(error)), left[0]))
            except self.openai.APIStatusError as error:
                raise BadInput(
                    f"the server at {self.where} failed ({error.status_code}): {_line(error)}"
                ) from None
        self.without = without  # it was that which the server did not take
        return self._said(reply)

    def _errors(self, call):
        """What `call` returns; what can be told in a line, as BadInput. Other status errors are the caller's."""
        openai = self.openai
        try:
            return call()
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise BadInput(
                f"the server at {self.where} refuses the key: set OPENAI_API_KEY ({_line(error)})"
            ) from None
        except openai.NotFoundError as error:
            if "models" in str(error.request.url):
                raise
            raise BadInput(f"the server at {self.where} does not know {self.name}: {_line(error)}") from None
        except openai.RateLimitError as error:
            raise BadInput(
                f"the server at {self.where} is busy, or what was paid for is spent: {_line(error)}"
            ) from None
        except openai.APITimeoutError:
            raise BadInput(f"the server at {self.where} gave no answer in {SECONDS:.0f} s") from None
        except openai.APIConnectionError as error:
            raise BadInput(
                f"no server answers at {self.where}: start it, or give another --base-url ({_line(error)})"
            ) from None
        except openai.APIStatusError:
            raise
        except (openai.OpenAIError, ValueError, TypeError) as error:  # not even an envelope
            raise BadInput(
                f"what answers at {self.where} does not speak the OpenAI protocol: {_line(error)}; "
                "does its address end in /v1?"
            ) from None

    def _said(self, reply) -> Said:
        try:
            choice = reply.choices[0]
            text, more = choice.message.content or "", choice.message.model_extra or {}
        except (AttributeError, IndexError, TypeError):
            raise BadInput(
                f"what answers at {self.where} does not speak the OpenAI protocol; "
                "does its address end in /v1?"
            ) from None
        tokens = getattr(reply.usage, "completion_tokens", None) or 0
        thought = next(
            (more[k] for k in ("reasoning_content", "reasoning") if isinstance(more.get(k), str)), ""
        )
        steps = [Step(_bytes(t), _likely(t)) for t in getattr(choice.logprobs, "content", None) or []]
        if "</think>" in text:  # a server that leaves the thought in the answer
            before, _, text = text.partition("</think>")
            thought = thought or before.removeprefix("<think>").strip()
            steps = _last_steps(steps, text)
        return Said(text.strip(), thought.strip(), tokens, steps)


def messages_of(turns: list[Turn], system: str) -> list[dict]:
    """Turns in the OpenAI protocol, pictures as data URLs."""
    pictures = iter([image for turn in turns for image in turn.images])
    messages = chat_messages(turns, TYPED, system)
    for message in messages:
        parts = message["content"]
        if all(part["type"] == "text" for part in parts):  # servers of text models take only a string here
            message["content"] = "".join(part["text"] for part in parts)
        else:
            message["content"] = [
                part
                if part["type"] == "text"
                else {"type": "image_url", "image_url": {"url": data_url(next(pictures))}}
                for part in parts
            ]
    return messages


def data_url(image: np.ndarray) -> str:
    """A picture (H, W, 3) uint8 as a JPEG in a data URL: a fifth of a PNG's size."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, format="JPEG", quality=92, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def unbounded(schema):
    """The schema without the bounds that some servers refuse."""
    if isinstance(schema, dict):
        return {k: unbounded(v) for k, v in schema.items() if k not in BOUNDS}
    return [unbounded(v) for v in schema] if isinstance(schema, list) else schema


def _bytes(token) -> bytes:
    return bytes(token.bytes) if getattr(token, "bytes", None) else token.token.encode()


def _likely(token) -> dict[bytes, float]:
    likely = {_bytes(token): float(np.exp(token.logprob))}
    for other in getattr(token, "top_logprobs", None) or []:
        likely[_bytes(other)] = float(np.exp(other.logprob))
    return likely


def _last_steps(steps: list[Step], text: str) -> list[Step]:
    """The steps that make up the end of an answer; [] where they do not fit it."""
    whole, size = b"", len(text.encode())
    for k in range(len(steps) - 1, -1, -1):
        whole = steps[k].piece + whole
        if len(whole) >= size:
            return steps[k:] if whole == text.encode() else []
    return []


def _line(error: Exception) -> str:
    """What a server or the client says went wrong, in a line."""
    body = getattr(error, "body", None)
    said = (body.get("message") or body.get("detail")) if isinstance(body, dict) else None
    return " ".join(str(said or error).split())[:160]
