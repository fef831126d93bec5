"""What users get: the wheel and the source archive are built, installed into a fresh environment and used."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import mplus

ROOT = Path(__file__).parent.parent
REMEMBERS = """
import sys
import mplus
from mplus.testing import tiny_model

assert mplus.__file__.startswith(sys.prefix), mplus.__file__
model = tiny_model(num_hidden_layers=1)
memory = model.new_memory()
model.write(memory, "The key is under the third flowerpot by the door.", source="note")
print(mplus.__version__, model.generate(memory, "Where is the key?", max_new_tokens=2).completion_tokens)
"""


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both; the wheel is built from the source archive."""
    folder = tmp_path_factory.mktemp("archives")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return folder


@pytest.fixture
def environment(archives: Path, tmp_path: Path) -> Path:
    """A fresh environment into which the wheel is installed; everything else comes from this one."""
    folder = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    (wheel,) = archives.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True)
    (packages(folder) / "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return folder


def packages(environment: Path) -> Path:
    (folder,) = environment.glob("lib/python*/site-packages")
    return folder


def run(*command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command far from this repository."""
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    arguments = [str(part) for part in command]
    result = subprocess.run(arguments, cwd="/", env=outside, capture_output=True, text=True, check=False)
    assert result.returncode == 0 or not check, result.stderr
    return result


def test_both_archives_hold_the_package_and_nothing_else(archives: Path) -> None:
    (wheel,), (source,) = archives.glob("*.whl"), archives.glob("*.tar.gz")
    assert wheel.name == f"mplus_memory-{mplus.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = set(archive.namelist())
    with tarfile.open(source) as archive:
        in_source = {name.partition("/")[2] for name in archive.getnames()}
    tracked = subprocess.run(
        ["git", "ls-files", "mplus", "mplus_integrations"], cwd=ROOT, capture_output=True, text=True
    )
    ours = {path for path in tracked.stdout.splitlines() if (ROOT / path).exists()}
    assert {"mplus/py.typed", "mplus/assets/smol-135m/mplus.safetensors", "mplus/__init__.pyi"} <= in_wheel & in_source
    assert ours <= in_wheel & in_source
    assert {f"mplus_integrations/server/page/{name}" for name in ("index.html", "style.css", "app.js")} <= in_wheel
    assert {"README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml"} <= in_source
    assert {path.split("/")[0].split("-")[0] for path in in_wheel} == {"mplus", "mplus_integrations", "mplus_memory"}
    assert not [path for path in in_wheel | in_source if "__pycache__" in path or path.startswith("tests")]


def test_the_wheel_runs_in_a_fresh_environment(environment: Path) -> None:
    shown = run(environment / "bin" / "python", "-W", "error::UserWarning", "-c", REMEMBERS).stdout
    assert shown.split() == [mplus.__version__, "2"]
    assert "ask" in run(environment / "bin" / "mplus", "--help").stdout


def install_the_other(packages: Path) -> None:
    """What the other distribution of the name ``mplus`` leaves in an environment."""
    record = packages / "mplus-0.1.2.dist-info" / "RECORD"
    record.parent.mkdir()
    record.write_text("mplus/__init__.py,sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU,0\n", encoding="utf-8")


def test_import_and_command_fail_beside_the_other_mplus(environment: Path) -> None:
    python, folder = environment / "bin" / "python", packages(environment)
    install_the_other(folder)
    result = run(python, "-c", "import mplus", check=False)
    assert result.returncode and "holds the distribution 'mplus' 0.1.2, another project" in result.stderr
    assert "pip uninstall -y mplus && pip install --force-reinstall --no-deps mplus-memory" in result.stderr
    # The other one was installed last: its file stands where ours was.
    (folder / "mplus" / "__init__.py").write_text("", encoding="utf-8")
    result = run(environment / "bin" / "mplus", "--help", check=False)
    assert result.returncode and result.stderr.startswith("mplus: ") and "another project" in result.stderr
    result = run(python, "-c", "import mplus_integrations", check=False)
    assert result.returncode and "it has no MPlus" in result.stderr and "mplus-memory" in result.stderr


def test_an_editable_install_under_our_former_name_is_not_the_other(tmp_path: Path) -> None:
    (tmp_path / "mplus").symlink_to(ROOT / "mplus")
    record = tmp_path / "mplus-0.1.0.dist-info" / "RECORD"
    record.parent.mkdir()
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import mplus; print(mplus.__file__)"
    assert str(tmp_path) in run(sys.executable, "-c", code).stdout
    record.write_text("_mplus.pth,,\n", encoding="utf-8")
    assert str(tmp_path) in run(sys.executable, "-c", code).stdout
    record.write_text("mplus/__init__.py,,\n", encoding="utf-8")
    assert "another project" in run(sys.executable, "-c", code, check=False).stderr
