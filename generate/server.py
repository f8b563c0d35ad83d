"""A web page and a JSON interface over HTTP for one run. docs/generate.md lists the paths and limits."""

import contextlib
import io
import json
import socket
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from generate.batcher import ANSWER_SEC, Batcher, Busy, Job, turn
from generate.options import BY_NAME
from outlines.decoding.best_of import best_of
from outlines.decoding.sample import SamplingConfig
from outlines.errors import OutlinesError, memory_advice
from outlines.inference.copies import with_spare
from outlines.inference.pipeline import Pipeline
from outlines.pretrained import is_shipped, temperature_of

PAGE = Path(__file__).with_name("page.html")
MAX_SENTENCES = int(BY_NAME["num"].max_served)
MAX_CHARACTERS = 1000
MAX_WAITING = 64  # Number of requests that may wait or be processed at the same time; further requests are refused
MAX_BYTES = 64 * 1024
MAX_DISCARDED = 1024 * 1024  # Number of bytes of a refused request that are still read
MAX_CONNECTIONS = 256  # Number of open connections, each with a thread; further connections are closed at once
READ_SEC = 10  # Time limit to receive a whole request, and time limit to send its answer
LOCAL = {"localhost", "127.0.0.1", "::1"}


class Fields:
    """The fields of a request. A field is checked when it is read. Raises OutlinesError for an invalid field."""

    def __init__(self, data: Any):
        if not isinstance(data, dict):
            raise OutlinesError("The request must be a JSON object.")
        self._data = dict(data)

    def number(self, name: str) -> Any:
        """Return the number in a field, or the default of the option `name`. Raises OutlinesError if it is invalid."""
        option, key = BY_NAME[name], name.partition("/")[0]
        option = option._replace(high=min(option.high, option.max_served))
        if key not in self._data:
            return option.default
        value = self._data.pop(key)
        if not option.is_valid(value):
            raise OutlinesError(f"{key} must be {option.bounds()}.")
        return option.type(value)

    def text(self, name: str, default: str | None = None) -> str:
        value = self._data.pop(name, default)
        if not isinstance(value, str) or len(value) > MAX_CHARACTERS:
            raise OutlinesError(f"{name} must be a text of at most {MAX_CHARACTERS} characters.")
        return value

    def texts(self, name: str) -> list[str]:
        values = self._data.pop(name, None)
        if not isinstance(values, list) or not 0 < len(values) <= MAX_SENTENCES:
            raise OutlinesError(f"{name} must be a list of 1 to {MAX_SENTENCES} texts.")
        return [Fields({name: value}).text(name) for value in values]

    def end(self) -> None:
        """Raise OutlinesError if the request has a field that was not read."""
        if self._data:
            raise OutlinesError(f"Unknown field {next(iter(self._data))!r}. Remove it.")


class TimedReader(io.RawIOBase):
    """Reads from a client until a deadline, so that a slow client cannot keep a connection open."""

    def __init__(self, connection: socket.socket):
        self._connection, self._until = connection, time.monotonic() + READ_SEC

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._connection.settimeout(max(0.001, self._until - time.monotonic()))
        return self._connection.recv_into(buffer)


class Handler(BaseHTTPRequestHandler):
    """Handles one connection with one request."""

    server: "Server"
    server_version = "NeuralOutlines"
    sys_version = ""

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(TimedReader(self.connection))

    def parse_request(self) -> bool:
        # A page of another website could read from a local server if the name of the website resolves to 127.0.0.1.
        if not super().parse_request():
            return False
        with contextlib.suppress(ValueError):  # a malformed name
            if not self.server.local or urlsplit(f"//{self.headers.get('Host', '')}").hostname in LOCAL:
                return True
        self._send(400, {"error": "This server only answers its own machine. Use http://127.0.0.1."})
        return False

    def do_GET(self) -> None:
        if self.path == "/":
            self._send(200, PAGE.read_bytes())
        elif self.path == "/about":
            self._send(200, self.server.about())
        else:
            self._send(404, {"error": f"Nothing at {self.path[:80]}."})

    def do_POST(self) -> None:
        if self.path not in ("/sample", "/reconstruct", "/interpolate", "/nearest"):
            self._send(404, {"error": f"Nothing at {self.path[:80]}."})
            return
        try:
            fields = Fields(self._body())  # read before a place is reserved, so that slow clients occupy no place
            with turn(self.server.places, 0), memory_advice("Lower num, or send fewer or shorter sentences.", Busy):
                status, data = 200, getattr(self.server, self.path[1:])(fields)
        except OutlinesError as error:
            status, data = 503 if isinstance(error, Busy) else 400, {"error": str(error)}
        except ConnectionError:  # the client has left
            raise
        except Exception:
            self.server.handle_error(self.request, self.client_address)
            status, data = 500, {"error": "Internal error. The terminal of the server shows the details."}
        self._send(status, data)

    def _body(self) -> Any:
        # A page of another website can post a form to this server, but JSON only with this server's permission.
        if self.headers.get_content_type() != "application/json":
            raise OutlinesError("The content type must be application/json.")
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit() or len(length) > 9 or int(length) > MAX_BYTES:
            raise OutlinesError(f"The request needs the header Content-Length, at most {MAX_BYTES} bytes.")
        try:
            return json.loads(self.rfile.read(int(length)).decode())
        except (ValueError, RecursionError) as error:
            raise OutlinesError("The request is not JSON.") from error
        except TimeoutError as error:
            raise ConnectionAbortedError("the client was too slow") from error

    def _send(self, status: int, data: dict[str, Any] | bytes) -> None:
        kind = "text/html" if isinstance(data, bytes) else "application/json"
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for name, value in {"Content-Type": f"{kind}; charset=utf-8",
                            "Content-Length": str(len(body)), "X-Content-Type-Options": "nosniff",
                            "Cache-Control": "no-store", "Connection": "close"}.items():
            self.send_header(name, value)
        self.connection.settimeout(READ_SEC)
        self.end_headers()
        self.wfile.write(body)
        if status >= 400:
            # Read the rest of the request. Otherwise, the connection is reset before the client reads the answer.
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_WR)
                self.rfile.read(MAX_DISCARDED)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        self._send(code, {"error": message or self.responses[HTTPStatus(code)][0]})

    def log_message(self, format: str, *args: Any) -> None:
        """Do nothing, so that requests are not logged."""


class Server(ThreadingHTTPServer):
    """Serves the web page and the JSON interface of one run. port: 0 for a free port."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, pipeline: Pipeline, host: str, port: int):
        self.local = host in LOCAL
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), Handler)
        except (OSError, OverflowError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise OutlinesError(f"Cannot listen on {host}:{port} ({reason}). Try another --port.") from error
        self.pipeline = pipeline
        self.batcher = Batcher(pipeline.write)
        # Work that cannot be batched runs one request at a time, so that it does not use every core.
        self._turn = threading.Lock()
        self.places = threading.BoundedSemaphore(MAX_WAITING)
        self.connections = threading.BoundedSemaphore(MAX_CONNECTIONS)

    @property
    def url(self) -> str:
        host, port = self.socket.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return self.connections.acquire(blocking=False)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):  # clients that left or were too slow
            super().handle_error(request, client_address)

    def about(self) -> dict[str, Any]:
        pipeline, model = self.pipeline, self.pipeline.model
        has_neighbours = model.frozen_encoder() is not None and not is_shipped(pipeline.run)
        config = model.decoder.config
        return {"run": pipeline.run.name, "family": model.family, "sources": list(model.sources),
                "temperature": temperature_of(pipeline.run),
                "walks": list(pipeline.walks), "neighbours": has_neighbours, "noise": config.vector_dim > 0,
                "guided": config.vector_dropout > 0, "strength": model.strength, "min_strength": config.min_strength,
                "best_of": pipeline.chosen(SamplingConfig()).best_of, "max_sentences": MAX_SENTENCES}

    def sample(self, fields: Fields) -> dict[str, Any]:
        num, seed = fields.number("num"), fields.number("seed")
        temperature = fields.number("temperature")
        config = SamplingConfig(temperature_of(self.pipeline.run) if temperature is None else temperature,
                                max_len=self.pipeline.max_len, **{name: fields.number(name) for name in
                                   ("top_k", "top_p", "noise_scale", "guidance", "strength", "best_of")})
        source, prefix = fields.text("source", ""), fields.text("prefix", "")
        fields.end()
        config = self.pipeline.chosen(config)
        self.pipeline.tokenizer.encode([prefix])  # raises an error for invalid text
        draw, known = self.pipeline.source(source or None, config), self.pipeline.known_text
        rows, group = num if known is None else with_spare(num), config.best_of or 1
        vectors, uniforms = self.pipeline.model.draw_rows(draw, 0, group * rows, seed, config.max_len)
        ids = self.batcher.decode(Job(vectors, uniforms, (config, prefix)))
        with turn(self._turn, ANSWER_SEC):
            ids, vectors = best_of(self.pipeline.model.decoder, ids, vectors, config)
        texts = self.pipeline.tokenizer.lines(ids)
        chosen = sorted(range(rows), key=lambda row: known is not None and texts[row] in known)[:num]  # new ones first
        of_chosen = None if vectors is None else vectors[chosen]
        written = self.pipeline.written([ids[row] for row in chosen], of_chosen, scored=True)
        return {"sentences": [sentence.data() for sentence in written]}

    def reconstruct(self, fields: Fields) -> dict[str, Any]:
        sentences = fields.texts("sentences")
        fields.end()
        bad = dict[str, OutlinesError]()
        for sentence in sentences:
            try:
                self.pipeline.checked(sentence)
            except OutlinesError as error:
                bad[sentence] = error
        good = [sentence for sentence in sentences if sentence not in bad]
        if not good:
            raise bad[sentences[0]]
        with turn(self._turn, ANSWER_SEC):
            done = iter(self.pipeline.reconstruct(good))
        return {"sentences": [{"text": sentence, "error": str(bad[sentence])} if sentence in bad else next(done)._asdict()
                              for sentence in sentences]}

    def interpolate(self, fields: Fields) -> dict[str, Any]:
        a, b, walk = fields.text("a"), fields.text("b"), fields.text("walk", "spherical")
        num = fields.number("num/walk")
        fields.end()
        with turn(self._turn, ANSWER_SEC):
            made = self.pipeline.interpolate(a, b, walk, num)
        return {"ended": made.ended, "points": [point._asdict() for point in made.points]}

    def nearest(self, fields: Fields) -> dict[str, Any]:
        sentence, num = fields.text("sentence"), fields.number("num/nearest")
        fields.end()
        with turn(self._turn, ANSWER_SEC):
            return {"neighbours": [near._asdict() for near in self.pipeline.nearest([sentence], num)[0]]}
