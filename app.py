"""The chat page: drop a photo, ask in everyday words, see what is meant outlined, named, or said to be absent.

    python app.py                               # the pocket preset on http://127.0.0.1:7860
    python app.py --adapter DIR                 # with what finetune has written into DIR
    python app.py --mllm openai:qwen3-vl --base-url http://127.0.0.1:8000/v1     # a larger model on a server
    python app.py --host 0.0.0.0 --port 8080    # let other machines on the network in
    python app.py --auth user:password          # ask for a name and a password first
    python app.py --records corrections         # what visitors correct becomes training records in that folder
    python app.py --mcp                         # its actions as an MCP server's tools too (pip install 'maskpick[mcp]')

The page's parts are in `assistant/page`; every action ends in one call into `assistant`. A program can call the same
actions through gradio_client: see `assistant/page/api.py`.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from assistant.cli import add_model_arguments, model_options, open_assistant
from assistant.errors import BadInput, exit_code

LARGEST_FILE = "50mb"
SESSIONS = 50  # with open photos in memory; the one idle longest makes room
KEPT = 24  # opened pictures, by their content: asking about one again, in any session, does not open it again
EXAMPLES = (  # pictures that scikit-image's wheel ships
    ("astronaut", "Find the person, and is there a bear?", "A smiling astronaut in an orange suit"),
    ("chelsea", "Which animal is purring, and is there a dog?", "A tabby cat looking at the camera"),
    ("coffee", "What could I drink from, and is there a dog?", "A cup of coffee with a spoon on a table"),
)


def save_examples(folder: Path) -> list[dict]:
    """Write the example pictures; [{"file": path, "question": str}]. Their file names are their alternative text."""
    import skimage.data
    from PIL import Image

    saved = []
    for name, question, description in EXAMPLES:
        path = Path(folder) / f"{description}.jpg"
        Image.fromarray(getattr(skimage.data, name)()).save(path, quality=92)
        saved.append({"file": path, "question": question})
    return saved


def serve(page, host="127.0.0.1", port=7860, share=False, auth=None, mcp=False, block=True):
    """Launch the page with its look and its limits; (app, local url, public url). auth: (user, password) or None.
    BadInput: the port is taken, or `mcp` without its package."""
    import gradio as gr

    from assistant import page as parts
    from assistant.page.api import tool_reply

    if mcp:
        try:
            import mcp as _  # noqa: F401
        except ImportError:
            raise BadInput("--mcp needs one more package: pip install 'maskpick[mcp]'") from None
    fonts = ["system-ui", "-apple-system", "Segoe UI", "sans-serif"]
    theme = gr.themes.Soft(
        primary_hue="teal", neutral_hue="slate", font=fonts, font_mono=["ui-monospace", "monospace"]
    )
    theme.set(  # darker than Soft's, which is hard to read: small text needs a contrast of 4.5 to 1
        background_fill_primary="*neutral_50",  # Soft's own; `set` forgets it
        body_text_color_subdued="*neutral_500",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_600",
        button_primary_background_fill_hover_dark="*primary_600",
    )
    try:
        where = page.launch(
            server_name=host,
            server_port=port,
            share=share,
            prevent_thread_lock=True,
            theme=theme,
            auth=auth,
            css_paths=Path(parts.__file__).parent / "page.css",
            max_file_size=LARGEST_FILE,
            footer_links=["api"],
            ssr_mode=False,
            show_error=False,
            state_session_capacity=SESSIONS,
            quiet=not block,
            mcp_server=mcp,
        )
    except OSError as error:
        raise BadInput(
            f"cannot listen on {host}:{port} ({error.strerror or 'it is in use'}); choose another with --port"
        ) from None
    except ValueError as error:  # the page asks itself whether it can be reached
        if "localhost is not accessible" not in str(error):
            raise
        page.close()
        raise BadInput(
            "the page runs but does not answer on this machine: where a proxy is set, set NO_PROXY=localhost,127.0.0.1; "
            "on a busy machine, start it again"
        ) from None
    if mcp:
        page.mcp_server_obj.postprocess_output_data = lambda data, root_url: tool_reply(data)
    if block:
        page.block_thread()
    return where


def pair(text: str) -> tuple[str, str]:
    user, colon, password = text.partition(":")
    if not (user and colon and password):
        raise argparse.ArgumentTypeError("give a name and a password with a colon between them")
    return user, password


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="app.py", description="Open the chat page.")
    add_model_arguments(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: 127.0.0.1); 0.0.0.0 lets other machines in",
    )
    parser.add_argument("--port", type=int, default=7860, help="port to listen on (default: 7860)")
    parser.add_argument(
        "--share",
        choices=("on", "off"),
        nargs="?",
        const="on",
        default="off",
        help="ask Gradio for a public link as well (default: off)",
    )
    parser.add_argument(
        "--auth", type=pair, metavar="USER:PASSWORD", help="ask for this name and password first"
    )
    parser.add_argument(
        "--records",
        type=Path,
        metavar="DIR",
        help="save what visitors correct as training records in this folder",
    )
    parser.add_argument(
        "--mcp", action="store_true", help="offer the actions as tools of an MCP server as well"
    )
    args = parser.parse_args(argv)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the visitors' files go with the process
    with tempfile.TemporaryDirectory(prefix="maskpick-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(
            Path(folder) / "uploads"
        )  # the one folder that the page reads and serves
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        return exit_code(lambda: run(args, Path(folder)))


def run(args: argparse.Namespace, folder: Path) -> None:
    from assistant.page.layout import build_page

    print(f"Loading {model_options(args).describe()}...", flush=True)
    start = time.perf_counter()
    assistant = open_assistant(model_options(args))
    assistant.keep = KEPT
    print(f"Loaded in {time.perf_counter() - start:.0f} s.", flush=True)
    page = build_page(assistant, save_examples(folder), args.records)
    serve(page, args.host, args.port, args.share == "on", args.auth, args.mcp)


if __name__ == "__main__":
    sys.exit(main())
