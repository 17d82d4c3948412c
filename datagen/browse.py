"""Look at a generated set row by row, and throw out what is wrong.

    python -m datagen.browse questions            # opens http://127.0.0.1:8321

What is thrown out stands in `questions/rejected.jsonl` at once, and stays out when the set is written again.
"""

import argparse
import html
import io
import sys
from collections import Counter
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

from assistant.errors import BadInput, exit_code
from assistant.export.drawing import draw_targets
from assistant.grammar import plain
from assistant.images import open_image
from assistant.record import Record, image_path, read_records
from datagen.output import RECORDS_FILE
from datagen.rejected import is_rejected, read_rejected, reject, row_id, take_back
from datagen.sheet import coloured_targets

ROWS_PER_PAGE = 24
MAX_IMAGE_SIDE = 512  # px, of an image on the page
JPEG_QUALITY = 85
CACHED_IMAGES = 256  # drawn ones, about 50 KB each
MAX_FORM_LENGTH = 10_000  # bytes of a posted form: ours have a few hundred
STYLE = """
body{font:15px/1.4 system-ui,sans-serif;margin:1rem auto;max-width:84rem;padding:0 1rem}
body{color:#1d1d1f;background:#fff}
main{display:grid;grid-template-columns:repeat(auto-fill,minmax(19rem,1fr));gap:1rem}
article{border:1px solid #ccc;border-radius:8px;padding:.6rem}
article.out{opacity:.45}
img{width:100%;border-radius:4px}
p{margin:.3rem 0}
.q{font-weight:600}
.k{color:#555;font-size:13px}
button{font:inherit;padding:.2rem .8rem}
nav a{margin-right:.8rem}
@media(prefers-color-scheme:dark){
body{background:#161618;color:#eee}
a{color:#8ab4f8}
.k{color:#aaa}
article{border-color:#444}
}"""


class Rows:
    """The records of a folder, by kind.

    Args:
        folder: What `python -m datagen` wrote.

    Raises:
        BadInput: It holds no records.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.file = folder / RECORDS_FILE
        self.records = read_records(self.file)
        self.by_id = {row_id(record): record for record in self.records}
        self.kinds = Counter(kind_of(record) for record in self.records)
        self.drawn_image = lru_cache(maxsize=CACHED_IMAGES)(self._drawn_image)

    def on_page(self, kind: str, number: int) -> tuple[list[Record], int]:
        """The rows of a page, counted from 0, and how many pages there are. kind: "" for all."""
        rows = [record for record in self.records if not kind or kind_of(record) == kind]
        page_count = -(-len(rows) // ROWS_PER_PAGE)
        return rows[number * ROWS_PER_PAGE : (number + 1) * ROWS_PER_PAGE], page_count

    def _drawn_image(self, name: str) -> bytes:
        """The image of the row of that id with its masks, as a JPEG."""
        record = self.by_id[name]
        image = open_image(image_path(record, self.file))
        drawn = draw_targets(image, coloured_targets(record, image))
        drawn.thumbnail((MAX_IMAGE_SIDE, MAX_IMAGE_SIDE))
        file = io.BytesIO()
        drawn.save(file, "JPEG", quality=JPEG_QUALITY)
        return file.getvalue()


def kind_of(record: Record) -> str:
    """The kind of a record's question."""
    return str(record.source.get("kind", "-"))


def page_html(rows: Rows, kind: str, number: int) -> str:
    """One page of rows, counted from 0, as HTML. kind: "" for all."""
    shown, page_count = rows.on_page(kind, number)
    rejected = read_rejected(rows.folder)
    kinds = _link(f"all {len(rows.records)}")
    kinds += "".join(_link(f"{name} {count}", kind=name) for name, count in rows.kinds.most_common())
    neighbours = (("previous", number - 1), ("next", number + 1))
    turn = "".join(
        _link(text, kind=kind, page=str(other)) for text, other in neighbours if 0 <= other < page_count
    )
    back = urlencode({"kind": kind, "page": number})
    cards = "".join(_card(record, is_rejected(record, rejected), back) for record in shown)
    title = html.escape(rows.folder.name)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{title}</title><style>{STYLE}</style><h1>{title}</h1>"
        f"<nav>{kinds}</nav><p>page {number + 1} of {max(1, page_count)}; {len(rejected)} thrown out. {turn}"
        f"<main>{cards}</main><p>{turn}</html>"
    )


def _link(text: str, **query: str) -> str:
    return f'<a href="?{html.escape(urlencode(query))}">{html.escape(text)}</a>'


def _card(record: Record, is_rejected: bool, back: str) -> str:
    """A row as HTML. back: the query of the page to return to."""
    name = row_id(record)
    targets = html.escape(
        ", ".join(f"{target.phrase}{'' if target.rle else ' (absent)'}" for target in record.targets)
    )
    history = "".join(
        f"<p class=k>{html.escape(turn.question)}<p class=k>{html.escape(plain(turn.answer or ''))}"
        for turn in record.history
    )
    return (
        f'<article class="{"out" if is_rejected else ""}">'
        f'<img loading=lazy src="/picture/{name}.jpg" alt="{targets}">{history}'
        f"<p class=q>{html.escape(record.question)}<p>{html.escape(plain(record.answer))}"
        f"<p class=k>{html.escape(kind_of(record))}: {targets}; {html.escape(Path(record.image).name)}"
        f'<form method=post action="/{"keep" if is_rejected else "reject"}">'
        f'<input type=hidden name=id value="{name}">'
        f'<input type=hidden name=back value="{html.escape(back)}">'
        f"<button>{'take back' if is_rejected else 'throw out'}</button></form></article>"
    )


class BrowseServer(ThreadingHTTPServer):
    """A server on loopback that shows rows.

    Args:
        rows: What to show.
        port: 0: any that is free.
    """

    def __init__(self, rows: Rows, port: int):
        self.rows = rows
        super().__init__(("127.0.0.1", port), BrowseHandler)


class BrowseHandler(BaseHTTPRequestHandler):
    """Answers the requests of one page."""

    server: BrowseServer

    def _is_from_here(self) -> bool:
        """Whether a page of this server asks; another site in the same browser must not throw rows out."""
        host = self.headers.get("Host", "")
        origin = self.headers.get("Origin")
        return host.split(":")[0] in ("127.0.0.1", "localhost") and origin in (None, f"http://{host}")

    def _send(
        self,
        status: int,
        content: bytes,
        content_type: str = "text/html; charset=utf-8",
        headers: dict[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        """Send a page of rows, or the image of one."""
        rows = self.server.rows
        address = urlsplit(self.path)
        query = parse_qs(address.query)
        name = address.path.removeprefix("/picture/").removesuffix(".jpg")
        if not self._is_from_here():
            self._send(403, b"this page is for this machine only")
        elif address.path == "/":
            number = query.get("page", ["0"])[0]
            kind = query.get("kind", [""])[0]
            content = page_html(rows, kind, int(number) if number.isdecimal() else 0)
            self._send(200, content.encode())
        elif address.path.startswith("/picture/") and name in rows.by_id:
            try:
                self._send(200, rows.drawn_image(name), "image/jpeg")
            except BadInput as error:
                self._send(404, str(error).encode(), "text/plain; charset=utf-8")
        else:
            self._send(404, b"nothing here")

    def do_POST(self) -> None:
        """Throw a row out or take it back, and return to the page."""
        rows = self.server.rows
        length = int(self.headers.get("Content-Length", 0))
        form = parse_qs(self.rfile.read(min(length, MAX_FORM_LENGTH)).decode(errors="replace"))
        name = form.get("id", [""])[0]
        actions = {"reject": reject, "keep": take_back}
        action = actions.get(self.path.strip("/"))
        if not self._is_from_here():
            self._send(403, b"this page is for this machine only")
        elif name not in rows.by_id or action is None:
            self._send(404, b"no such row")
        else:
            action(rows.folder, rows.by_id[name])
            back = parse_qs(form.get("back", [""])[0])
            query = urlencode({key: values[0] for key, values in back.items() if key in ("kind", "page")})
            self._send(303, b"", headers={"Location": f"/?{query}"})

    def log_message(self, format: str, *args: object) -> None:
        """Do not log requests."""


def open_server(folder: Path, port: int) -> BrowseServer:
    """Open a server on loopback, which is not yet running.

    Raises:
        BadInput: The folder holds no records, or the port is taken.
    """
    rows = Rows(folder)
    try:
        return BrowseServer(rows, port)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "a port is a number from 0 to 65535"
        raise BadInput(f"cannot listen on port {port} ({reason}); choose another with --port") from None


def serve(folder: Path, port: int) -> None:
    """Show a folder until ctrl-C."""
    server = open_server(folder, port)
    print(f"http://127.0.0.1:{server.server_port}   (ctrl-C ends it)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, or 2 for input that cannot be used."""
    parser = argparse.ArgumentParser("python -m datagen.browse", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="a folder that datagen wrote")
    parser.add_argument("--port", type=int, default=8321)
    options = parser.parse_args(arguments)
    return exit_code(lambda: serve(options.folder, options.port))


if __name__ == "__main__":
    sys.exit(main())
