"""A multimodal LLM on an OpenAI-compatible server.

That is vLLM, SGLang, llama.cpp, Ollama, `transformers serve`, or a provider in the cloud.

    model = OpenAIClient("Qwen/Qwen3-VL-32B-Instruct", base_url="http://127.0.0.1:8000/v1")
    answer = model.ask([Turn("what keeps the rain off?", images=[image])], system, schema)

Images travel inside the request. It asks for structured output and for the probabilities of the tokens; a
server that refuses one of them is asked without it from then on (`assistant.mllm.request_form`). A model that
turns out to think before it answers gets more tokens. The key is read from OPENAI_API_KEY and stored nowhere.
"""

import base64
import io
import os
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import numpy as np
from torch import nn

from assistant.errors import BadInput, Note
from assistant.grammar import Turn
from assistant.mllm.chat_messages import chat_messages
from assistant.mllm.model_image import image_fit_of_server
from assistant.mllm.request_form import RequestForm, is_about_length
from assistant.mllm.structured_answer import (
    MAX_ANSWER_TOKENS,
    MAX_THINKING_TOKENS,
    StructuredAnswer,
    TokenStep,
)

ANSWER_TIMEOUT = 300.0  # seconds
MAX_RETRIES = 2  # of the client, for a server that is busy or away
JPEG_QUALITY = 92  # at which a photo takes a fifth of a PNG's size
MAX_REMEMBERED_IMAGES = 16  # of the conversations of a few visitors: a photo with its sheets of marks is four
MAX_ERROR_LENGTH = 160  # characters of a server's message within ours
# HTTP: the request is not accepted as it is; and failures that are never about an option (key, rate).
UNACCEPTED = (400, 422)
NOT_OPTIONS = (401, 429)

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
Result = TypeVar("Result")


class _Refused(Exception):
    """A request that a server does not accept as it is.

    Attributes:
        message: All that it says.
        line: The same in one line.
        may_be_guessed: Whether it may refuse an option that it does not name.
    """

    def __init__(self, error: Any):
        super().__init__()
        self.message = str(error)
        self.line = _one_line(error)
        self.may_be_guessed = error.status_code in UNACCEPTED and not is_about_length(self.message)


class EncodedImages:
    """The images of conversations as data URLs, so that a turn does not encode those of the turns before it.

    The same image is the same text in every request, by which servers know what they have read already.
    """

    def __init__(self) -> None:
        self._urls: dict[int, tuple[weakref.ref[np.ndarray], str]] = {}
        self._lock = threading.Lock()

    def url(self, image: np.ndarray) -> str:
        """`data_url(image)`, remembered as long as the image exists, which must not change."""
        with self._lock:
            source, url = self._urls.pop(id(image), (None, ""))
        if source is None or source() is not image:
            url = data_url(image)
        with self._lock:
            self._urls[id(image)] = (weakref.ref(image), url)
            while len(self._urls) > MAX_REMEMBERED_IMAGES:
                del self._urls[next(iter(self._urls))]
        return url


class OpenAIClient:
    """A model on a server; a `structured_answer.StructuredModel`.

    Args:
        model: Its name on the server.
        base_url: Address of the server; None for OPENAI_BASE_URL, or else the client's own default.
        pixels: px of an image, at most; None for what suits the model's family.
        max_tokens: Tokens that the model may write for one answer, its thoughts included; None for
            `MAX_ANSWER_TOKENS`, and `MAX_THINKING_TOKENS` more once it turns out to think.

    Attributes:
        name: The model's name on the server.
        image_fit: How it is shown images.

    Raises:
        BadInput: The client is not installed, there is no key, or the address is malformed.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        pixels: int | None = None,
        max_tokens: int | None = None,
    ):
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
        self._max_tokens = max_tokens
        self._thinks = False
        self._form = RequestForm()  # what this server takes, as far as it is known
        self._noted: set[str] = set()  # what the user was told is missing
        self._encoded_images = EncodedImages()

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
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> StructuredAnswer:
        """See `structured_answer.StructuredModel`; the server may not keep to the schema."""
        parameters: dict[str, Any] = {
            "logprobs": True,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": schema["title"], "schema": unbounded(schema), "strict": True},
            },
            "temperature": temperature,
        }
        if seed is not None:
            parameters["seed"] = seed
        messages = messages_of(turns, system, self._encoded_images.url)
        asked_for = max_new_tokens or self._max_tokens
        limit = asked_for or MAX_ANSWER_TOKENS + (MAX_THINKING_TOKENS if self._thinks else 0)
        answer = self._read(self._send(messages, parameters, limit))
        thought_before = self._thinks
        self._thinks = thought_before or answer.thinks
        if answer.is_cut and answer.thinks and not thought_before and asked_for is None:
            limit = MAX_ANSWER_TOKENS + MAX_THINKING_TOKENS
            longer = self._read(self._send(messages, parameters, limit))
            longer.add_cost(answer)
            answer = longer
        if answer.is_cut and not answer.text:
            raise BadInput(
                f"{self.name} wrote no answer within {limit:,} tokens, which its thoughts used up: allow it "
                f"more with --max-tokens {4 * limit}, or take a model that thinks less"
            )
        if not answer.steps:
            self._note(
                "logprobs", "tells no probabilities: the confidence of what is asked about is 1 or 0 there"
            )
        return answer

    def _send(self, messages: list[Any], parameters: dict[str, Any], limit: int) -> Any:
        """The server's reply, in the form that it takes; what it refuses is found out and remembered.

        Raises BadInput where it refuses the request in every form.
        """
        form = self._form
        guesses: list[RequestForm] | None = None
        while True:
            body = form.body(parameters, limit)
            try:
                reply = self._complete(messages, body)
            except _Refused as refusal:
                named = form.without_named(refusal.message, body)
                if named is not None:
                    form, guesses = named, None
                    continue
                if guesses is None and refusal.may_be_guessed:
                    guesses = form.guesses(body)
                if not guesses:
                    raise BadInput(
                        f"the server at {self._address} refuses the request: {refusal.line}"
                        + (f" (--max-tokens is {limit})" if is_about_length(refusal.message) else "")
                    ) from None
                form = guesses.pop(0)
            else:
                self._form = form
                if "response_format" in form.left_out:
                    self._note("response_format", "takes no JSON schema: some answers may lack the form")
                return reply

    def _complete(self, messages: list[Any], body: dict[str, Any]) -> Any:
        """The server's reply. Raises BadInput, or _Refused where the server refuses the options in `body`."""

        def create() -> Any:
            try:
                return self._client.chat.completions.create(model=self.name, messages=messages, **body)
            except self._openai.APIStatusError as error:
                # OpenAI refuses log-probabilities with 403, others what they lack with 500 or 501.
                is_named = any(name in str(error) for name in body)
                if error.status_code in UNACCEPTED or (is_named and error.status_code not in NOT_OPTIONS):
                    raise _Refused(error) from None
                raise

        try:
            return self._call(create)
        except self._openai.APIStatusError as error:
            raise BadInput(
                f"the server at {self._address} failed ({error.status_code}): {_one_line(error)}"
            ) from None

    def _note(self, missing: str, consequence: str) -> None:
        """Tell the user once what this server lacks."""
        if missing not in self._noted:
            self._noted.add(missing)
            warnings.warn(f"the server at {self._address} {consequence}", Note, stacklevel=2)

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
        usage = reply.usage
        details = getattr(usage, "completion_tokens_details", None)
        # vLLM and others call what a model thought "reasoning_content", llama.cpp and others "reasoning".
        names = ("reasoning_content", "reasoning")
        thought = next((extra[name] for name in names if isinstance(extra.get(name), str)), "")
        steps = [_step(token) for token in getattr(choice.logprobs, "content", None) or []]
        if "</think>" in text:  # a server that leaves the thought in the answer
            before, _, text = text.partition("</think>")
            thought = thought or before.removeprefix("<think>").strip()
            steps = _last_steps(steps, text)
        is_cut = choice.finish_reason == "length"
        return StructuredAnswer(
            text.strip(),
            thought.strip(),
            getattr(usage, "completion_tokens", None) or 0,
            steps,
            read_tokens=getattr(usage, "prompt_tokens", None),
            is_cut=is_cut,
            # Not every server tells its thoughts, or how long they were.
            thinks=bool(
                thought or getattr(details, "reasoning_tokens", None) or (is_cut and not text.strip())
            ),
        )


def messages_of(turns: list[Turn], system: str, url_of: Callable[[np.ndarray], str]) -> list[dict[str, Any]]:
    """Turns as messages of the OpenAI protocol, with images as data URLs.

    Args:
        turns, system: See `structured_answer.StructuredModel.ask`.
        url_of: Gives the data URL of an image.
    """
    images = iter([image for turn in turns for image in turn.images])
    messages = chat_messages(turns, LIVE_TOKENS, system)
    for message in messages:
        parts = message["content"]
        if all(part["type"] == "text" for part in parts):  # servers of text models accept only a string here
            message["content"] = "".join(part["text"] for part in parts)
        else:
            message["content"] = [
                part if part["type"] == "text" else _image_part(url_of(next(images))) for part in parts
            ]
    return messages


def _image_part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


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
