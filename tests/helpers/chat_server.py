"""An OpenAI-compatible server on loopback that answers what the commands ask a model, by rule.

    with ChatServer() as server:
        server.url          # http://127.0.0.1:41234/v1

For `datagen` it writes one question for each listed name and one about a dog that is absent, and agrees with
itself when asked for a second opinion. For the assistant it points at the first mark of the image.
"""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LISTED = re.compile(r"^(\d+)\. ([^:\n]+): ", re.M)  # "2. cup: left, top, small" in what datagen tells a model
ASKED = "Please outline every {} that you can find."


def text_of(message: dict) -> str:
    """The text of a chat message; images left out."""
    content = message["content"]
    return content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content)


def numbers_by_name(text: str) -> dict[str, list[int]]:
    """What datagen lists, as {name: numbers}."""
    numbers: dict[str, list[int]] = {}
    for number, name in LISTED.findall(text):
        numbers.setdefault(name.partition(" (")[0], []).append(int(number))
    return numbers


def written_questions(text: str) -> list[dict]:
    rows = [
        ("named", ASKED.format(name), {"phrase": name, "name": name, "numbers": numbers})
        for name, numbers in numbers_by_name(text).items()
    ]
    rows.append(("absent", "Is anything here that barks?", {"phrase": "dog", "name": "dog", "numbers": []}))
    return [
        {"kind": kind, "before": [], "question": question, "targets": [target]}
        for kind, question, target in rows
    ]


def opinion(text: str) -> list[int]:
    """The numbers that a question of `written_questions` is about."""
    _, _, question = text.partition("The question: ")
    return next(
        (numbers for name, numbers in numbers_by_name(text).items() if ASKED.format(name) == question), []
    )


def answer(request: dict) -> dict:
    """The JSON object that a request's schema asks for."""
    schema = request["response_format"]["json_schema"]["schema"]
    text = text_of(request["messages"][-1])
    match schema.get("title"):
        case "questions":
            return {"questions": written_questions(text)}
        case "description":
            return {"description": "A photo of everyday things."}
        case "opinion":
            return {"numbers": opinion(text)}
        case "concepts":
            named = {"phrase": "first one", "seen": True, "concepts": ["cup"], "which": ""}
            return {"thought": "It is a cup.", "targets": [named]}
    marks = schema["properties"]["targets"]["items"]["properties"]["marks"]["items"]["enum"]
    return {"thought": "It is the first.", "targets": [{"phrase": "first one", "marks": marks[:1]}]}


class ChatServer:
    """Runs from its making until `close`, in threads of this process. requests: how many it has answered."""

    def __init__(self) -> None:
        self.requests = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.send({"object": "list", "data": []})

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests += 1
                message = {"role": "assistant", "content": json.dumps(answer(request))}
                self.send(
                    {
                        "id": "1",
                        "object": "chat.completion",
                        "created": 1,
                        "model": request["model"],
                        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                        "usage": {"prompt_tokens": 9, "completion_tokens": 7, "total_tokens": 16},
                    }
                )

            def send(self, content: dict) -> None:
                data = json.dumps(content).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *words: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
