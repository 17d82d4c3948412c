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

from assistant.answer import colour_of
from assistant.errors import BadInput, exit_code
from assistant.export.drawing import draw_targets
from assistant.grammar import plain
from assistant.images import open_image
from assistant.record import Record, image_path, read_records, record_masks
from datagen.rejected import read_rejected, reject, row_id

PAGE = 24  # rows
STYLE = """body{font:15px/1.4 system-ui,sans-serif;margin:1rem auto;max-width:84rem;padding:0 1rem;color:#1d1d1f;background:#fff}
main{display:grid;grid-template-columns:repeat(auto-fill,minmax(19rem,1fr));gap:1rem}
article{border:1px solid #ccc;border-radius:8px;padding:.6rem}article.out{opacity:.45}img{width:100%;border-radius:4px}
p{margin:.3rem 0}.q{font-weight:600}.k{color:#555;font-size:13px}button{font:inherit;padding:.2rem .8rem}nav a{margin-right:.8rem}
@media(prefers-color-scheme:dark){body{background:#161618;color:#eee}
a{color:#8ab4f8}.k{color:#aaa}article{border-color:#444}}"""


class Rows:
    """The records of a folder, by kind."""

    def __init__(self, folder: Path):
        self.folder, self.file = folder, folder / "records.jsonl"
        self.records = read_records(self.file)
        self.ids = {row_id(record): record for record in self.records}
        self.kinds = Counter(self.kind(record) for record in self.records)

    @staticmethod
    def kind(record: Record) -> str:
        return str(record.source.get("kind", "-"))

    def shown(self, kind: str, page: int) -> tuple[list[Record], int]:
        """The rows of a page, and how many pages there are."""
        rows = [record for record in self.records if not kind or self.kind(record) == kind]
        return rows[page * PAGE : (page + 1) * PAGE], -(-len(rows) // PAGE)

    @lru_cache(maxsize=256)
    def picture(self, name: str) -> bytes:
        """The row's picture with its masks, a JPEG at most 512 px wide or high."""
        record = self.ids[name]
        targets = [
            (k + 1, colour_of(k), target.phrase, mask)
            for k, (target, mask) in enumerate(zip(record.targets, record_masks(record)))
            if mask is not None
        ]
        drawn = draw_targets(open_image(image_path(record, self.file)), targets)
        drawn.thumbnail((512, 512))
        file = io.BytesIO()
        drawn.save(file, "JPEG", quality=85)
        return file.getvalue()


def page(rows: Rows, kind: str, number: int) -> str:
    """One page of rows as HTML."""
    shown, pages = rows.shown(kind, number)
    out = read_rejected(rows.folder)
    link = lambda text, **where: f'<a href="?{html.escape(urlencode(where))}">{html.escape(text)}</a>'
    kinds = link(f"all {len(rows.records)}") + "".join(
        link(f"{k} {n}", kind=k) for k, n in rows.kinds.most_common()
    )
    beside = (("previous", number - 1), ("next", number + 1))
    turn = "".join(link(text, kind=kind, page=to) for text, to in beside if 0 <= to < pages)
    cards = []
    for record in shown:
        name = row_id(record)
        gone = name in out
        targets = ", ".join(f"{t.phrase}{'' if t.rle else ' (absent)'}" for t in record.targets)
        cards.append(
            f'<article class="{"out" if gone else ""}"><img loading=lazy src="/picture/{name}.jpg" alt="{html.escape(targets)}">'
            + "".join(
                f"<p class=k>{html.escape(said.question)}<p class=k>{html.escape(plain(said.answer))}"
                for said in record.history
            )
            + f"<p class=q>{html.escape(record.question)}<p>{html.escape(plain(record.answer))}"
            f"<p class=k>{html.escape(rows.kind(record))}: {html.escape(targets)}; {html.escape(Path(record.image).name)}"
            f'<form method=post action="/{"keep" if gone else "reject"}"><input type=hidden name=id value="{name}">'
            f'<input type=hidden name=back value="{html.escape(urlencode({"kind": kind, "page": number}))}">'
            f"<button>{'take back' if gone else 'throw out'}</button></form></article>"
        )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{html.escape(rows.folder.name)}</title><style>{STYLE}</style><h1>{html.escape(rows.folder.name)}</h1>"
        f"<nav>{kinds}</nav><p>page {number + 1} of {max(1, pages)}; {len(out)} thrown out. {turn}"
        f"<main>{''.join(cards)}</main><p>{turn}</html>"
    )


def handler(rows: Rows) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def own(self) -> bool:
            """Asked by a page of this server: another site open in the same browser must not throw rows out."""
            host = self.headers.get("Host", "")
            origin = self.headers.get("Origin")
            return host.split(":")[0] in ("127.0.0.1", "localhost") and origin in (None, f"http://{host}")

        def send(
            self, status: int, content: bytes, kind: str = "text/html; charset=utf-8", **headers
        ) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self):
            address = urlsplit(self.path)
            asked = parse_qs(address.query)
            name = address.path.removeprefix("/picture/").removesuffix(".jpg")
            if not self.own():
                self.send(403, b"this page is for this machine only")
            elif address.path == "/":
                number = asked.get("page", ["0"])[0]
                number = int(number) if number.isdecimal() else 0
                self.send(200, page(rows, asked.get("kind", [""])[0], number).encode())
            elif address.path.startswith("/picture/") and name in rows.ids:
                try:
                    self.send(200, rows.picture(name), "image/jpeg")
                except BadInput as error:
                    self.send(404, str(error).encode(), "text/plain; charset=utf-8")
            else:
                self.send(404, b"nothing here")

        def do_POST(self):
            length = int(self.headers.get("Content-Length", 0))
            form = parse_qs(self.rfile.read(min(length, 10_000)).decode(errors="replace"))
            name, action = form.get("id", [""])[0], self.path.strip("/")
            if not self.own():
                self.send(403, b"this page is for this machine only")
            elif name not in rows.ids or action not in ("reject", "keep"):
                self.send(404, b"no such row")
            else:
                reject(rows.folder, rows.ids[name], action == "reject")
                back = parse_qs(form.get("back", [""])[0])
                back = urlencode({key: values[0] for key, values in back.items() if key in ("kind", "page")})
                self.send(303, b"", Location=f"/?{back}")

        def log_message(self, *args):
            pass

    return Handler


def serve(folder: Path, port: int) -> ThreadingHTTPServer:
    """A server on loopback, not yet running; BadInput where the folder holds no records or the port is taken."""
    rows = Rows(folder)
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), handler(rows))
    except OSError as error:
        raise BadInput(
            f"cannot listen on port {port} ({error.strerror}); choose another with --port"
        ) from None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m datagen.browse", description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="a folder that datagen wrote")
    parser.add_argument("--port", type=int, default=8321)
    options = parser.parse_args(arguments)

    def run():
        server = serve(options.folder, options.port)
        print(f"http://127.0.0.1:{server.server_port}   (ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
