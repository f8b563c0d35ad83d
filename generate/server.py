"""A small page over a finished run, and the same functions as JSON: `python -m generate serve RUN`.

    GET  /             the page
    GET  /about        what the run can do
    POST /sample       {"num", "seed", "temperature", "top_k", "top_p", "source", "noise_scale", "guidance", "prefix"}
                       → {"sentences": [{"text", "nll", "critic_score" where the family has a critic}]}
    POST /reconstruct  {"sentences"} → {"sentences": [{"text", "rebuilt", "bleu", "nll", "num_targets"}]}
    POST /interpolate  {"a", "b", "walk", "num"}
                       → {"ended", "points": [{"step", "text", "nll_start": [one a step], "nll_end": […]}]}
    POST /nearest      {"sentence", "num"} → {"neighbours": [{"row", "cosine", "text"}]}

A request that cannot be answered gets 400 and {"error": a sentence}. Everything is bounded: the bytes of a request, the
numbers in it, the time to send it and to answer it. Sampling requests that wait at the same time are decoded as one batch.
"""

import contextlib
import io
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import torch
from torch import Tensor

from outlines.decoding.sample import SamplingConfig, sample
from outlines.decoding.scoring import nll_of_rows
from outlines.errors import OutlinesError
from outlines.inference.pipeline import TEMPERATURE, Pipeline, as_rows

MAX_BYTES = 64 * 1024
MAX_FORGOTTEN = 1024 * 1024
"""Bytes of a refused request that are read all the same."""
MAX_SENTENCES = 100
MAX_CHARACTERS = 1000
MAX_WALK = 101
MAX_NEIGHBOURS = 50
MAX_WAITING = 64
"""Requests that may wait or be worked on; one more is told to come back."""
MAX_CONNECTIONS = 256
"""Clients at a time, each with a thread; one more is sent away unheard."""
MAX_ROWS = 512
"""Sentences decoded as one batch, which bounds the memory that many requests at once can take."""
READ_SEC = 10
"""A client that has not sent the whole of its request by then is dropped, and one that does not take its answer."""
ANSWER_SEC = 30
GATHER_SEC = 0.01
"""How long the first of a batch waits for others."""
LOCAL = {"localhost", "127.0.0.1", "::1"}


class Busy(Exception):
    """Too many requests, or too long a wait; says which."""


class Job(NamedTuple):
    """Rows to decode: vectors [B, D] or None, uniforms [B, max_len]; the token ids are put into `result`."""

    vectors: Tensor | None
    uniforms: Tensor
    config: SamplingConfig
    prefix: tuple[int, ...]
    result: "Future[list[list[int]]]"


class Batcher:
    """One thread that decodes; jobs that wait together and choose tokens alike go through the decoder as one batch.

    A sentence depends on its own row alone, so it is the same in whatever company.
    """

    def __init__(self, pipeline: Pipeline):
        self.batch_sizes: deque[int] = deque(maxlen=1000)
        self._layout = pipeline.layout
        self._jobs: queue.Queue[Job | None] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def decode(self, vectors: Tensor | None, uniforms: Tensor, config: SamplingConfig,
               prefix: Sequence[int]) -> list[list[int]]:
        """Token ids of each row; called from any thread. Raises Busy after ANSWER_SEC."""
        job = Job(vectors, uniforms, config, tuple(prefix), Future())
        until = time.monotonic() + ANSWER_SEC
        try:
            self._jobs.put(job, timeout=ANSWER_SEC)
            return job.result.result(timeout=max(0.0, until - time.monotonic()))
        except (queue.Full, TimeoutError) as error:
            job.result.cancel()
            raise Busy("too busy to answer in time") from error

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            time.sleep(GATHER_SEC)
            waiting = [job]
            while not self._jobs.empty():
                following = self._jobs.get()
                if following is None:
                    self._jobs.put(None)
                    break
                waiting.append(following)
            alike = sorted((job for job in waiting if job.result.set_running_or_notify_cancel()), key=_kind)
            for _, group in groupby(alike, key=_kind):
                self._decode_group(list(group))

    def _decode_group(self, jobs: list[Job]) -> None:
        """Decode jobs that are alike, as many at a time as MAX_ROWS allows."""
        batch: list[Job] = []
        for job in jobs:
            if batch and sum(len(other.uniforms) for other in batch) + len(job.uniforms) > MAX_ROWS:
                self._decode(batch)
                batch = []
            batch.append(job)
        self._decode(batch)

    def _decode(self, jobs: list[Job]) -> None:
        first = jobs[0]
        self.batch_sizes.append(len(jobs))
        try:
            vectors = None if first.vectors is None else torch.cat([job.vectors for job in jobs if job.vectors is not None])
            ids = iter(sample(self._layout, vectors, torch.cat([job.uniforms for job in jobs]), first.config, first.prefix))
            for job in jobs:
                job.result.set_result([next(ids) for _ in range(len(job.uniforms))])
        except Exception as error:  # whatever it is, those who wait must hear of it
            for job in jobs:
                if not job.result.done():
                    job.result.set_exception(error)


def _kind(job: Job) -> str:
    return repr((job.config, job.prefix))


class Fields:
    """The fields of a request, each taken with its type and bounds; a surplus one is an error."""

    def __init__(self, data: Any):
        if not isinstance(data, dict):
            raise OutlinesError("the request must be a JSON object")
        self._data = dict(data)

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self._data.pop(name, default)
        # A bool is an int in Python, and NaN is in no range.
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise OutlinesError(f"{name} must be a number from {low:g} to {high:g}")
        return value

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        value = self.number(name, default, low, high)
        if value != int(value):
            raise OutlinesError(f"{name} must be a whole number from {low} to {high}")
        return int(value)

    def text(self, name: str, default: str | None = None) -> str:
        value = self._data.pop(name, default)
        if not isinstance(value, str) or len(value) > MAX_CHARACTERS:
            raise OutlinesError(f"{name} must be a text of at most {MAX_CHARACTERS} characters")
        if any("\ud800" <= character <= "\udfff" for character in value):  # JSON can spell them, UTF-8 cannot
            raise OutlinesError(f"{name} holds half a character (a lone surrogate)")
        return value

    def texts(self, name: str) -> list[str]:
        values = self._data.pop(name, None)
        if not isinstance(values, list) or not 0 < len(values) <= MAX_SENTENCES:
            raise OutlinesError(f"{name} must be a list of 1 to {MAX_SENTENCES} texts")
        return [Fields({name: value}).text(name) for value in values]

    def end(self) -> None:
        if self._data:
            raise OutlinesError(f"unknown field {next(iter(self._data))!r}")


class Endpoints:
    """What a request's path does: fields in, JSON data out."""

    def __init__(self, pipeline: Pipeline):
        self.pipeline = pipeline
        self.batcher = Batcher(pipeline)
        self._turn = threading.Lock()

    def about(self) -> dict[str, Any]:
        model = self.pipeline.model
        return {"run": self.pipeline.run.name, "family": model.family, "sources": list(model.sources),
                "walks": list(self.pipeline.walks) if model.decoder.config.vector_dim and not model.latent_per_step else [],
                "neighbours": model.frozen_encoder() is not None, "noise": model.decoder.config.vector_dim > 0,
                "guided": model.decoder.config.vector_dropout > 0,
                "max_sentences": MAX_SENTENCES}

    def sample(self, fields: Fields) -> dict[str, Any]:
        num, seed = fields.whole("num", 10, 1, MAX_SENTENCES), fields.whole("seed", 1, 0, 2**53)
        config = SamplingConfig(fields.number("temperature", TEMPERATURE, 0, 10), fields.whole("top_k", 0, 0, 2**20),
                                fields.number("top_p", 1.0, 0, 1), noise_scale=fields.number("noise_scale", 1.0, 0, 10),
                                guidance=fields.number("guidance", 1.0, 0, 10))
        source, prefix = fields.text("source", ""), fields.text("prefix", "")
        fields.end()
        model = self.pipeline.model
        name = model.check_source(source or None)
        tokens = self.pipeline.prefix_tokens(prefix)
        vectors, uniforms = model.draw_rows(lambda count, rng: model.vectors(count, rng, name, config.noise_scale),
                                            0, num, seed, config.max_len)
        ids = self.batcher.decode(vectors, uniforms, config, tokens)
        written = {"text": self.pipeline.tokenizer.lines(ids),
                   "nll": nll_of_rows(model.decoder, as_rows(ids), vectors)[0].tolist()}
        scores = None if vectors is None else model.critic_scores(vectors)
        if scores is not None:
            written["critic_score"] = scores.tolist()
        return {"sentences": [dict(zip(written, values, strict=True)) for values in zip(*written.values(), strict=True)]}

    def reconstruct(self, fields: Fields) -> dict[str, Any]:
        sentences = fields.texts("sentences")
        fields.end()
        return {"sentences": [done._asdict() for done in self._in_turn(lambda: self.pipeline.reconstruct(sentences))]}

    def interpolate(self, fields: Fields) -> dict[str, Any]:
        start, end, walk = fields.text("a"), fields.text("b"), fields.text("walk", "spherical")
        num = fields.whole("num", 21, 2, MAX_WALK)
        fields.end()
        made = self._in_turn(lambda: self.pipeline.interpolate(start, end, walk, num))
        return {"ended": made.ended, "points": [point._asdict() for point in made.points]}

    def nearest(self, fields: Fields) -> dict[str, Any]:
        sentence, num = fields.text("sentence"), fields.whole("num", 5, 1, MAX_NEIGHBOURS)
        fields.end()
        return {"neighbours": [near._asdict() for near in self._in_turn(lambda: self.pipeline.nearest([sentence], num))[0]]}

    def _in_turn(self, work: Callable[[], Any]) -> Any:
        """What cannot be batched is done one at a time, so that it cannot take all cores from the rest."""
        if not self._turn.acquire(timeout=ANSWER_SEC):
            raise Busy("too busy to answer in time")
        try:
            return work()
        finally:
            self._turn.release()


class TimedReader(io.RawIOBase):
    """What a client sends, all of it by one moment: a byte now and then does not keep a connection."""

    def __init__(self, connection: socket.socket):
        self._connection, self._until = connection, time.monotonic() + READ_SEC

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._connection.settimeout(max(0.001, self._until - time.monotonic()))
        return self._connection.recv_into(buffer)


class Handler(BaseHTTPRequestHandler):
    """One connection, and one request on it."""

    server: "Server"
    server_version = "NeuralOutlines"
    sys_version = ""

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(TimedReader(self.connection))

    def do_GET(self) -> None:
        if not self._from_here():
            return
        if self.path == "/":
            self._send(200, PAGE.read_bytes(), "text/html; charset=utf-8")
        elif self.path == "/about":
            self._send_json(200, self.server.endpoints.about())
        else:
            self._send_json(404, {"error": f"there is nothing at {self.path[:80]}"})

    def do_POST(self) -> None:
        if not self._from_here():
            return
        act = {"/sample": self.server.endpoints.sample, "/reconstruct": self.server.endpoints.reconstruct,
               "/interpolate": self.server.endpoints.interpolate, "/nearest": self.server.endpoints.nearest}.get(self.path)
        if act is None:
            self._send_json(404, {"error": f"there is nothing at {self.path[:80]}"})
            return
        try:
            fields = Fields(self._body())  # before a place is taken, so that slow clients take none
            if not self.server.places.acquire(blocking=False):
                raise Busy("too many requests at once")
            try:
                status, data = 200, act(fields)
            finally:
                self.server.places.release()
        except OutlinesError as error:
            status, data = 400, {"error": str(error)}
        except Busy as error:
            status, data = 503, {"error": f"{error}: try again in a moment"}
        except ConnectionError:  # nobody is there to be answered
            raise
        except Exception:
            self.server.handle_error(self.request, self.client_address)
            status, data = 500, {"error": "something went wrong here; the server's terminal says what"}
        self._send_json(status, data)

    def _body(self) -> Any:
        # A page of another site can send a form here, but not this type of content without asking first.
        if self.headers.get_content_type() != "application/json":
            raise OutlinesError("the content type must be application/json")
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit() or len(length) > 9 or int(length) > MAX_BYTES:
            raise OutlinesError(f"a request must state its length, at most {MAX_BYTES} bytes")
        try:
            return json.loads(self.rfile.read(int(length)).decode())
        except (ValueError, RecursionError) as error:
            raise OutlinesError("the request is not JSON") from error
        except TimeoutError as error:
            raise ConnectionAbortedError("the client was too slow") from error

    def _forget(self) -> None:
        """Take what a client is still sending, or it would be cut off at that and never read its answer."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.rfile.read(MAX_FORGOTTEN)

    def _from_here(self) -> bool:
        """False, and answered, where a server for this machine is asked for under another name.

        So a page of another site cannot read it by pointing its own name at 127.0.0.1.
        """
        try:
            if not self.server.local or urlsplit(f"//{self.headers.get('Host', '')}").hostname in LOCAL:
                return True
        except ValueError:  # not a name at all
            pass
        self._send_json(400, {"error": "this page is served to this machine only"})
        return False

    def _send_json(self, status: int, data: dict[str, Any]) -> None:
        self._send(status, json.dumps(data, ensure_ascii=False).encode(), "application/json; charset=utf-8")

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), "X-Content-Type-Options": "nosniff",
                            "Cache-Control": "no-store", "Connection": "close"}.items():
            self.send_header(name, value)
        self.connection.settimeout(READ_SEC)
        self.end_headers()
        self.wfile.write(body)
        if status >= 400:
            self._forget()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class refuses is answered as the rest is."""
        self._send_json(code, {"error": message or self.responses[HTTPStatus(code)][0]})

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged."""


class Server(ThreadingHTTPServer):
    """The endpoints of one run at an address; port 0 takes a free one."""

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
            raise OutlinesError(f"cannot listen at {host}:{port}: {reason}: try another --port") from error
        self.endpoints = Endpoints(pipeline)
        self.places = threading.BoundedSemaphore(MAX_WAITING)
        self.connections = threading.BoundedSemaphore(MAX_CONNECTIONS)

    @property
    def url(self) -> str:
        host, port = self.socket.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def server_close(self) -> None:
        super().server_close()
        if hasattr(self, "endpoints"):
            self.endpoints.batcher.close()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self.connections.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left in the middle or takes no answer is no event; anything else is, on standard error."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


PAGE = Path(__file__).with_name("page.html")


def serve(pipeline: Pipeline, host: str, port: int) -> None:
    """Serve until interrupted, which ends the process with status 130 and drops the requests in work."""
    with Server(pipeline, host, port) as server:
        try:
            print(f"{server.url} (Ctrl-C ends it)", flush=True)
            server.serve_forever()
        except KeyboardInterrupt:
            # At the interpreter's own end a request's thread would be unwound inside torch, and C++ aborts at that.
            os._exit(128 + signal.SIGINT)
