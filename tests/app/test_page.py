"""The page as the command serves it, in a process of its own, asked over HTTP."""

from __future__ import annotations

import functools
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from lcmem_filter.app import check_gradio, serve
from lcmem_filter.cli.main import main
from lcmem_filter.errors import ConfigurationError, MissingExtraError

needs_gradio = pytest.mark.skipif(find_spec("gradio") is None, reason="gradio is not installed")


@dataclass
class Served:
    """A running command and its address."""

    process: subprocess.Popen[str]
    address: str

    def get(self, path: str = "") -> str:
        """What lies at ``path``."""
        with urllib.request.urlopen(self.address + path, timeout=120) as answer:
            return str(answer.read().decode())

    def post(self, path: str, content: bytes, kind: str) -> Any:
        """The answer to ``content``, which is JSON."""
        request = urllib.request.Request(self.address + path, content, {"Content-Type": kind})
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)

    def call(self, name: str, *values: Any) -> Any:
        """What the page's function ``name`` gives for ``values``."""
        given = json.dumps({"data": values}).encode()
        event = self.post(f"gradio_api/call/{name}", given, "application/json")["event_id"]
        last = self.get(f"gradio_api/call/{name}/{event}").strip().split("\n\n")[-1]
        assert last.startswith("event: complete"), last
        return json.loads(last.split("data: ", 1)[1])

    def upload(self, file: Path) -> dict[str, Any]:
        """Send a file, and return what a function takes for it."""
        mark = uuid.uuid4().hex
        head = f'--{mark}\r\nContent-Disposition: form-data; name="files"; filename="{file.name}"\r\n\r\n'
        content = head.encode() + file.read_bytes() + f"\r\n--{mark}--\r\n".encode()
        (path,) = self.post("gradio_api/upload", content, f"multipart/form-data; boundary={mark}")
        return {"path": path, "meta": {"_type": "gradio.FileData"}}


@pytest.fixture(scope="module")
def served(folder) -> Iterator[Served]:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "lcmem_filter",
        "app",
        "index",
        "--pipeline",
        "pipeline",
        "--device",
        "cpu",
    ]
    command += ["--training", "train", "--port", str(port)]
    # what a shell starts in the background ignores interrupts, and hands that down
    heeding = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True, preexec_fn=heeding)
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if found := re.search(r"the page is at (http://\S+);", line):
            yield Served(process, found[1])
            break
    else:
        pytest.fail("".join(said))
    process.send_signal(signal.SIGINT)
    process.stderr.close()
    assert process.wait(60) == 0


@needs_gradio
def test_is_served_to_this_machine_only_and_loads_nothing_from_elsewhere(served):
    assert served.address.startswith("http://127.0.0.1:")
    text = served.get()
    assert "Is it a copy?" in text
    assert re.findall(r'(?:src|href)="(?:https?:)?//[^"]*"', text) == []
    config = json.loads(served.get("config"))
    assert config["analytics_enabled"] is False
    assert "12 training images of index" in json.dumps(config)


@needs_gradio
def test_an_image_is_judged(served, folder):
    picture, said = served.call("examine", served.upload(folder / "train" / "005.png"))
    assert "<strong>Match</strong>" in said and "005.png" in said and said.count("data:image/jpeg") == 5
    assert picture["path"]
    assert served.call("examine", None) == [None, ""]


@needs_gradio
def test_a_file_that_is_no_picture_is_told(served, tmp_path):
    (tmp_path / "broken.png").write_text("no picture")
    picture, said = served.call("examine", served.upload(tmp_path / "broken.png"))
    assert picture is None and "Not checked" in said and "cannot be read" in said


@needs_gradio
def test_a_prompt_is_drawn(served):
    drawn = [served.call("draw", "a cat", 2, seed) for seed in range(4)]
    assert all((picture is not None) == ("No match" in said) for picture, said in drawn)
    assert all("drawn by" in said for _, said in drawn)


SEEDS = """
import gradio
from lcmem_filter.app import Finding, page

class Draws:
    takes_prompt = True

    def draw(self, prompt, *, steps, seed):
        print("drawn from", seed)
        return Finding(None)

with gradio.Blocks() as blocks:
    page._prompt_tab(gradio, Draws(), lambda finding: "")
(draw,) = blocks.fns.values()
draw.fn("a cat", 2, None)
field = draw.inputs[2]
print("kept", field.preprocess(2**53) == 2**53)
try:
    field.preprocess(10**30)
except gradio.Error as error:
    print("told", error.message)
"""


@needs_gradio
def test_an_empty_seed_is_0_and_one_that_is_too_large_is_told():
    done = subprocess.run([sys.executable, "-c", SEEDS], capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[:2] == ["drawn from 0", "kept True"], done.stderr
    assert "greater than maximum value" in done.stdout


@needs_gradio
def test_behind_a_proxy_the_page_is_shared_with_nobody_and_what_helps_is_told():
    class Page:
        def launch(self, **_: Any) -> Any:
            raise ValueError("a shareable link must be created. Please set share=True")

    silent: Any = Page()
    with pytest.raises(ConfigurationError, match=r"does not answer at 127.0.0.1 .* NO_PROXY=") as error:
        serve(silent)
    assert "share=True" not in str(error.value)


@needs_gradio
def test_a_port_that_is_taken_is_told_by_the_options_of_the_command():
    code = (
        "import socket, gradio; from lcmem_filter.app import serve\n"
        "taken = socket.create_server(('127.0.0.1', 0))\n"
        "with gradio.Blocks() as page: gradio.Markdown('')\n"
        "serve(page, port=taken.getsockname()[1])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    last = done.stderr.splitlines()[-1]
    assert re.search(r"ConfigurationError: .*127.0.0.1, port \d+: .* give another --port or --host$", last), (
        done.stderr
    )


@needs_gradio
def test_without_a_pipeline_there_is_nothing_to_draw(folder):
    code = (
        "from lcmem_filter.app import Examiner, build_app; from lcmem_filter import MemorizationIndex; "
        "page = build_app(Examiner(MemorizationIndex.load('index'))); "
        "print([one.api_name for one in page.fns.values()])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.strip() == "['examine']", done.stderr


def test_without_gradio_the_extra_is_named_before_anything_is_loaded(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lcmem_filter\[app\]'"):
        check_gradio()
    assert main(["app", "no-such-index"]) == 2
    err = capsys.readouterr().err
    assert "pip install 'lcmem_filter[app]'" in err and err.count("\n") == 1
