"""Hostile files, questions and paths end in one polite line, and nothing but uploads is read or served."""

import gradio_client
import httpx
import pytest
from gradio_client import handle_file
from PIL import Image

import app
from assistant.page import wording
from assistant.page.worker import Worker, error_line
from tests.helpers.fake_assistant import sample_image
from tests.helpers.hostile import KINDS, PIECES, hostile_files, hostile_questions


def test_hostile_files_and_questions_end_in_one_polite_line(assistant, tmp_path):
    good = tmp_path / "good.png"
    Image.fromarray(sample_image()[::4, ::4].copy()).save(good)
    files = hostile_files(tmp_path / "hostile", 2 * len(KINDS))
    cases = [(file, "red") for file in files] + [(good, question) for question in hostile_questions(150)]
    worker = Worker()
    refused = 0
    for file, question in cases:
        try:
            answer = worker.call(lambda file=file, question=question: assistant.open(file).ask(question))
            assert isinstance(wording.reply_bubble(answer), str)
            assert isinstance(wording.summary_line(answer.targets), str)
        except Exception as error:
            refused += 1
            message = error_line(error, file)
            case = (file.name, question[:60], message)
            assert "went wrong" not in message and "\n" not in message and str(tmp_path) not in message, case
    assert 15 < refused < len(cases) - 60


def test_hostile_input_over_the_network(client, photo, tmp_path):
    """A few cases; `python -m tests.helpers.load_app` sends 300 of each to the real preset."""
    cases = [(file, "red") for file in hostile_files(tmp_path / "hostile", 16)[::3]]
    cases += [(photo, question) for question in [*PIECES[:20:6], "\0" * 100_000]]
    for file, question in cases:
        try:
            reply = client.predict(handle_file(str(file)), question, api_name="/ask")
            assert isinstance(reply["text"], str)
        except gradio_client.exceptions.AppError as error:
            message = str(error)
            case = (file.name, question[:50])
            assert "went wrong" not in message and "\n" not in message and len(message) < 700, case


@pytest.fixture
def api_address(client):
    return f"{client.src.rstrip('/')}/gradio_api"


def ask_for(api_address, image) -> str:
    """The events of a call of /ask with this as its image."""
    call = httpx.post(f"{api_address}/call/ask", json={"data": [image, "red"]})
    return httpx.get(f"{api_address}/call/ask/{call.json()['event_id']}", timeout=60).text


def test_only_uploads_are_read(client, api_address, photo):
    outside = str(photo)  # a good photo, but not one that was uploaded
    for image in (
        outside,
        {"path": outside},
        {"path": outside, "meta": {"_type": "gradio.FileData"}},
        {"path": str(photo.parent / "uploads" / ".." / photo.name)},
        {"path": 5},
        {},
        5,
    ):
        events = ask_for(api_address, image)
        assert "event: error" in events and "red ball" not in events
    from_afar = {
        "path": f"{client.src}gradio_api/heartbeat/x",
        "url": f"{client.src}config",
        "meta": {"_type": "gradio.FileData"},
    }
    assert "event: error" in ask_for(api_address, from_afar)


def test_only_uploads_are_served(api_address, photo):
    for path in (
        str(photo),
        app.__file__,
        "/etc/passwd",
        "../../../../etc/passwd",
        "%2e%2e/%2e%2e/etc/passwd",
        "..%2f..%2fetc%2fpasswd",
        f"{photo.parent}/uploads/../{photo.name}",
        f"{photo.parent}/records/records.jsonl",
        "/proc/self/environ",
    ):
        assert httpx.get(f"{api_address}/file={path}").status_code in (403, 404), path


def test_uploads_stay_in_their_folder(api_address, photo):
    upload = httpx.post(f"{api_address}/upload", files={"files": ("../../../evil.png", b"x")})
    assert upload.status_code in (200, 400)
    for found in photo.parent.parent.rglob("evil.png"):
        assert (photo.parent / "uploads") in found.parents
