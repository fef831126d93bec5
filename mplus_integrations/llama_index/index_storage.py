"""Storage of an index: its structure, and latents that are saved with a ``StorageContext``."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import fsspec
from llama_index.core.data_structs.data_structs import IndexStruct
from llama_index.core.data_structs.registry import INDEX_STRUCT_TYPE_TO_INDEX_STRUCT_CLASS
from llama_index.core.data_structs.struct_type import IndexStructType
from llama_index.core.storage import StorageContext
from llama_index.core.vector_stores.simple import DEFAULT_VECTOR_STORE, SimpleVectorStore
from pydantic import PrivateAttr

from mplus import Memory
from mplus_integrations.arguments import checked_folder
from mplus_integrations.store_place import StorePlace as StorePlace  # earlier pickles look for it here

logger = logging.getLogger(__name__)

STRUCT_TYPE = cast("IndexStructType", "mplus: import mplus_integrations.llama_index before load_index_from_storage")
"""The name of our structures. LlamaIndex shows it in its error where this package was not imported."""
STRUCT_TYPES = (STRUCT_TYPE, cast("IndexStructType", "mplus"))
"""All names that saved indices have; the second is of earlier ones."""
FOLDER = "mplus_folder"


@dataclass
class MPlusStruct(IndexStruct):
    """The structure of an index in a ``StorageContext``: names, no tensors."""

    nodes: dict[str, str] = field(default_factory=dict[str, str])
    """Ids of nodes, with the ids of their documents."""
    store: dict[str, Any] | None = None
    """The store of the latents; None: they are saved with the index."""
    memory_key: str | None = None
    """Name of the latents in the store."""
    time_key: str | None = None
    """Key of the metadata that says when a node was said."""

    @classmethod
    def get_type(cls) -> IndexStructType:
        """The name under which LlamaIndex finds the class again."""
        return STRUCT_TYPE


for _name in STRUCT_TYPES:
    INDEX_STRUCT_TYPE_TO_INDEX_STRUCT_CLASS[_name] = MPlusStruct


def namespace(index_id: str) -> str:
    """The name of an index's latents among the vector stores of a ``StorageContext``, and on disk."""
    digest = hashlib.sha256(index_id.encode("utf-8", "surrogatepass")).hexdigest()
    return f"mplus-{digest[:16]}"


def refuse_vectors(storage_context: StorageContext) -> None:
    """Refuse a ``StorageContext`` that was made with a vector store: nothing would be put there.

    Raises:
        ValueError: It was.
    """
    found = storage_context.vector_stores.get(DEFAULT_VECTOR_STORE)
    if found is not None and not isinstance(found, SimpleVectorStore):
        raise ValueError(
            f"storage_context= with vector_store={type(found).__name__}: an MPlusIndex keeps latents, no vectors. To "
            "keep it, write store=mplus.MemoryStore(folder) with memory_key=, or index.persist(folder)."
        )


class LatentsBesideIndex(SimpleVectorStore):
    """An empty vector store that saves latents whenever its ``StorageContext`` is persisted."""

    _memory: Callable[[], Memory | None] = PrivateAttr()
    _name: str = PrivateAttr()

    @classmethod
    def of(cls, name: str, memory: Callable[[], Memory | None]) -> "LatentsBesideIndex":
        """A store that saves the memory that ``memory`` returns; None saves nothing."""
        found = cls()
        found._name, found._memory = name, memory
        return found

    def persist(self, persist_path: str = "", fs: fsspec.AbstractFileSystem | None = None) -> None:
        """Save the latents into a folder beside the file that LlamaIndex names."""
        checked_folder(Path(persist_path).parent, "persist_dir") if fs is None else None
        memory = self._memory()
        if memory is not None and fs is None:
            folder = Path(persist_path).absolute().parent / self._name
            memory.save(folder)
            self.data.metadata_dict[FOLDER] = str(folder)
        elif memory is not None:
            logger.info("Latents are saved on local disks only; from %s they will be written again from text.", fs)
        super().persist(persist_path, fs)


def saved_folder(storage_context: StorageContext, index_id: str, persist_dir: str | Path | None) -> Path | None:
    """The folder with the latents of an index; None if they were not saved."""
    name = namespace(index_id)
    if persist_dir is not None:
        return Path(persist_dir) / name
    known = storage_context.vector_stores.get(name)
    folder = known.data.metadata_dict.get(FOLDER) if isinstance(known, SimpleVectorStore) else None
    return None if folder is None else Path(folder)
