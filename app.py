"""The chat page: drop a photo, ask in everyday words, and see what is meant outlined, or said to be absent.

    python app.py                               # the pocket preset on http://127.0.0.1:7860
    python app.py --adapter DIR                 # with what `python -m finetune` wrote into DIR
    python app.py --mllm openai:qwen3-vl --base-url http://127.0.0.1:8000/v1     # a larger model on a server
    python app.py --host 0.0.0.0 --port 8080    # let other machines on the network in
    python app.py --auth user:password          # ask for a name and a password first
    python app.py --records corrections         # save what visitors correct as training records in a folder
    python app.py --mcp                         # its actions as tools, too (pip install 'maskpick[mcp]')
    python app.py --open                        # show it in the browser at once

The parts of the page are in `assistant/page`; every action ends in one call into `assistant`. A program can
call the same actions through gradio_client: see `assistant/page/api.py`.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":  # Ctrl-C may come while the modules below are imported
    from assistant.interruption import end_at_once

    signal.signal(signal.SIGINT, end_at_once)

import argparse
import contextlib
import os
import sys
import tempfile
import threading
import webbrowser
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from assistant.cli import add_model_arguments, model_options, open_assistant
from assistant.errors import BadInput, exit_code

if TYPE_CHECKING:  # Gradio is loaded when the page is, so that --help is instant
    import gradio as gr

MAX_UPLOAD_SIZE = "50mb"
MAX_SESSIONS = 50  # in memory with their photos; the one that is idle longest makes room for another
MAX_PORT = 65535
MAX_CACHED_IMAGES = 24  # opened images that all sessions share; the pocket preset's take 8 MB each


def main(argv: list[str] | None = None) -> int:
    """Open the page and serve it until the process is told to stop; returns the exit code."""
    args = build_parser().parse_args(argv)
    signal.signal(signal.SIGTERM, end)  # so that the visitors' files are deleted
    return exit_code(lambda: run_in_new_folder(args))


def end(number: int, frame: FrameType | None) -> NoReturn:
    """Handle a signal: end the process as it ends by itself."""
    sys.exit(0)


def run_in_new_folder(args: argparse.Namespace) -> None:
    """Run with a folder for all files that the page reads and serves, which is deleted at the end."""
    with tempfile.TemporaryDirectory(prefix="maskpick-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "uploads")
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        run(args, Path(folder))


def build_parser() -> argparse.ArgumentParser:
    """The command line of the page."""
    parser = argparse.ArgumentParser(prog="app.py", description="Open the chat page.")
    add_model_arguments(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: 127.0.0.1); 0.0.0.0 lets other machines in",
    )
    parser.add_argument(
        "--port", type=port_number, default=7860, help="port to listen on (default: 7860); 0: a free one"
    )
    parser.add_argument(
        "--share",
        choices=("on", "off"),
        nargs="?",
        const="on",
        default="off",
        help="ask Gradio for a public link as well (default: off)",
    )
    parser.add_argument(
        "--auth",
        type=name_and_password,
        metavar="USER:PASSWORD",
        help="ask for this name and password first",
    )
    parser.add_argument(
        "--records",
        type=Path,
        metavar="DIR",
        help="save what visitors correct as training records in this folder",
    )
    parser.add_argument(
        "--open", action="store_true", help="show the page in the browser, where there is one"
    )
    parser.add_argument(
        "--mcp", action="store_true", help="offer the actions as tools of an MCP server as well"
    )
    return parser


def port_number(text: str) -> int:
    """Read a port."""
    if not (text.isascii() and text.isdigit() and int(text) <= MAX_PORT):
        raise argparse.ArgumentTypeError(f"{text[:20]} is no port: give a number from 0 to {MAX_PORT}")
    return int(text)


def name_and_password(text: str) -> tuple[str, str]:
    """Read "name:password"; the password may hold further colons."""
    name, _, password = text.partition(":")
    if not (name and password):
        raise argparse.ArgumentTypeError("give a name and a password with a colon between them")
    return name, password


def run(args: argparse.Namespace, folder: Path) -> None:
    """Load the models and serve the page; folder: an empty one for the example photos."""
    from assistant.page.examples import save_examples
    from assistant.page.layout import build_page
    from assistant.presets import preset_named

    options = model_options(args)
    if sys.stdout.isatty():
        print(f"Loading {options.describe()}...", end="\r", flush=True)  # until the address takes its place
    assistant = open_assistant(options)
    assistant.cache_size = MAX_CACHED_IMAGES
    limits = preset_named(options.preset).limits if options.is_embedded else ""
    page = build_page(assistant, save_examples(folder), args.records, limits)
    _, address, public_address = serve(
        page, args.host, args.port or None, args.share == "on", args.auth, args.mcp, block=False
    )
    print(where_it_is(address, public_address, args.mcp), flush=True)
    if args.open:
        open_browser(address)
    wait_for_the_end()


def where_it_is(address: str, public_address: str | None, mcp: bool) -> str:
    """The line that a start prints.

    Args:
        address: Of the page on this machine.
        public_address: Of the page for everybody; None where it has none.
        mcp: Whether it is an MCP server as well.
    """
    tools = f", its tools for programs at {address.rstrip('/')}/gradio_api/mcp/" if mcp else ""
    shared = (
        f"; everybody can open {public_address}" if public_address else "; --share on makes a public link"
    )
    return f"The chat is at {address}{tools}{shared}. Ctrl-C ends it."


def open_browser(address: str) -> None:
    """Show an address in the browser; nothing happens where there is none, or no screen."""
    has_screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform.startswith("linux") and not has_screen:
        return  # a browser for the terminal would take the terminal over
    with contextlib.suppress(webbrowser.Error):
        webbrowser.open(address)


def wait_for_the_end() -> NoReturn:
    """Wait for Ctrl-C or SIGTERM, which end the process and all its threads."""
    while True:
        threading.Event().wait()


def serve(
    page: gr.Blocks,
    host: str = "127.0.0.1",
    port: int | None = 7860,
    share: bool = False,
    auth: tuple[str, str] | None = None,
    mcp: bool = False,
    block: bool = True,
) -> tuple[Any, str, str | None]:
    """Launch a page with its theme and its limits.

    Args:
        page: What `assistant.page.layout.build_page` returned.
        host: The address to listen on.
        port: The port to listen on; None for a free one.
        share: Whether to ask Gradio for a public link.
        auth: The name and the password to ask for; None for none.
        mcp: Whether to be an MCP server as well.
        block: Whether to return only once the page is closed.

    Returns:
        The web application, its local address and its public address.

    Raises:
        BadInput: The port is taken, the page cannot be reached on this machine, or `mcp` lacks its package.
    """
    from assistant import page as page_package
    from assistant.page.api import tool_reply

    if mcp:
        check_mcp_package()
    page_folder = Path(page_package.__file__).parent
    try:
        addresses = page.launch(
            server_name=host,
            server_port=port,
            share=share,
            prevent_thread_lock=True,
            theme=page_theme(),
            auth=auth,
            css_paths=page_folder / "page.css",
            js=(page_folder / "page.js").read_text(encoding="utf-8"),
            max_file_size=MAX_UPLOAD_SIZE,
            footer_links=["api"],
            ssr_mode=False,
            show_error=False,
            state_session_capacity=MAX_SESSIONS,
            quiet=True,  # what Gradio would print names options of its own
            mcp_server=mcp,
        )
    except OSError as error:
        reason = error.strerror or "it is in use"
        raise BadInput(f"cannot listen on {host}:{port} ({reason}); choose another with --port") from None
    except ValueError as error:  # Gradio asks the page whether it can be reached
        if "localhost is not accessible" not in str(error):
            raise
        page.close()
        raise BadInput(
            "the page runs but does not answer on this machine: where a proxy is set, set "
            "NO_PROXY=localhost,127.0.0.1; on a busy machine, start it again"
        ) from None
    if mcp:
        server: Any = page.mcp_server_obj  # Gradio has no setting for the form of a tool's reply
        server.postprocess_output_data = lambda data, root_url: tool_reply(data)
        server.convert_strings_to_filedata = lambda value, positions: value  # the endpoints read them
    if block:
        wait_for_the_end()
    return addresses


def check_mcp_package() -> None:
    """Raise BadInput where the package that an MCP server needs is not installed."""
    try:
        import mcp  # noqa: F401
    except ImportError:
        raise BadInput("--mcp needs one more package: pip install 'maskpick[mcp]'") from None


def page_theme() -> gr.Theme:
    """Gradio's Soft theme, with fonts of the visitor's own machine and darker text and buttons.

    Small text in the theme's own colours is hard to read: it needs a contrast of 4.5 to 1 (WCAG 2.1, 1.4.3).
    """
    import gradio as gr

    fonts = ["system-ui", "-apple-system", "Segoe UI", "sans-serif"]
    theme = gr.themes.Soft(
        primary_hue="teal", neutral_hue="slate", font=fonts, font_mono=["ui-monospace", "monospace"]
    )
    theme.set(
        background_fill_primary="*neutral_50",  # as in Soft, whose value `set` would replace by the default
        body_text_color_subdued="*neutral_500",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
    )
    return theme


if __name__ == "__main__":
    sys.exit(main())
