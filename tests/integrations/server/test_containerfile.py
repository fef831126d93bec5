"""The Containerfile against the tree: no engine runs here, so each line that names something of ours is looked up."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections import defaultdict
from pathlib import Path

import pytest
from typer.testing import CliRunner

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
TEXT = (ROOT / "Containerfile").read_text(encoding="utf-8")


def instructions() -> dict[str, list[str]]:
    """Arguments of each instruction, in order; continued lines are joined."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in re.sub(r"\\\n\s*", "", TEXT).splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, rest = line.partition(" ")
            found[name].append(rest.strip())
    return found


FILE = instructions()
ENVIRONMENT = dict(pair.split("=", 1) for line in FILE["ENV"] for pair in line.split())


def test_it_copies_what_is_there_and_all_that_the_package_is_made_of() -> None:
    copied = {name.removeprefix("./") for line in FILE["COPY"] for name in line.split()[:-1]}
    assert [name for name in copied if not (ROOT / name).exists()] == []
    project, hatch = PROJECT["project"], PROJECT["tool"]["hatch"]
    needed = {"pyproject.toml", project["readme"], *project["license-files"]}
    needed |= set(hatch["build"]["targets"]["wheel"]["packages"])
    assert needed <= copied
    for line in FILE["COPY"]:  # the contents of a folder are copied, not the folder
        *names, target = line.split()
        assert target == ("./" if (ROOT / names[0]).is_file() else f"./{names[0]}")


def test_the_package_is_built_of_what_is_copied_and_holds_no_more(tmp_path: Path) -> None:
    """The ignore file lets in what is copied and nothing else; there is no ``.git`` to say what a clone leaves behind."""
    pytest.importorskip("hatchling", reason="needs the extra dev: hatchling is not installed")
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    copied = {name for line in FILE["COPY"] for name in line.replace("./", "").split() if name}
    assert rules[0] == "*" and {rule.removeprefix("!") for rule in rules if rule.startswith("!")} == copied
    left_out = {rule.removeprefix("**/") for rule in rules[1:] if not rule.startswith("!")}
    assert left_out == {"__pycache__", "*.py[cod]"}
    for name in copied:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns(*left_out))
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "built"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "built").iterdir()
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    there = {path for name in packages for path in (tmp_path / name).rglob("*") if path.is_file()}
    assert held == {path.relative_to(tmp_path).as_posix() for path in there}


def test_it_installs_extras_that_there_are_and_a_python_that_is_supported() -> None:
    (run,) = FILE["RUN"]
    (extras,) = re.findall(r'pip install --no-cache-dir "\.\[([^]]+)\]"', run)
    assert {"serve", "mcp"} <= set(extras.split(",")) <= PROJECT["project"]["optional-dependencies"].keys()
    (base,) = FILE["FROM"]
    version = re.fullmatch(r"docker\.io/library/python:(3\.\d+)-slim", base)
    assert version is not None
    assert f"Programming Language :: Python :: {version[1]}" in PROJECT["project"]["classifiers"]


def test_it_runs_without_rights_in_a_folder_of_its_own() -> None:
    (run,), (user,), (volume,) = FILE["RUN"], FILE["USER"], FILE["VOLUME"]
    assert f"useradd --create-home --uid 1000 {user}" in run
    assert f"install -d -o {user} -g {user} {volume}" in run
    assert TEXT.index("RUN") < TEXT.index("USER") < TEXT.index("ENTRYPOINT")
    assert FILE["WORKDIR"][-1] == volume == ENVIRONMENT["MPLUS_HOME"]
    assert Path(ENVIRONMENT["MPLUS_SERVE_MEMORIES"]).parent == Path(volume)


def test_its_settings_and_its_check_of_health_fit_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    from mplus_integrations.server.app import create_app
    from mplus_integrations.server.settings import read_settings

    for name in [name for name in os.environ if name.startswith("MPLUS_SERVE_")]:
        monkeypatch.delenv(name)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    settings = read_settings({})
    assert settings.needs_key  # other machines reach it
    assert FILE["EXPOSE"] == [str(settings.port)]
    (check,) = FILE["HEALTHCHECK"]
    python, flag, code = json.loads(check[check.index("[") :])
    assert (python, flag) == ("python", "-c")
    compile(code, "healthcheck", "exec")
    (url,) = re.findall(r"http://[^']+", code)
    assert url.startswith(f"http://127.0.0.1:{settings.port}/")
    paths = {getattr(route, "path", None) for route in create_app(settings).routes}
    assert url.removeprefix(f"http://127.0.0.1:{settings.port}") in paths


async def test_its_check_of_health_is_answered_without_a_key_once_the_model_is_there(tmp_path: Path) -> None:
    import httpx

    from mplus.testing import tiny_model
    from mplus_integrations.server.app import create_app
    from mplus_integrations.server.service import Service
    from mplus_integrations.server.settings import ServeSettings

    settings = ServeSettings(host=ENVIRONMENT["MPLUS_SERVE_HOST"], memories=tmp_path)
    assert settings.needs_key
    service = Service(settings, model=tiny_model())
    (path,) = re.findall(r"http://127\.0\.0\.1:\d+(/[^']+)", FILE["HEALTHCHECK"][0])
    transport = httpx.ASGITransport(create_app(settings, service=service))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as http:
        assert (await http.get(path)).status_code == 503
        service.load()
        assert (await http.get(path)).status_code == 200
        service.close()


def test_its_command_is_one_of_ours() -> None:
    from mplus.cli.app import app

    program, command = json.loads(FILE["ENTRYPOINT"][0])
    assert program in PROJECT["project"]["scripts"]
    done = CliRunner().invoke(app, [command, "--help"])
    assert done.exit_code == 0
    assert "--keys" in re.sub(r"\x1b\[[0-9;]*m", "", done.output)
