"""``mplus train``: from a model and texts to a model that remembers, stage by stage.

    projection, reader       for the default layout: recall by whole chunks, each token's own state
    scorer                   the published retriever on that layout, for comparison
    published-1, -2, -3      the published recipe: compressed tokens, a write adapter, a co-trained retriever

At the end the model is asked the same questions as the one that training began with.

A stage begins with the parts that the one before it left. Its own are kept when it is finished, so that a run
which was killed goes on where it was.
"""

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator

from mplus.checkpoint import catalog
from mplus.checkpoint.backbone_files import read_config
from mplus.checkpoint.gguf_model import named
from mplus.checkpoint.parts import PARTS_FILE, PARTS_TENSORS, TrainedParts, read_parts, write_parts
from mplus.checkpoint.published_layout import is_published
from mplus.errors import UnsupportedModelError
from mplus.model import MPlus
from mplus.storage.folder import Folder
from mplus.storage.whole_folder import sync_tree
from mplus.training.before_after import before_and_after
from mplus.training.chunk.chunk_run import ChunkRun
from mplus.training.published.published_run import PublishedRun
from mplus.training.run_folder import RunFolder
from mplus.training.run_settings import RunSettings


def run(settings: RunSettings, out: Path, *, resume: bool = False) -> Path:
    """Train a model's parts; returns the folder of the trained model.

    Args:
        settings: What is asked for.
        out: The run's folder.
        resume: Go on with the run that is there.

    Raises:
        ValueError: Settings that make no sense, or another run in the folder.
        ModelNotFoundError: Nothing under the model's name.
        UnsupportedModelError: A backbone that M+ cannot read, write or train.
    """
    accelerator = Accelerator(
        cpu=settings.device == "cpu",
        mixed_precision=None if settings.precision == "auto" else settings.precision,
    )
    if accelerator.num_processes > 1 and not settings.is_published:
        raise ValueError(
            f"stages={', '.join(settings.stages)} train in one process, this is one of {accelerator.num_processes}. "
            "Run mplus train without accelerate launch; only the published stages use several."
        )
    folder = RunFolder(out)
    if accelerator.is_main_process:
        folder.begin(settings.model_dump(mode="json"), resume=resume)
    accelerator.wait_for_everyone()
    kind = PublishedRun if settings.is_published else ChunkRun
    training = kind(settings, folder, accelerator)
    if settings.is_published and training.model.weights.backbone.recalls_once:
        raise UnsupportedModelError(
            f"model={settings.model!r}: its layers are called as they are (docs/reference/models.md), and the "
            "published stages need a model like Llama. Train it with --stages projection,reader."
        )
    parts = training.model.trained_parts
    for name in settings.stages:
        finished = folder.finished_parts(name)
        if not finished.exists():
            parts = training.stage(name, parts)
            if accelerator.is_main_process:
                with _put_in_place(finished) as writing:
                    write_parts(writing, parts)
            accelerator.wait_for_everyone()
        parts = read_parts(finished)
    if accelerator.is_main_process:
        save_model(folder.model, settings.model, training.model, parts)
        shutil.rmtree(folder.states, ignore_errors=True)  # Some systems do not remove open files.
        training.log.say(f"The trained model is in {folder.model}")
    accelerator.wait_for_everyone()
    is_first = accelerator.is_main_process
    log = training.log
    accelerator.end_training()  # else threads of the process group may abort what has ended well
    if is_first and settings.evaluate != "none":
        del training  # its models make room for those that are asked
        log.say(before_and_after(settings, folder))
    return folder.model


def save_model(folder: Path, name: str, model: MPlus, parts: TrainedParts) -> None:
    """The backbone as it came, with trained parts beside it.

    Its files are copied where they are a plain backbone's, so that no weight changes its precision; of a GGUF file,
    the weights are saved that it stands for.
    """
    place, gguf_file = named(name, None)
    origin = catalog.resolve(place)
    with _put_in_place(folder) as writing:
        if gguf_file is not None or is_published(read_config(origin)):
            model.save_pretrained(writing)
        else:
            for path in origin.iterdir():
                if path.is_file() and path.name not in (PARTS_FILE, PARTS_TENSORS, catalog.MANIFEST):
                    shutil.copy2(path, writing / path.name)
        write_parts(writing, parts)


@contextmanager
def _put_in_place(folder: Path) -> Generator[Path]:
    """An empty folder to write into, which becomes the given one in one step."""
    writing = folder.with_name(f".{folder.name}")
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir(parents=True)
    yield writing
    sync_tree(writing)
    shutil.rmtree(folder, ignore_errors=True)
    writing.replace(folder)
    Folder(folder.parent).sync()
