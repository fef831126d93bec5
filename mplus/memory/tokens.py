"""Memory tokens and their provenance: parallel arrays that are always filtered together."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int, Int32, Shaped
from torch import Tensor

from mplus.memory.column import Column, Numbers, as_tensor
from mplus.memory.stacks import joined_rows, paired, rows_of, unpaired
from mplus.shapes import Ages, Index, RetrievalKeys
from mplus.words import no_words

Made = TypeVar("Made")


@dataclass(frozen=True)
class Provenance:
    """Source, age and recall frequency of tokens; one row per token."""

    ages: Ages
    """Memory tokens written since this one."""
    recall_frequencies: Float[Tensor, " T"]
    """Recall frequency (float64): it falls at each consolidation, and at 0 the token is forgotten."""
    sources: Int[Tensor, " T"]
    """Row of the memory's table of sources."""
    chunks: Int[Tensor, " T"]
    """Serial number of the chunk a token was written with."""
    words: Int32[Tensor, " T"]
    """Number of the word that begins in the token's text; 0: none; negative: none, and a sentence or line ends here
    (``mplus.words``)."""

    def __len__(self) -> int:
        return self.ages.shape[0]

    def take(self, index: Index) -> "Provenance":
        """The rows at ``index``, in that order."""
        return Provenance(*(getattr(self, f.name)[index] for f in fields(self)))

    def at(self, column: str, index: Index) -> Shaped[Tensor, " _"]:
        """A column of the rows at ``index``, in that order."""
        return getattr(self, column)[index]

    def numbers(self, column: str, index: Numbers) -> Numbers:
        """The same as an array of numpy."""
        return getattr(self, column).numpy()[index]

    def changed(self, **columns: Tensor) -> "Provenance":
        """The same tokens with other numbers in some columns."""
        return replace(self, **columns)

    def aged(self, by: int) -> "Provenance":
        """The same tokens after ``by`` more have been written."""
        return replace(self, ages=self.ages + by)

    @staticmethod
    def cat(parts: Sequence["Provenance"]) -> "Provenance":
        """The rows of all parts, in order."""
        return Provenance(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Provenance)))

    @staticmethod
    def none() -> "Provenance":
        """No rows."""
        integers = torch.empty(0, dtype=torch.int64)
        return Provenance(integers, torch.empty(0, dtype=torch.float64), integers, integers, no_words(0))


STEPS = {"ages": -1, "recall_frequencies": 0, "sources": 0, "chunks": 0}
"""By how much each column mostly differs from one token of a chunk to the next."""


class StoredProvenance(Provenance):
    """Provenance of many tokens, kept once for each run of tokens that share it; words are kept for every token.

    A column is made whole each time that it is asked for: ask for all of it seldom, else for some rows (``at``).
    """

    _columns: dict[str, Column]
    words: Int32[Tensor, " T"]

    def __init__(self, ages: Any, recall_frequencies: Any, sources: Any, chunks: Any, words: Any) -> None:
        """Take columns as tensors, or as they are kept."""
        given = {"ages": ages, "recall_frequencies": recall_frequencies, "sources": sources, "chunks": chunks}
        kept = {name: c if isinstance(c, Column) else Column.of(c, STEPS[name]) for name, c in given.items()}
        self.__dict__.update(_columns=kept, words=words)

    @staticmethod
    def of(known: Provenance) -> "StoredProvenance":
        """The same provenance, kept so."""
        if isinstance(known, StoredProvenance):
            return known
        return StoredProvenance(*(getattr(known, field.name) for field in fields(Provenance)))

    @property
    def ages(self) -> Ages:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Ages of all tokens."""
        return as_tensor(self._columns["ages"])

    @property
    def recall_frequencies(self) -> Float[Tensor, " T"]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Recall frequencies of all tokens."""
        return as_tensor(self._columns["recall_frequencies"])

    @property
    def sources(self) -> Int[Tensor, " T"]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Sources of all tokens."""
        return as_tensor(self._columns["sources"])

    @property
    def chunks(self) -> Int[Tensor, " T"]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Chunk numbers of all tokens."""
        return as_tensor(self._columns["chunks"])

    @property
    def chunk_column(self) -> Column:
        """Chunk numbers as they are kept: the same object for as long as the tokens are the same."""
        return self._columns["chunks"]

    @property
    def nbytes(self) -> int:
        """Bytes in host memory."""
        return sum(column.nbytes for column in self._columns.values()) + self.words.nbytes

    def __len__(self) -> int:
        return len(self.words)

    def __repr__(self) -> str:
        return f"StoredProvenance({len(self):,} tokens)"

    def at(self, column: str, index: Index) -> Shaped[Tensor, " _"]:
        """A column of the rows at ``index``, in that order."""
        return self.words[index] if column == "words" else as_tensor(self._columns[column], index)

    def numbers(self, column: str, index: Numbers) -> Numbers:
        """The same as an array of numpy."""
        return self.words.numpy()[index] if column == "words" else self._columns[column].at(index)

    def take(self, index: Index) -> Provenance:
        """The rows at ``index``, in that order, as a few rows are kept."""
        rows = index.numpy()
        return Provenance(
            **{name: torch.from_numpy(column.at(rows)) for name, column in self._columns.items()},
            words=self.words[index],
        )

    def changed(self, **columns: Tensor) -> "StoredProvenance":
        """The same tokens with other numbers in some columns."""
        return StoredProvenance(**{**self._columns, "words": self.words, **columns})

    def aged(self, by: int) -> "StoredProvenance":
        """The same tokens after ``by`` more have been written."""
        return StoredProvenance(**{**self._columns, "words": self.words, "ages": self._columns["ages"].plus(by)})

    @staticmethod
    def joined(parts: Sequence[Provenance]) -> "StoredProvenance":
        """The rows of all parts, in order."""
        stored = [StoredProvenance.of(part) for part in parts]
        columns = {name: Column.cat([part._columns[name] for part in stored]) for name in STEPS}
        return StoredProvenance(**columns, words=torch.cat([part.words for part in stored]))


@dataclass(frozen=True)
class Content:
    """Keys and values that reads attend to, and retrieval keys that recall scores, for the layers of one track.

    Layers are a tuple, not an axis: each layer's tensors may be on that layer's device. Those of one device mostly lie
    side by side (``mplus.memory.stacks``).
    """

    keys: tuple[Float[Tensor, "T _ _"], ...]
    values: tuple[Float[Tensor, "T _ _"], ...]
    retrieval_keys: RetrievalKeys
    states: tuple[Float[Tensor, "T D"], ...] | None = None
    input_ids: Int32[Tensor, " T"] | None = None
    """Token ids, of a memory that keeps them; there are then no keys and values until a read needs them."""

    def __len__(self) -> int:
        return self.retrieval_keys.shape[0]

    def take(self, index: Index) -> "Content":
        """The rows at ``index``, in that order."""
        keys, values = unpaired(rows_of(paired(self.keys, self.values), index))
        (retrieval_keys,) = rows_of([self.retrieval_keys], index)
        ids = None if self.input_ids is None else self.input_ids[index]
        return Content(keys, values, retrieval_keys, self.states and rows_of(self.states, index), ids)

    @staticmethod
    def cat(parts: Sequence["Content"]) -> "Content":
        """The rows of all parts, in order."""
        if len(parts) == 1:
            return parts[0]
        states = [p.states for p in parts if p.states is not None]
        keys, values = unpaired(joined_rows([paired(p.keys, p.values) for p in parts]))
        ids = [p.input_ids for p in parts if p.input_ids is not None]
        return Content(
            keys,
            values,
            torch.cat([p.retrieval_keys for p in parts]),
            joined_rows(states) if len(states) == len(parts) else None,
            torch.cat(ids) if len(ids) == len(parts) else None,
        )

    @property
    def is_cold(self) -> bool:
        """Whether keys and values have to be made before a read."""
        return not self.keys

    @property
    def dtype(self) -> torch.dtype:
        """Dtype in which it is read."""
        return (self.keys or (self.retrieval_keys,))[0].dtype

    @property
    def nbytes(self) -> int:
        """Bytes of every tensor held."""
        ids = () if self.input_ids is None else (self.input_ids,)
        held = (*self.keys, *self.values, self.retrieval_keys, *(self.states or ()), *ids)
        return sum(rows.nbytes for rows in held)


@dataclass(frozen=True, eq=False)
class Tokens:
    """Memory tokens of one track: content and provenance, row by row. Equal only to itself."""

    content: Content
    provenance: Provenance
    _derived: dict[Hashable, Any] = field(default_factory=dict[Hashable, Any], init=False, repr=False)

    def __len__(self) -> int:
        return len(self.provenance)

    @property
    def nbytes(self) -> int:
        """Bytes of their content."""
        return self.content.nbytes

    def retrieval_keys(self, index: Index | slice, device: torch.device) -> RetrievalKeys:
        """Retrieval keys of the rows at ``index``, as numbers on a device."""
        return self.content.retrieval_keys[index].to(device).float()

    def input_ids(self, index: Index) -> Int32[Tensor, " T"]:
        """Token ids of the rows at ``index``, of a memory that keeps them."""
        assert self.content.input_ids is not None, "a memory that keeps keys and values"
        return self.content.input_ids[index]

    def key_bounds(self) -> tuple[int, ...]:
        """The first and last bound only, because retrieval keys are in one tensor."""
        return (0, len(self))

    def derived(self, name: Hashable, make: Callable[[], Made]) -> Made:
        """The value of this name for these tokens; ``make`` computes it on the first call."""
        if name not in self._derived:
            self._derived[name] = make()
        return self._derived[name]

    def take(self, index: Index) -> "Tokens":
        """The rows at ``index``, in that order."""
        return Tokens(self.content.take(index), self.provenance.take(index))

    @staticmethod
    def cat(parts: Sequence["Tokens"]) -> "Tokens":
        """The rows of all parts, in order."""
        return Tokens(Content.cat([p.content for p in parts]), Provenance.cat([p.provenance for p in parts]))
