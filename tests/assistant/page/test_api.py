"""The page's actions for programs: gradio_client, and tools of an MCP server."""

import asyncio
import base64
import io
import json
import threading
import time

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from PIL import Image

import app
from assistant.page.layout import build_page
from assistant.sam.mask_ops import decode_rle, encode_rle
from tests.helpers.fake_assistant import COLOURS, FakeAssistant, colour_mask, sample_image

RED, GREEN = (colour_mask(sample_image(), COLOURS[name]) for name in ("red", "green"))


@pytest.fixture
def call(client, photo):
    """call(action, ...): what an endpoint returns for the photo."""
    image = handle_file(str(photo))

    def predict(action, *values, **named):
        return client.predict(image, *values, api_name=f"/{action}", **named)

    return predict


def test_ask_returns_masks(call):
    from pycocotools import mask as coco

    reply = call("ask", "the red one, and is there a bench?")
    ball, bench = reply["targets"]
    assert ball["phrase"] == "red ball" and ball["present"] and ball["confidence"] == pytest.approx(0.92)
    assert not bench["present"] and bench["rle"] is None and "no bench" in reply["text"]
    assert (coco.decode(ball["rle"]).astype(bool) == (sample_image() == COLOURS["red"]).all(-1)).all()
    assert (reply["height"], reply["width"]) == sample_image().shape[:2]


def test_ask_takes_a_region_and_earlier_questions(call):
    assert call("ask", "what is this?", about=encode_rle(GREEN))["targets"][0]["phrase"] == "green box"
    later = call("ask", "now remove the ball", earlier=["red and green"])
    assert [target["phrase"] for target in later["targets"]] == ["green box"]


def test_segment_takes_clicks_boxes_and_masks(call):
    found = call("segment", points=[[60, 150]])
    assert (decode_rle(found["masks"][0]["rle"]) == GREEN).all()
    assert [mask["score"] for mask in found["masks"]] == pytest.approx([0.8, 0.6, 0.4])
    assert len(call("segment", box=[200, 100, 350, 239], multimask=False)["masks"]) == 1
    without_red = call("segment", points=[[250, 170]], labels=[0], mask=encode_rle(RED | GREEN))
    assert (decode_rle(without_red["masks"][0]["rle"]) == GREEN).all()


def test_the_other_actions(call, photo):
    assert [mask["area"] for mask in call("everything", 1.0)["masks"]] == sorted(
        (mask["area"] for mask in call("everything")["masks"]), reverse=True
    )
    listed = call("classes", "red, bench")["classes"]
    assert [(row["name"], row["present"], row["rle"] is None) for row in listed] == [
        ("red", True, False),
        ("bench", False, True),
    ]
    alike = call("segment_like", handle_file(str(photo)), encode_rle(GREEN), "crate")
    assert (decode_rle(alike["rle"]) == GREEN).all()
    heat = Image.open(io.BytesIO(base64.b64decode(call("attend", "ball")["heat"].split(",")[1])))
    assert heat.size == (360, 240) and heat.getextrema() == (pytest.approx(4, abs=4), 255)


def test_an_image_is_opened_once(call, served_page):
    call("ask", "red")
    opened = served_page.assistant.pipeline.opened
    call("ask", "green")
    call("everything")
    assert served_page.assistant.pipeline.opened == opened


@pytest.mark.parametrize(
    "action, arguments",
    [
        ("segment", {"mask": {"size": [1, 1], "counts": "x"}}),
        ("everything", {"granularity": 7}),
        ("classes", {"names": ""}),
        ("ask", {"question": "x", "about": {}}),
        ("ask", {"question": "x", "earlier": ["x"] * 9}),
    ],
)
def test_bad_arguments_are_refused_in_one_line(call, action, arguments):
    with pytest.raises(Exception) as caught:
        call(action, **arguments)
    assert "went wrong" not in str(caught.value) and "\n" not in str(caught.value)


def test_the_actions_are_the_only_public_endpoints(client):
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert list(endpoints) == ["/ask", "/segment", "/everything", "/classes", "/segment_like", "/attend"]
    parameters = {
        name: [parameter["parameter_name"] for parameter in endpoint["parameters"]]
        for name, endpoint in endpoints.items()
    }
    assert parameters == {
        "/ask": ["image", "question", "about", "earlier"],
        "/segment": ["image", "points", "labels", "box", "mask", "multimask"],
        "/everything": ["image", "granularity"],
        "/classes": ["image", "names"],
        "/segment_like": ["image", "reference", "mask", "label"],
        "/attend": ["image", "phrase"],
    }


def test_the_api_page_describes_every_argument_and_reply(client):
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    for endpoint in endpoints.values():
        assert endpoint["description"]
        for parameter in endpoint["parameters"]:
            assert parameter["label"] == parameter["parameter_name"]
            assert len(parameter["python_type"]["description"]) > 10
        (reply,) = endpoint["returns"]
        assert reply["label"] == "reply" and reply["python_type"]["description"].startswith('{"')
    (_, names) = endpoints["/classes"]["parameters"]
    assert names["python_type"]["type"] == "str | list[str]"
    assert "no probability" in endpoints["/attend"]["returns"][0]["python_type"]["description"]


def test_classes_take_a_list_of_names(call):
    rows = call("classes", ["red ball", "bench"])["classes"]
    assert [(row["name"], row["present"]) for row in rows] == [("red ball", True), ("bench", False)]


def test_errors_are_messages(client, photo, no_photo):
    for image, question, message in [
        (handle_file(str(no_photo)), "red?", "holiday.png is not a"),
        (handle_file(str(photo)), " ", "the question is empty"),
        (handle_file(str(photo)), "crash", "something went wrong here"),
        (None, "red?", "the picture is missing"),
    ]:
        with pytest.raises(Exception, match=message) as caught:
            client.predict(image, question, api_name="/ask")
        assert "secret" not in str(caught.value) and str(no_photo.parent) not in str(caught.value)
    reply = client.predict(handle_file(str(photo)), "blue", api_name="/ask")  # the process lives
    assert reply["targets"][0]["present"]


def test_one_request_at_a_time(served_page, photo, monkeypatch):
    """The questions of two programs never compute together."""
    together, running = [], []
    original = served_page.assistant.open

    def watched(image):
        running.append(1)
        together.append(len(running))
        time.sleep(0.05)
        running.pop()
        return original(image)

    monkeypatch.setattr(served_page.assistant, "open", watched)
    clients = [Client(served_page.address, verbose=False) for _ in range(2)]
    threads = [
        threading.Thread(
            target=client.predict, args=(handle_file(str(photo)), "red"), kwargs={"api_name": "/ask"}
        )
        for client in clients * 3
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == [1] * 6


def data_url(photo) -> str:
    return "data:image/png;base64," + base64.b64encode(photo.read_bytes()).decode()


def upload(address, photo) -> str:
    """The path that the page returns for an upload."""
    with photo.open("rb") as file:
        reply = httpx.post(f"{address}gradio_api/upload", files={"files": ("ball.png", file, "image/png")})
    return reply.json()[0]


def ways_to_send(address, photo) -> dict[str, str]:
    """Every way in which a program may give an image as text."""
    path = upload(address, photo)
    return {"path": path, "address": f"{address}gradio_api/file={path}", "data URL": data_url(photo)}


def test_an_image_may_be_given_as_text(client, served_page, photo):
    for image in ways_to_send(served_page.address, photo).values():
        reply = client.predict(image, "the red one", api_name="/ask")
        assert reply["targets"][0]["phrase"] == "red ball"
    left = [file.name for file in (served_page.folder / "uploads").glob("sent-*")]
    assert left == []


@pytest.mark.parametrize(
    "image, reason",
    [
        ("/etc/passwd", "the picture is missing"),
        ("{address}gradio_api/file=/etc/passwd", "the picture is missing"),
        ("https://example.invalid/x.jpg", "cannot be fetched from https://example.invalid/x.jpg"),
        ("{address}config", "cannot be fetched"),
        ("data:image/png;base64,!!!", "not in base64"),
        ("data:image/png,hello", "not in base64"),
        ("data:image/png;base64,aGVsbG8=", "not an image"),
        ("", "the picture is missing"),
        (7, "the picture is missing"),
        ({"url": 3}, "the picture is missing"),
    ],
)
def test_an_image_that_cannot_be_had_is_one_line(client, served_page, image, reason):
    if isinstance(image, str):
        image = image.format(address=served_page.address)
    with pytest.raises(Exception, match=reason) as error:
        client.predict(image, "the red one", api_name="/ask")
    assert "\n" not in str(error.value) and str(served_page.folder) not in str(error.value)


def test_numbers_and_lists_may_be_given_as_text(call):
    assert call("everything", "0.5") == call("everything", 0.5)
    points, mask = [[60, 150]], encode_rle(GREEN)
    plain = call("segment", points=points, labels=[1], mask=mask, multimask=False)
    texts = {"points": [["60", "150"]], "labels": "[1]", "mask": json.dumps(mask), "multimask": "False"}
    assert call("segment", **texts) == plain
    assert call("classes", ["red", "green"]) == call("classes", "red, green")
    for wrong in ("much", "", True, [0.5], "NaN", "2"):
        with pytest.raises(Exception, match="granularity"):
            call("everything", wrong)


def test_what_was_done_to_an_image_is_told(client, tmp_path):
    deep = 290 + sample_image()[..., 0].astype(np.float32) / 10
    Image.fromarray(deep).save(tmp_path / "kelvin.tif")
    reply = client.predict(handle_file(str(tmp_path / "kelvin.tif")), api_name="/everything")
    (note,) = reply["notes"]
    assert note.startswith("kelvin.tif has values from") and "stretched" in note


async def visit_tools(address, photo):
    """The tools of an MCP server, and the results of three calls."""
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    async with (
        streamablehttp_client(f"{address}gradio_api/mcp/") as (reader, writer, _),
        ClientSession(reader, writer) as session,
    ):
        await session.initialize()
        tools = {tool.name: tool for tool in (await session.list_tools()).tools}
        images = ways_to_send(address, photo)

        async def call(action, image=images["data URL"], **arguments):
            name = next(name for name in tools if name.endswith(action))
            return await session.call_tool(name, {"image": image, **arguments})

        for image in images.values():
            assert not (await call("ask", image=image, question="red")).isError
        for image in ("/etc/passwd", "https://example.invalid/x.jpg", "photo.jpg"):
            refused = await call("ask", image=image, question="red")
            assert refused.isError and "data: URL" in refused.content[0].text
        reply = await call("ask", question='red, "yes" and a bench')
        heat = await call("attend", phrase="ball")
        wrong = await call("classes", names="")
        return tools, reply, heat, wrong


def test_mcp_offers_the_same_actions(photo):
    pytest.importorskip("mcp", reason="the mcp extra is not installed")
    blocks = build_page(FakeAssistant())
    _, address, _ = app.serve(blocks, port=None, mcp=True, block=False)
    try:
        tools, reply, heat, wrong = asyncio.run(visit_tools(address, photo))
    finally:
        blocks.close()
    assert len(tools) == 6 and not reply.isError
    assert all(tool.description for tool in tools.values())
    (text,) = reply.content
    answer = json.loads(text.text)
    assert answer["question"] == 'red, "yes" and a bench' and answer["targets"][1]["rle"] is None
    assert (decode_rle(answer["targets"][0]["rle"]) == RED).all()
    size, image = heat.content  # an image is sent as one, not as text
    assert json.loads(size.text) == {"width": 360, "height": 240} and image.mimeType == "image/png"
    assert Image.open(io.BytesIO(base64.b64decode(image.data))).size == (360, 240)
    assert wrong.isError and "the list of classes is empty" in wrong.content[0].text
