"""A W&B service on this machine, that answers as far as a run needs it, or not at all."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Service:
    """`url` is where it is; it answers while `answers` is set."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.closing = threading.Event()
        self.runs: set[str] = set()
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"] or 0))
                while not service.answers.wait(0.1):
                    if service.closing.is_set():
                        return
                reply = json.dumps(service.reply(self.path, content)).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            do_GET = do_PUT = do_POST

            def log_message(self, *words: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *words: None  # type: ignore[method-assign]
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def reply(self, path: str, content: bytes) -> dict[str, object]:
        if path != "/graphql" or b"mutation UpsertBucket" not in content:
            return {"data": {}}
        name = json.loads(content)["variables"]["name"]
        self.runs.add(name)
        project = {"id": "p", "name": "svae", "entity": {"id": "e", "name": "me"}}
        bucket = {
            **{"id": "r", "name": name, "displayName": name, "description": "", "config": "{}"},
            **{"sweepName": None, "historyLineCount": 0, "project": project},
        }
        return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}


@contextmanager
def service(*, answers: bool) -> Iterator[Service]:
    """A service on 127.0.0.1; one that does not answer takes what is sent and is silent."""
    running = Service()
    if answers:
        running.answers.set()
    thread = threading.Thread(target=running.server.serve_forever)
    thread.start()
    try:
        yield running
    finally:
        running.closing.set()
        running.server.shutdown()
        running.server.server_close()
        thread.join()
