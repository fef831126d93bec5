"""The Containerfile against the tree: no engine runs here, so each line that names something of ours is looked up."""

import json
import os
import re
import tomllib
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


def test_its_command_is_one_of_ours() -> None:
    from mplus.cli.app import app

    program, command = json.loads(FILE["ENTRYPOINT"][0])
    assert program in PROJECT["project"]["scripts"]
    done = CliRunner().invoke(app, [command, "--help"])
    assert done.exit_code == 0
    assert "--keys" in re.sub(r"\x1b\[[0-9;]*m", "", done.output)
