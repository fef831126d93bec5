"""The commands and clients that the guide prints, run as they are printed, but for the address."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import mplus
from mplus_integrations.server.service import Service
from mplus_integrations.server.settings import ServeSettings
from tests.integrations.server.conftest import MODEL, Served, running

GUIDE = (Path(__file__).parents[3] / "docs" / "how-to" / "serve.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", GUIDE, re.S) for line in block.splitlines()]
CURLS = [line for line in COMMANDS if line.startswith("curl ")]


@pytest.fixture
def site(tiny: mplus.MPlus, tmp_path: Path) -> Iterator[Served]:
    """A server that is called by the name that the guide uses."""
    settings = ServeSettings(model=MODEL, aliases=("smol-135m",), memories=tmp_path / "memories", max_tokens=4)
    with running(Service(settings, model=tiny)) as one:
        yield one


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_every_curl_of_the_guide_is_answered(site: Served) -> None:
    assert len(CURLS) >= 2
    for line in CURLS:
        command = line.replace("localhost:8000", site.url.removeprefix("http://"))
        done = subprocess.run(["bash", "-c", f"{command} -sS --fail-with-body"], capture_output=True, text=True)
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        assert "error" not in json.loads(done.stdout)


def test_the_client_of_the_guide_is_answered(site: Served) -> None:
    openai = pytest.importorskip("openai", reason="needs the package openai")
    (code,) = [block for block in re.findall(r"```text\n(.*?)```", GUIDE, re.S) if "openai.OpenAI" in block]
    code = code.replace("http://localhost:8000", site.url).replace('"…"', '"a key"')
    exec(compile(code.replace("client.chat", "answer = client.chat"), "serve.md", "exec"), names := {"openai": openai})
    assert names["answer"].choices[0].message.content and names["answer"].mplus["memory"] == "anna"


def test_every_route_stands_in_the_guide(site: Served) -> None:
    with site.client() as http:
        paths = http.get("/openapi.json").json()["paths"]
    for path in paths:
        last = re.sub(r"/\{[^/]+\}$", "", path).rsplit("/", 1)[-1]
        assert path in GUIDE or f"/{last}" in GUIDE, path
