"""Where a store is, for JSON: its folder, url and limits. Keys are never written down."""

from pydantic import BaseModel

from mplus import MemoryKeyError, MemoryStore, UrlStore


class StorePlace(BaseModel):
    """The settings of a ``MemoryStore`` or ``UrlStore``, for JSON."""

    root: str
    max_memory_bytes: int | None = None
    max_total_bytes: int | None = None
    url: str | None = None
    """The url whose copies are in the folder; None: the folder itself keeps the memories."""
    max_local_bytes: int | None = None
    encrypted: bool = False
    """Whether it had a vault; keys are never written down here."""

    @classmethod
    def of(cls, store: MemoryStore) -> "StorePlace":
        """The folder, url and limits of a store."""
        return cls(
            root=str(store.root.absolute()),
            max_memory_bytes=store.max_memory_bytes,
            max_total_bytes=store.max_total_bytes,
            url=store.url if isinstance(store, UrlStore) else None,
            max_local_bytes=store.max_local_bytes if isinstance(store, UrlStore) else None,
            encrypted=store.vault is not None,
        )

    def opened(self) -> MemoryStore:
        """The store with these settings.

        Raises:
            MemoryKeyError: It had a vault, without which nothing there can be read, and new memories would be plain.
            ValueError: The folder has got other memories than copies of the url.
        """
        if self.encrypted:
            made = "MemoryStore(folder" if self.url is None else f"UrlStore({self.url!r}, folder"
            raise MemoryKeyError(
                f"{self.root}: this store encrypts its memories, and the keys are kept in its vault only. Open it with "
                f"store=mplus.{made}, vault=mplus.KeyVault(…)) and memory_key=…: "
                "MPlusIndex.load(folder, store=…, memory_key=…), MPlusMemory.from_defaults(store=…, memory_key=…), "
                "MPlusLLM.from_json(text, store=…)."
            )
        if self.url is not None:
            most, local = self.max_memory_bytes, self.max_local_bytes
            return UrlStore(self.url, self.root, max_memory_bytes=most, max_local_bytes=local)
        return MemoryStore(self.root, max_memory_bytes=self.max_memory_bytes, max_total_bytes=self.max_total_bytes)
