"""The web page of a run and its JSON interface over HTTP: `python -m generate serve RUN`.

GET / is the page; generate/endpoints.py lists the other paths. A request that cannot be answered gets status 400 and
{"error": a sentence}. A request's size, the numbers in it, and the time to send and to answer it are bounded.
"""

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

from generate.endpoints import Busy, Endpoints, Fields, turn
from outlines.errors import OutlinesError
from outlines.inference.pipeline import Pipeline

PAGE = Path(__file__).with_name("page.html")
MAX_WAITING = 64
"""Requests that may wait or be processed; another one is refused."""
MAX_BYTES = 64 * 1024
MAX_DISCARDED = 1024 * 1024
"""Bytes of a refused request that are still read."""
MAX_CONNECTIONS = 256
"""Open connections, each with a thread; another one is closed at once."""
READ_SEC = 10
"""Time limit for a client to send its whole request, and to receive its answer."""
LOCAL = {"localhost", "127.0.0.1", "::1"}


class TimedReader(io.RawIOBase):
    """Reads from a client until one deadline, so that a slow client cannot keep a connection byte by byte."""

    def __init__(self, connection: socket.socket):
        self._connection, self._until = connection, time.monotonic() + READ_SEC

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._connection.settimeout(max(0.001, self._until - time.monotonic()))
        return self._connection.recv_into(buffer)


class Handler(BaseHTTPRequestHandler):
    """One connection with one request."""

    server: "Server"
    server_version = "NeuralOutlines"
    sys_version = ""

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(TimedReader(self.connection))

    def parse_request(self) -> bool:
        """Refuse requests to a local server under another name.

        Otherwise a page of another site could read from it by resolving its own name to 127.0.0.1.
        """
        if not super().parse_request():
            return False
        with contextlib.suppress(ValueError):  # a malformed name
            if not self.server.local or urlsplit(f"//{self.headers.get('Host', '')}").hostname in LOCAL:
                return True
        self._send(400, {"error": "This server answers its own machine only. Use http://127.0.0.1."})
        return False

    def do_GET(self) -> None:
        if self.path == "/":
            self._send(200, PAGE.read_bytes())
        elif self.path == "/about":
            self._send(200, self.server.endpoints.about())
        else:
            self._send(404, {"error": f"Nothing at {self.path[:80]}."})

    def do_POST(self) -> None:
        endpoints = self.server.endpoints
        answer = {"/sample": endpoints.sample, "/reconstruct": endpoints.reconstruct,
                  "/interpolate": endpoints.interpolate, "/nearest": endpoints.nearest}.get(self.path)
        if answer is None:
            self._send(404, {"error": f"Nothing at {self.path[:80]}."})
            return
        try:
            fields = Fields(self._body())  # read before a place is reserved, so that slow clients occupy none
            with turn(self.server.places, 0):
                status, data = 200, answer(fields)
        except OutlinesError as error:
            status, data = 400, {"error": str(error)}
        except Busy as error:
            status, data = 503, {"error": str(error)}
        except ConnectionError:  # the client has left
            raise
        except Exception:
            self.server.handle_error(self.request, self.client_address)
            status, data = 500, {"error": "Internal error. The terminal of the server shows the details."}
        self._send(status, data)

    def _body(self) -> Any:
        # A page of another site can post a form to this server, but not JSON without permission.
        if self.headers.get_content_type() != "application/json":
            raise OutlinesError("The content type must be application/json.")
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit() or len(length) > 9 or int(length) > MAX_BYTES:
            raise OutlinesError(f"The request must state its Content-Length, at most {MAX_BYTES} bytes.")
        try:
            return json.loads(self.rfile.read(int(length)).decode())
        except (ValueError, RecursionError) as error:
            raise OutlinesError("The request is not JSON.") from error
        except TimeoutError as error:
            raise ConnectionAbortedError("the client was too slow") from error

    def _send(self, status: int, data: dict[str, Any] | bytes) -> None:
        """Send JSON data, or the bytes of a page."""
        kind = "text/html" if isinstance(data, bytes) else "application/json"
        body = data if isinstance(data, bytes) else json.dumps(data, ensure_ascii=False).encode()
        self.send_response(status)
        for name, value in {"Content-Type": f"{kind}; charset=utf-8",
                            "Content-Length": str(len(body)), "X-Content-Type-Options": "nosniff",
                            "Cache-Control": "no-store", "Connection": "close"}.items():
            self.send_header(name, value)
        self.connection.settimeout(READ_SEC)
        self.end_headers()
        self.wfile.write(body)
        if status >= 400:
            # Read what the client is still sending; otherwise it is cut off before it reads the answer.
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_WR)
                self.rfile.read(MAX_DISCARDED)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Errors of the base class are JSON too."""
        self._send(code, {"error": message or self.responses[HTTPStatus(code)][0]})

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged."""


class Server(ThreadingHTTPServer):
    """The page and the endpoints of one run at an address; port 0 chooses a free one."""

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
        self.endpoints = Endpoints(pipeline)
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
        """Print errors to standard error, except those of clients that left or were too slow."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)
