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
        #: The runs there are, with what their summaries hold.
        self.runs: dict[str, dict[str, float]] = {}
        self.resumed: list[str] = []
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
        if path != "/graphql":
            return {"data": {}}
        asked = json.loads(content).get("variables") or {}
        if b"mutation CreateRunFiles" in content:
            files = [{"name": name, "uploadUrl": f"{self.url}/file"} for name in asked["files"]]
            made = {"runID": "r", "uploadHeaders": [], "files": files}
            return {"data": {"createRunFiles": made}}
        project = {"id": "p", "name": "svae", "entity": {"id": "e", "name": "me"}}
        if b"query RunResumeStatus" in content:
            name = asked["name"]
            bucket = self._bucket(name) if name in self.runs else None
            self.resumed += [name] * (name in self.runs)
            return {"data": {"model": project | {"bucket": bucket}}}
        if b"mutation UpsertBucket" in content:
            name = asked["name"]
            inserted = name not in self.runs
            self.runs.setdefault(name, {})
            bucket = self._bucket(name) | {"project": project}
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": inserted}}}
        return {"data": {}}

    def _bucket(self, name: str) -> dict[str, object]:
        return {
            **{"id": "r", "name": name, "displayName": name, "description": "", "config": "{}"},
            **{"summaryMetrics": json.dumps(self.runs[name]), "historyTail": "[]"},
            **{"eventsTail": "[]", "historyLineCount": 0, "logLineCount": 0},
            **{"eventsLineCount": 0, "sweepName": None, "tags": [], "notes": ""},
            # Of a run that has begun, not only been made.
            "wandbConfig": '{"t": {"1": []}}',
        }


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
