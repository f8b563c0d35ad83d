"""The page and its JSON endpoints, over a real socket."""

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import outlines
from generate import server as serving
from generate.server import Server
from outlines.metrics import reconstruction_bleu
from outlines.pipeline import Pipeline
from outlines.sampling import SamplingConfig
from tests.conftest import environment

A, B = "Two dogs play in the park.", "A woman is reading a book."


@pytest.fixture(scope="module")
def server(pipeline: Pipeline) -> Iterator[Server]:
    with Server(pipeline, "127.0.0.1", 0) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def ask(server: Server, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """Status and JSON (or text) of one request; bytes are sent as they are."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            content, status = answer.read().decode(), answer.status
    except urllib.error.HTTPError as error:
        content, status = error.read().decode(), error.code
    return status, json.loads(content) if content.startswith("{") else content


def test_the_page_is_one_file_that_loads_nothing_from_elsewhere(server: Server) -> None:
    status, page = ask(server, "/")
    assert status == 200 and page.startswith("<!doctype html>")
    assert not re.findall(r"""(?:src|href|url|import)\s*[=(]\s*["']?(?!data:)(?:https?:)?//""", page)
    assert "<script src" not in page and "innerHTML" not in page
    for path in re.findall(r'"(/[a-z]+)"', page):
        assert ask(server, path, None if path == "/about" else {"surplus": 1})[0] == (200 if path == "/about" else 400)


def test_about_says_what_the_run_can_do(server: Server, tiny_run: Path) -> None:
    assert ask(server, "/about") == (200, {
        "run": tiny_run.name, "family": "outlines", "sources": ["generator", "mixture", "gaussian"],
        "walks": ["linear", "spherical", "noise", "gradient"], "neighbours": True, "max_sentences": 100})


def test_endpoints_do_what_the_verbs_do(server: Server, pipeline: Pipeline) -> None:
    status, data = ask(server, "/sample", {"num": 4, "seed": 3, "temperature": 1.1, "source": "mixture", "prefix": "Two"})
    expected = pipeline.sentences(4, 3, SamplingConfig(temperature=1.1), "mixture", prefix="Two", scored=True)
    assert status == 200 and data["sentences"] == [
        {"text": line.text, "nll": pytest.approx(line.nll, rel=1e-4)} for line in expected]
    _, data = ask(server, "/reconstruct", {"sentences": [A, B]})
    assert [line["text"] for line in data["sentences"]] == [A, B]
    assert all(line["bleu"] == reconstruction_bleu([line["rebuilt"]], [line["text"]]) for line in data["sentences"])
    _, data = ask(server, "/interpolate", {"a": A, "b": B, "walk": "gradient", "num": 5})
    assert [point["text"] for point in data["points"]] == pipeline.interpolate(A, B, "gradient", 5).sentences
    _, data = ask(server, "/nearest", {"sentence": A, "num": 3})
    assert [near["row"] for near in data["neighbours"]] == [near.row for near in pipeline.nearest([A], 3)[0]]


@pytest.mark.parametrize(("path", "body", "message"), [
    ("/sample", b"{", "not JSON"),
    ("/sample", b"\xff", "not JSON"),
    ("/sample", b"[" * 60_000, "not JSON"),
    ("/sample", [1], "must be a JSON object"),
    ("/sample", {"num": 101}, "num must be a number from 1 to 100"),
    ("/sample", {"num": 2.5}, "num must be a whole number"),
    ("/sample", {"num": True}, "num must be a number"),
    ("/sample", b'{"temperature": NaN}', "temperature must be a number"),
    ("/sample", {"top_p": 0}, "top-p must be above 0"),
    ("/sample", {"source": "vae"}, "choose from generator"),
    ("/sample", {"prefix": "dog " * 64}, "leaves none of max-len 64"),
    ("/sample", {"prefix": "x" * 1001}, "at most 1000 characters"),
    ("/sample", {"tempreature": 1}, "unknown field 'tempreature'"),
    ("/reconstruct", {"sentences": []}, "a list of 1 to 100"),
    ("/reconstruct", {"sentences": ["a"] * 101}, "a list of 1 to 100"),
    ("/reconstruct", {"sentences": [3]}, "must be a text"),
    ("/reconstruct", {"sentences": [" "]}, "holds no words"),
    ("/interpolate", {"a": A}, "b must be a text"),
    ("/interpolate", {"a": A, "b": B, "walk": "drunken"}, "choose from linear"),
    ("/interpolate", {"a": A, "b": B, "num": 1000}, "num must be a number from 2 to 101"),
    ("/nearest", {"sentence": "word " * 100}, "tokens: this run knows sentences of up to 64"),
])
def test_bad_input_is_answered_with_400_and_a_sentence(path: str, body: Any, message: str, server: Server) -> None:
    status, data = ask(server, path, body)
    assert status == 400 and list(data) == ["error"] and message in data["error"] and "Traceback" not in data["error"]


def test_what_is_not_there_is_404(server: Server) -> None:
    assert ask(server, "/../run.json")[0] == 404
    assert ask(server, "/other", {})[0] == 404


def test_requests_that_a_page_of_another_site_could_send_are_refused(server: Server) -> None:
    assert ask(server, "/sample", {"num": 1}, **{"Content-Type": "text/plain"})[0] == 400
    assert ask(server, "/about", Host="evil.example")[0] == 400
    assert ask(server, "/sample", {"num": 1}, Host="evil.example:8000")[0] == 400
    assert ask(server, "/sample", {"num": 1}, Host="localhost:8000")[0] == 200


def test_a_request_is_bounded_in_bytes_and_time(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    connection.putrequest("POST", "/sample")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(2**40))
    connection.endheaders()
    assert connection.getresponse().status == 400
    monkeypatch.setattr(serving.Handler, "timeout", 0.2)
    with socket.create_connection(server.server_address[:2], timeout=10) as slow:  # type: ignore[arg-type]
        slow.sendall(b"POST /sample HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                     b"Content-Length: 9\r\n\r\n{")
        assert slow.recv(100) == b"", "the server waits for the rest for ever"


def test_one_request_too_many_is_told_to_come_back(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "places", threading.BoundedSemaphore(1))
    with server.places:
        assert ask(server, "/sample", {"num": 1})[0] == 503
    assert ask(server, "/sample", {"num": 1})[0] == 200


def test_requests_at_the_same_time_share_a_batch_and_change_no_sentence(server: Server,
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "GATHER_SEC", 0.3)
    batcher = server.endpoints.batcher
    requests = [{"num": 3, "seed": seed, "temperature": 0.9} for seed in range(5)] + [{"num": 2, "temperature": 0.5}]
    batcher.batch_sizes.clear()
    with ThreadPoolExecutor(len(requests)) as pool:
        together = list(pool.map(lambda body: ask(server, "/sample", body), requests))
    assert sum(batcher.batch_sizes) == 6 and max(batcher.batch_sizes) == 5 and len(batcher.batch_sizes) == 2
    assert [status for status, _ in together] == [200] * 6
    monkeypatch.setattr(serving, "GATHER_SEC", 0.0)
    alone = [ask(server, "/sample", body) for body in requests]
    texts = [[[line["text"] for line in data["sentences"]] for _, data in answers] for answers in (together, alone)]
    assert texts[0] == texts[1] and len(set(map(tuple, texts[0]))) == 6


def test_a_fault_of_the_server_is_500_without_a_trace(server: Server, monkeypatch: pytest.MonkeyPatch,
                                                      capfd: pytest.CaptureFixture[str]) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("secret")

    monkeypatch.setattr(serving, "sample", fail)
    status, data = ask(server, "/sample", {"num": 1})
    assert status == 500 and "secret" not in str(data)
    monkeypatch.undo()
    assert ask(server, "/sample", {"num": 1})[0] == 200, "the batching thread is gone"


def test_a_port_that_is_taken_is_one_line(server: Server, pipeline: Pipeline) -> None:
    with pytest.raises(outlines.errors.OutlinesError, match="cannot listen at"):
        Server(pipeline, "127.0.0.1", server.server_address[1])


def test_serving_from_the_command_line(tiny_run: Path) -> None:
    process = subprocess.Popen([sys.executable, "-m", "generate", "serve", str(tiny_run), "--port", "0"], env=environment(),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    url = process.stdout.readline().split()[0]
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
    with urllib.request.urlopen(url + "/about", timeout=30) as answer:
        assert json.load(answer)["family"] == "outlines"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130 and process.stderr.read() == ""
