"""Requests and answers of the API of memories, as they come over the wire."""

from typing import Annotated, Any, Self

from fastapi import UploadFile
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from mplus_integrations.server.activity import Act
from mplus_integrations.server.memories import Item, Times
from mplus_integrations.server.wire import Message, When
from mplus_integrations.sources import refuse_marks


class Body(BaseModel):
    """A request, whose unknown names are errors."""

    model_config = ConfigDict(extra="forbid")


def _unmarked(metadata: dict[str, Any]) -> dict[str, Any]:
    refuse_marks(metadata, "what is to be remembered")
    return metadata


Text = Annotated[str, Field(min_length=1)]
Metadata = Annotated[dict[str, Any], AfterValidator(_unmarked)]
Named = Annotated[str, Field(min_length=1, max_length=4096)]


class Timed(Body):
    """A request to read what was said at some time."""

    since: When = None
    """Only what was said from then on."""
    until: When = None
    """Only what was said up to then."""
    as_of: When = None
    """The memory as it was then: nothing that was said later."""

    def times(self) -> Times:
        """When what is read was said."""
        return Times(self.since, self.until, self.as_of)


class Document(Body):
    """A text with a name."""

    text: Text
    source: Named | None = None
    """Name under which it can be recalled and forgotten; by default one is made."""
    metadata: Metadata = Field(default_factory=dict[str, Any])
    """Data about it, returned when it is recalled."""
    at: When = None
    """When it was said; by default now."""


class NewMemory(Body):
    """A memory to make."""

    name: str
    copy_of: str | None = None
    """A memory whose content it begins with."""


class Writing(Body):
    """What is to be remembered: a text, or documents, or messages."""

    text: Text | None = None
    source: Named | None = None
    """Name of the text, or of all documents without one."""
    metadata: Metadata | None = None
    """Data about the text, or about all documents beside their own."""
    documents: Annotated[list[Document], Field(min_length=1)] | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    """Turns of a conversation; those that are in memory already stay as they are."""
    keep_text: bool = True
    """Whether the text itself is kept, so that search and sources can show it."""
    at: When = None
    """When it was said, also that of documents without a time of their own; by default now."""
    dated: bool = False
    """Whether each text with a time begins with the date for the reader."""

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        given = [name for name in ("text", "documents", "messages") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"{' and '.join(given) or 'nothing'} to write: expected text, documents or messages.")
        if self.messages is not None and (self.source is not None or self.metadata is not None):
            raise ValueError("source or metadata beside messages: each turn has a name of its own. Leave them out.")
        times = [self.at, *(one.at for one in self.documents or ())]
        if self.dated and all(time is None for time in times):
            raise ValueError("dated without at: expected when it was said, such as '2024-03-03'.")
        return self

    def items(self) -> list[Item]:
        """The text or documents as they are written."""
        documents = self.documents or [Document(text=self.text or "")]
        about = self.metadata or {}
        return [
            Item(
                one.text,
                one.source or self.source,
                {**about, **one.metadata},
                self.at if one.at is None else one.at,
                self.dated,
            )
            for one in documents
        ]


class SentFiles(Body):
    """Text files to remember, as a form."""

    files: list[UploadFile]
    """Text files; the name of each is its source."""
    source: Named | None = None
    """Name of all of them."""
    at: str | None = None
    """When they were said; by default now."""
    dated: bool = False
    """Whether each begins with the date for the reader."""

    @field_validator("files", mode="before")
    @classmethod
    def _are_files(cls, parts: Any) -> Any:
        if any(isinstance(part, str) for part in parts):
            raise ValueError("expected files with names, such as curl -F files=@notes.txt")
        return parts

    @model_validator(mode="after")
    def _has_a_time(self) -> Self:
        if self.dated and self.at is None:
            raise ValueError("dated without at: expected when it was said, such as '2024-03-03'.")
        return self


class Replacing(Body):
    """A source and its new text."""

    source: Named
    text: Text
    metadata: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Data about it, in place of that of the old text. What says what the source is stays."""
    keep_text: bool = True
    at: When = None
    """When it was said; by default now."""
    dated: bool = False
    """Whether it begins with the date for the reader."""

    def item(self) -> Item:
        """The source as it is written."""
        return Item(self.text, self.source, self.metadata, self.at, self.dated)


class OfSource(Body):
    """A source by name."""

    source: Named


class Forgetting(OfSource):
    """A source to forget."""

    rebuild: bool = False
    """Write everything after it once more, as if it had never been written."""


class Searching(Timed):
    """What is searched for."""

    query: Text
    limit: Annotated[int, Field(ge=1, le=1000)] = 4
    where: dict[str, Any] | None = None
    """Metadata that a source must have."""
    shared: list[str] = Field(default_factory=list[str])
    """Memories that are searched beside it."""


class Recalling(Timed):
    """A question, to see what an answer to it would read."""

    question: Text
    where: dict[str, Any] | None = None
    shared: list[str] | None = None
    """Memories that are read beside it; by default those that the server shares."""
    passages: bool = False
    """Whether the sentences that are read are told too."""


class Labelled(Body):
    """A snapshot to take."""

    label: Annotated[str, Field(max_length=1000)] = ""


class OfSnapshot(Body):
    """A snapshot by its id."""

    snapshot: Named


class AccessBody(BaseModel):
    """What a key opens."""

    memory: str
    """The memory that is meant where a request names none."""
    opens: list[str] | None
    """Memories that it reads and writes; null: every one."""
    reads: list[str]
    """Memories that may also be read beside them."""
    needs_key: bool
    """Whether each request needs an API key."""
    model: str
    """The name of the model."""


class ActivityBody(BaseModel):
    """What was done with a memory."""

    since: float
    """Unix time since when acts are kept: the start of the server."""
    acts: list[Act]
    """The latest acts, the oldest first."""


class ProblemBody(BaseModel):
    """What went wrong (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    error: dict[str, Any]
    """The same for OpenAI's clients."""
