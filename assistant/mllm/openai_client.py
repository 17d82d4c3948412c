"""A multimodal LLM on an OpenAI-compatible server.

That is vLLM, SGLang, llama.cpp, Ollama, `transformers serve`, or a provider in the cloud.

    model = OpenAIClient("Qwen/Qwen3-VL-32B-Instruct", base_url="http://127.0.0.1:8000/v1")
    answer = model.ask([Turn("what keeps the rain off?", images=[image])], system, schema)

Images travel inside the request. It asks for structured output and for the probabilities of the tokens; a
server that refuses one of them is asked without it. The key is read from OPENAI_API_KEY and stored nowhere.
"""

import base64
import io
import os
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import numpy as np
from torch import nn

from assistant.errors import BadInput
from assistant.grammar import Turn
from assistant.mllm.chat_messages import chat_messages
from assistant.mllm.model_image import image_fit_of_server
from assistant.mllm.structured_answer import StructuredAnswer, TokenStep

ANSWER_TIMEOUT = 300.0  # seconds
MAX_RETRIES = 2  # of the client, for a server that is busy or away
MAX_ALTERNATIVES = 20  # tokens whose probability is asked for at each step, the most that OpenAI's API allows
JPEG_QUALITY = 92  # at which a photo takes a fifth of a PNG's size
MAX_ERROR_LENGTH = 160  # characters of a server's message within ours

# Tokens that structure a chat in the common models; they must have no power where a user types them.
LIVE_TOKENS = (
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
)
# Keywords of JSON schema that some servers do not support.
BOUND_KEYWORDS = (
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minimum",
    "maximum",
    "multipleOf",
)
# Options that a server may refuse, in the order in which they are left out.
OPTIONAL_PARAMETERS = ("logprobs", "response_format", "seed", "temperature")

Result = TypeVar("Result")


class OpenAIClient:
    """A model on a server; a `structured_answer.StructuredModel`.

    Args:
        model: Its name on the server.
        base_url: Address of the server; None for OPENAI_BASE_URL, or else the client's own default.
        pixels: px of an image, at most; None for what suits the model's family.

    Attributes:
        name: The model's name on the server.
        image_fit: How it is shown images.

    Raises:
        BadInput: The client is not installed, there is no key, or the address is malformed.
    """

    def __init__(self, model: str, base_url: str | None = None, pixels: int | None = None):
        try:
            import openai
        except ImportError:
            raise BadInput("a model on a server needs the client: pip install 'maskpick[llm]'") from None

        base_url = base_url or os.environ.get("OPENAI_BASE_URL")
        key = os.environ.get("OPENAI_API_KEY", "none" if base_url else None)
        if key is None:
            raise BadInput("set OPENAI_API_KEY, or name a server of your own with --base-url")
        self.name = model
        self.image_fit = image_fit_of_server(model, pixels)
        self._openai = openai
        self._address = base_url or "the cloud"
        try:
            self._client = openai.OpenAI(
                api_key=key, base_url=base_url, timeout=ANSWER_TIMEOUT, max_retries=MAX_RETRIES
            )
        except Exception as error:  # a malformed address raises several kinds of errors
            raise BadInput(f"--base-url {base_url} cannot be used: {_one_line(error)}") from None
        self._refused: set[str] = set()  # the optional parameters that this server does not accept

    def check(self) -> None:
        """Ask the server for its models, which costs nothing.

        Raises BadInput where it does not answer or refuses the key.
        """
        try:
            self._call(self._client.models.list)
        except self._openai.APIStatusError:  # many servers do not list their models
            pass

    def attention_probe(self) -> NoReturn:
        """Raises BadInput, because a server exposes no attention."""
        raise BadInput(
            "a model on a server exposes no attention: use the pocket preset, "
            "or --mllm with a folder or a hub id"
        )

    def networks(self) -> dict[str, nn.Module]:
        """None: they are on the server."""
        return {}

    def input_size(self, image: np.ndarray) -> tuple[int, int]:
        """(width, height) in px of an image (H, W, 3): it is sent as it is."""
        return image.shape[1], image.shape[0]

    def ask(
        self,
        turns: list[Turn],
        system: str,
        schema: dict[str, Any],
        *,
        max_new_tokens: int = 1024,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> StructuredAnswer:
        """See `structured_answer.StructuredModel`; the server may not keep to the schema."""
        parameters: dict[str, Any] = {
            "logprobs": True,
            "top_logprobs": MAX_ALTERNATIVES,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": schema["title"], "schema": unbounded(schema), "strict": True},
            },
            "temperature": temperature,
        }
        if seed is not None:
            parameters["seed"] = seed
        messages = messages_of(turns, system)
        refused = set(self._refused)
        while True:
            accepted = {k: v for k, v in parameters.items() if k.removeprefix("top_") not in refused}
            try:
                reply = self._complete(messages, max_new_tokens, accepted)
            except (self._openai.BadRequestError, self._openai.UnprocessableEntityError) as error:
                optional = [name for name in OPTIONAL_PARAMETERS if name in accepted]
                if not optional:
                    raise BadInput(
                        f"the server at {self._address} refuses the request: {_one_line(error)}"
                    ) from None
                refused.add(next((name for name in optional if name in str(error)), optional[0]))
            else:
                break
        self._refused = refused  # the request succeeded, so it was these that the server refused
        return self._read(reply)

    def _complete(self, messages: list[Any], max_new_tokens: int, parameters: dict[str, Any]) -> Any:
        """The server's reply.

        Raises BadInput, or the client's error where the server refuses the parameters.
        """
        try:
            return self._call(
                lambda: self._client.chat.completions.create(
                    model=self.name, messages=messages, max_tokens=max_new_tokens, **parameters
                )
            )
        except (self._openai.BadRequestError, self._openai.UnprocessableEntityError):
            raise
        except self._openai.APIStatusError as error:
            raise BadInput(
                f"the server at {self._address} failed ({error.status_code}): {_one_line(error)}"
            ) from None

    def _call(self, request: Callable[[], Result]) -> Result:
        """What `request` returns.

        Raises BadInput for an error that one line explains; other status errors pass.
        """
        openai = self._openai
        try:
            return request()
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise BadInput(
                f"the server at {self._address} refuses the key: set OPENAI_API_KEY ({_one_line(error)})"
            ) from None
        except openai.NotFoundError as error:
            if "models" in str(error.request.url):
                raise
            raise BadInput(
                f"the server at {self._address} does not know {self.name}: {_one_line(error)}"
            ) from None
        except openai.RateLimitError as error:
            raise BadInput(
                f"the server at {self._address} is busy, or the account's credit is spent: {_one_line(error)}"
            ) from None
        except openai.APITimeoutError:
            raise BadInput(
                f"the server at {self._address} gave no answer in {ANSWER_TIMEOUT:.0f} s"
            ) from None
        except openai.APIConnectionError as error:
            raise BadInput(
                f"no server answers at {self._address}: start it, or give another --base-url "
                f"({_one_line(error)})"
            ) from None
        except openai.APIStatusError:
            raise
        except (openai.OpenAIError, ValueError, TypeError) as error:  # the reply is not even an envelope
            raise BadInput(self._no_protocol(_one_line(error) + "; ")) from None

    def _no_protocol(self, detail: str = "") -> str:
        return (
            f"what answers at {self._address} does not speak the OpenAI protocol: {detail}"
            "does its address end in /v1?"
        )

    def _read(self, reply: Any) -> StructuredAnswer:
        """The answer in a server's reply. Raises BadInput where there is none."""
        try:
            choice = reply.choices[0]
            text = choice.message.content or ""
            extra = choice.message.model_extra or {}
        except (AttributeError, IndexError, TypeError):
            raise BadInput(self._no_protocol()) from None
        tokens = getattr(reply.usage, "completion_tokens", None) or 0
        # vLLM and others call what a model thought "reasoning_content", llama.cpp and others "reasoning".
        names = ("reasoning_content", "reasoning")
        thought = next((extra[name] for name in names if isinstance(extra.get(name), str)), "")
        steps = [_step(token) for token in getattr(choice.logprobs, "content", None) or []]
        if "</think>" in text:  # a server that leaves the thought in the answer
            before, _, text = text.partition("</think>")
            thought = thought or before.removeprefix("<think>").strip()
            steps = _last_steps(steps, text)
        return StructuredAnswer(text.strip(), thought.strip(), tokens, steps)


def messages_of(turns: list[Turn], system: str) -> list[dict]:
    """Turns as messages of the OpenAI protocol, with images as data URLs."""
    images = iter([image for turn in turns for image in turn.images])
    messages = chat_messages(turns, LIVE_TOKENS, system)
    for message in messages:
        parts = message["content"]
        if all(part["type"] == "text" for part in parts):  # servers of text models accept only a string here
            message["content"] = "".join(part["text"] for part in parts)
        else:
            message["content"] = [
                part if part["type"] == "text" else _image_part(next(images)) for part in parts
            ]
    return messages


def _image_part(image: np.ndarray) -> dict:
    return {"type": "image_url", "image_url": {"url": data_url(image)}}


def data_url(image: np.ndarray) -> str:
    """An image (H, W, 3) uint8 RGB as a JPEG in a data URL."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def unbounded(schema: Any) -> Any:
    """A JSON schema without `BOUND_KEYWORDS`."""
    if isinstance(schema, dict):
        return {k: unbounded(v) for k, v in schema.items() if k not in BOUND_KEYWORDS}
    return [unbounded(v) for v in schema] if isinstance(schema, list) else schema


def _step(token: Any) -> TokenStep:
    """A token of a reply with its alternatives."""
    likely = {_token_bytes(token): float(np.exp(token.logprob))}
    for alternative in getattr(token, "top_logprobs", None) or []:
        likely[_token_bytes(alternative)] = float(np.exp(alternative.logprob))
    return TokenStep(_token_bytes(token), likely)


def _token_bytes(token: Any) -> bytes:
    """The bytes of a token; not every server sends them."""
    return bytes(token.bytes) if getattr(token, "bytes", None) else token.token.encode()


def _last_steps(steps: list[TokenStep], text: str) -> list[TokenStep]:
    """The steps that make up the end of an answer; [] where they do not fit it."""
    end, size = b"", len(text.encode())
    for k in range(len(steps) - 1, -1, -1):
        end = steps[k].token + end
        if len(end) >= size:
            return steps[k:] if end == text.encode() else []
    return []


def _one_line(error: Exception) -> str:
    """What a server or the client says went wrong."""
    body = getattr(error, "body", None)
    message = (body.get("message") or body.get("detail")) if isinstance(body, dict) else None
    return " ".join(str(message or error).split())[:MAX_ERROR_LENGTH]
