"""A language model's server for tests: real HTTP on loopback in OpenAI's protocol, answering well or badly.

    server = ScriptedServer()
    server.url                          # for --base-url
    server.faults = [500, "half"]       # what it does instead of answering, a fault a request
    server.bodies                       # what it was asked
    server.close()

It writes the questions of `WRITTEN` about every image of `tests.helpers.datagen_images.write_three_images`,
and its second opinions are those of `MEANT`.
"""

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-secret"  # must not be found anywhere


def question(
    kind: str, text: str, *targets: tuple[str, str, list[int]], before: tuple = ()
) -> dict[str, Any]:
    """A question as a model writes it. targets: (phrase, name, numbers); before: (text, targets) of
    earlier turns."""
    earlier = [_turn(*turn) for turn in before]
    return _turn(text, targets) | {"kind": kind, "before": earlier}


def _turn(text: str, targets) -> dict[str, Any]:
    rows = [{"phrase": phrase, "name": name, "numbers": list(numbers)} for phrase, name, numbers in targets]
    return {"question": text, "targets": rows}


# In the list that a model is given: 1 is the cat, 2 the left cup, 3 the right cup.
WRITTEN = [
    question("implicit", "Who is purring over there?", ("cat", "cat", [1])),
    question("implicit", "Which one is the cat that sleeps?", ("cat", "cat", [1])),  # names it
    question("implicit", "What could I drink out of?", ("cup", "cup", [2])),  # leaves one out
    question("named", "Please find all the cups.", ("cups", "cup", [2, 3])),
    question("named", "Find all the cups, please!", ("cups", "cup", [2, 3])),  # the same again
    question("position", "Where is the cup on the left?", ("cup on the left", "cup", [2])),
    question("absent", "Is anything here that barks?", ("dog", "dog", [])),
    question("absent", "Is there a kitten anywhere?", ("kitten", "cat", [])),  # there is a cat
    question(
        "multi", "I need the animal and the drinking vessels.", ("cat", "cat", [1]), ("cups", "cup", [2, 3])
    ),
    # The second opinion differs.
    question("position", "Show me the rightmost thing to drink from.", ("right cup", "cup", [3])),
    question("named", "Where is number nine?", ("cup", "cup", [9])),  # there is no number nine
    question(
        "followup",
        "And which of them is further to the left?",
        ("left cup", "cup", [2]),
        before=(("What could I drink out of?", [("cups", "cup", [2, 3])]),),
    ),
    question("followup", "And the other one there?", ("cup", "cup", [3])),  # follows nothing
    question("part", "Where can I hold it by its handle?", ("handle", "cup", [2])),  # a cup is no part
]
# What a question means, by a part of its text.
MEANT = {
    "further to the left": [2],
    "purring": [1],
    "all the cups": [2, 3],
    "on the left": [2],
    "barks": [],
    "drinking vessels": [1, 2, 3],
    "rightmost": [2],
}
# Instead of the content of an answer.
BAD_CONTENTS = {
    "half": '{"questions": [{"kind": "imp',
    "rubbish": "Sure! Here you are: ...",
    "form": '{"questions": [{"kind": 3}]}',
    "empty": "",
}


def scripted_answer(title: str, last_text: str) -> dict[str, Any]:
    """A good answer to a request without an image. title: of the schema; last_text: the last message."""
    if title == "questions":
        return {"questions": WRITTEN}
    asked = last_text.split("The question: ")[1]
    return {"numbers": next(numbers for part, numbers in MEANT.items() if part in asked)}


def chat_completion(answer: str, model: str = "stub") -> bytes:
    """A reply in OpenAI's form, with the tokens that it cost."""
    message = {"role": "assistant", "content": answer}
    return json.dumps(
        {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": model,
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150},
        }
    ).encode()


class ScriptedServer:
    """The server, running.

    Attributes:
        url: Its address.
        faults: What to do instead of answering, an entry a request, as long as there are any: an HTTP status,
            "nothing", or a key of `BAD_CONTENTS`.
        bodies: Of all requests so far.
        seconds: That every answer takes.
        now, most: Requests that are being answered, and the most there were at once.
        visible: Names of what it sees in every image.
        answers: {title of a schema: answer}, instead of the scripted ones.
        enforces_schemas: Whether it takes a response_format.
        barrier: Holds requests until so many are here; None: answers at once.
        released: How many requests the barrier let go together.
    """

    def __init__(self) -> None:
        self.faults: list[int | str] = []
        self.bodies: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.now = 0
        self.most = 0
        self.visible: set[str] = set()
        self.answers: dict[str, dict[str, Any]] = {}
        self.enforces_schemas = True
        self.barrier: threading.Barrier | None = None
        self.released = 0
        self.lock = threading.Lock()
        self._http = _HttpServer(self)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop answering."""
        self._http.shutdown()
        self._http.server_close()

    def respond(self, body: dict[str, Any]) -> tuple[int, bytes | None]:
        """(status, content) of the response to a request; content None: the connection is closed without
        one."""
        fault = self._begin(body)
        time.sleep(self.seconds)
        self._wait_at_barrier()
        try:
            return self._answer(body, fault)
        finally:
            with self.lock:
                self.now -= 1

    def _begin(self, body: dict[str, Any]) -> int | str | None:
        with self.lock:
            self.bodies.append(body)
            self.now += 1
            self.most = max(self.most, self.now)
            return self.faults.pop(0) if self.faults else None

    def _wait_at_barrier(self) -> None:
        if self.barrier is None:
            return
        try:
            self.barrier.wait(2)
        except threading.BrokenBarrierError:  # the last few are too few
            return
        with self.lock:
            self.released += 1

    def _answer(self, body: dict[str, Any], fault: int | str | None) -> tuple[int, bytes | None]:
        if isinstance(fault, int):
            return fault, _error("no")
        if fault == "nothing":
            return 200, None
        if "response_format" in body and not self.enforces_schemas:
            return 400, _error("unknown field response_format")
        assert KEY not in json.dumps(body["messages"])
        if fault is None:
            content = json.dumps(self._good_answer(body))
        else:
            content = BAD_CONTENTS[fault]
        return 200, chat_completion(content, body["model"])

    def _good_answer(self, body: dict[str, Any]) -> dict[str, Any]:
        content = body["messages"][-1]["content"]
        title = self._title(body)
        if title in self.answers:
            return self.answers[title]
        if title == "description":
            return {"description": "A cat between two cups."}
        if isinstance(content, list):  # with an image: to verify what is said to be absent
            listed = re.findall(r"^(\d+)\. (.*)$", content[-1]["text"], re.M)
            return {"numbers": [int(number) for number, name in listed if name in self.visible]}
        return scripted_answer(title, content)

    def _title(self, body: dict[str, Any]) -> str:
        if "response_format" in body:
            return body["response_format"]["json_schema"]["schema"]["title"]
        # Of the first schema in words: the outer object's.
        return re.search(r'this JSON schema: {"title": "(\w+)"', str(body["messages"][-1]["content"]))[1]


def _error(message: str) -> bytes:
    return json.dumps({"error": {"message": message, "type": "x"}}).encode()


class _HttpServer(ThreadingHTTPServer):
    def __init__(self, scripted: ScriptedServer):
        self.scripted = scripted
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request, client_address) -> None:
        """A client that hangs up is no concern of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _HttpServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, content = self.server.scripted.respond(body)
        if content is None:
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass
