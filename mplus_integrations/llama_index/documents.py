"""Documents of an index: inserted, updated, refreshed and deleted, with no argument that does not exist."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Self, cast

from llama_index.core.indices.base import BaseIndex
from llama_index.core.ingestion import run_transformations
from llama_index.core.schema import BaseNode, Document

from mplus import UnknownNameError
from mplus_integrations.arguments import checked_id, checked_several, checked_switch
from mplus_integrations.llama_index.index_storage import MPlusStruct
from mplus_integrations.llama_index.nodes import check_ids, check_metadata, described, written_text
from mplus_integrations.sources import is_blank
from mplus_integrations.worker import in_thread

logger = logging.getLogger(__name__)

UPDATE: dict[str, Any] = {"insert_kwargs": {}, "delete_kwargs": {}}
REFRESH: dict[str, Any] = {"insert_kwargs": {}, "update_kwargs": UPDATE}
"""What an update and a refresh take: arguments of the steps that they consist of, which take none here."""


class KnownDocumentArguments(BaseIndex[MPlusStruct]):
    """What every index does with whole documents, checked before anything is changed.

    Raises:
        ValueError: An argument that does not exist, an empty id, or metadata that cannot be kept, of every member.
            Nothing is changed then.
    """

    @classmethod
    def from_documents(cls, documents: Sequence[Document], *args: Any, **kwargs: Any) -> Self:
        """Write documents into a new index. One without text, such as a blank page, is left out, and the log names it.

        Raises:
            ValueError: None of them has text, they are no documents, an id is empty, or metadata cannot be kept.
        """
        documents = check(documents)
        blank = blanks(documents)
        if blank and len(blank) == len(documents):
            raise ValueError(f"{len(blank)} documents, none of them with text ({', '.join(blank[:5])}): expected some.")
        return super().from_documents(documents, *args, **kwargs)  # pyright: ignore[reportReturnType]

    def insert(self, document: Document, **insert_kwargs: Any) -> None:
        """Write a document."""
        UnknownNameError.check(insert_kwargs, {"document"}, of="insert")
        check([document], "document")
        blanks([document])
        super().insert(document)

    async def ainsert(self, document: Document, **insert_kwargs: Any) -> None:
        """``insert`` without blocking the event loop."""
        UnknownNameError.check(insert_kwargs, {"document"}, of="ainsert")
        check([document], "document")
        await super().ainsert(document)

    def delete(self, doc_id: str, **delete_kwargs: Any) -> None:
        """``delete_ref_doc`` by the name that LlamaIndex had for it."""
        UnknownNameError.check(delete_kwargs, {"doc_id"}, of="delete")
        super().delete(checked_id(doc_id, "doc_id"))

    def delete_ref_doc(self, ref_doc_id: str, delete_from_docstore: bool = True, **delete_kwargs: Any) -> None:
        """Forget a document: neither latents nor, unless asked to keep it, text stay; a refresh takes it again."""
        UnknownNameError.check(delete_kwargs, {"ref_doc_id", "delete_from_docstore"}, of="delete_ref_doc")
        checked_switch(delete_from_docstore, "delete_from_docstore")
        checked_id(ref_doc_id, "ref_doc_id")
        super().delete_ref_doc(ref_doc_id, delete_from_docstore=delete_from_docstore)

    async def adelete_ref_doc(self, ref_doc_id: str, delete_from_docstore: bool = True, **delete_kwargs: Any) -> None:
        """``delete_ref_doc`` without blocking the event loop."""
        await in_thread(self.delete_ref_doc, ref_doc_id, delete_from_docstore, **delete_kwargs)

    def update_ref_doc(self, document: Document, **update_kwargs: Any) -> None:
        """Write a document in place of what was written of it."""
        _check(update_kwargs, UPDATE, of="update_ref_doc")
        check([document], "document")
        super().update_ref_doc(document)

    async def aupdate_ref_doc(self, document: Document, **update_kwargs: Any) -> None:
        """``update_ref_doc`` without blocking the event loop."""
        _check(update_kwargs, UPDATE, of="aupdate_ref_doc")
        check([document], "document")
        await super().aupdate_ref_doc(document)

    def refresh_ref_docs(self, documents: Sequence[Document], **update_kwargs: Any) -> list[bool]:
        """Write the documents that are new or have changed; says of each whether it was written."""
        _check(update_kwargs, REFRESH, of="refresh_ref_docs")
        documents = check(documents)
        if len({document.id_ for document in documents}) < len(documents):
            return super().refresh_ref_docs(documents)  # each is compared with the one before it
        with self._callback_manager.as_trace("refresh_ref_docs"):
            known = [self.docstore.get_document_hash(document.id_) for document in documents]
            fresh = [found != document.hash for found, document in zip(known, documents, strict=True)]
            self._replace([document for document, is_fresh in zip(documents, fresh, strict=True) if is_fresh])
        return fresh

    def _replace(self, documents: Sequence[Document]) -> None:
        """Write documents in place of what was written of them, all through the model together.

        Nodes are made before anything is forgotten: an error of a splitter leaves everything as it was.
        """
        blanks(documents)
        nodes = run_transformations(documents, self._transformations, show_progress=self._show_progress)
        for document in documents:
            if self.docstore.get_document_hash(document.id_) is not None:
                self.delete_ref_doc(document.id_)
        self.insert_nodes(nodes)
        for document in documents:
            self.docstore.set_document_hash(document.id_, document.hash)

    async def arefresh_ref_docs(self, documents: Sequence[Document], **update_kwargs: Any) -> list[bool]:
        """``refresh_ref_docs`` without blocking the event loop."""
        _check(update_kwargs, REFRESH, of="arefresh_ref_docs")
        return await in_thread(self.refresh_ref_docs, documents, **update_kwargs)


def check(documents: Sequence[Document], name: str = "documents") -> list[Document]:
    """Documents whose ids and metadata are checked before LlamaIndex looks at them: it makes a hash of metadata.

    Raises:
        ValueError: They are no documents, an id is empty, or metadata cannot be kept.
    """
    found = cast(list[Document], checked_several(documents, name, BaseNode))
    check_ids(found)
    check_metadata(found)
    return found


def blanks(documents: Sequence[Document]) -> list[str]:
    """The documents without text, described; the log names them."""
    found = [described(document) for document in documents if is_blank(written_text(document))]
    if found:
        logger.warning("Documents without text are left out: %s", ", ".join(found))
    return found


def _check(given: Mapping[str, Any], known: Mapping[str, Any], *, of: str) -> None:
    UnknownNameError.check(given, known, of=of)
    for name, inner in given.items():
        _check(inner or {}, known[name], of=f"{name} of {of}")
