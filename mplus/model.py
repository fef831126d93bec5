"""``MPlus``: one loaded model that writes and reads any number of memories."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mplus.answers import Answers
from mplus.checkpoint import catalog
from mplus.checkpoint.parts import TrainedParts, write_parts
from mplus.checkpoint.pretrained import load_pretrained
from mplus.confidence import Calibration
from mplus.config import EMBEDDING, MemoryConfig, Recall
from mplus.generation.memories_read import MemoryLike, check_weights, memories_of
from mplus.generation.requests import Requests
from mplus.given import check_kind, path_of, whole_number
from mplus.inert import keep_no_words
from mplus.memory.memory import Memory, check_memory
from mplus.new_memories import NewMemories
from mplus.recall.embedder import Embedder
from mplus.self_check import HowRead, SelfCheck
from mplus.storage.whole_folder import whole_folder
from mplus.weights import Weights
from mplus.writes import Writes


class MPlus(Writes, Answers):
    """A language model with latent memory.

    Weights never change once loaded; what is remembered is in a ``Memory`` that is passed to each call. An ``MPlus``
    can be used from several threads.
    """

    def __init__(
        self,
        weights: Weights,
        tokenizer: Any,
        memory: MemoryConfig,
        *,
        name: str = "",
        parts: TrainedParts | None = None,
        embedder: Any = None,
        reads: HowRead | None = None,
    ) -> None:
        """Make a model of loaded parts; use ``from_pretrained`` instead.

        Args:
            weights: The model.
            tokenizer: Its tokenizer.
            memory: Layout of new memories.
            name: Its name.
            parts: What training added to the backbone.
            embedder: Your own embedder, as ``from_pretrained`` takes it.
            reads: How memories with ``read="auto"`` are read; None: what a check of the model finds.

        Raises:
            ValueError: ``memory`` needs a scorer that these weights do not have, or an embedder; or ``embedder`` is not
                one.
        """
        if embedder is not None:
            weights = replace(weights, embedder=Embedder.of(embedder))
        keep_no_words(tokenizer)
        parts = parts or TrainedParts()
        self._self_check = SelfCheck(weights, tokenizer, name=name, known=reads)
        requests = Requests(
            weights,
            tokenizer,
            name=name,
            calibration=parts.calibration,
            decline_threshold=parts.decline_threshold,
            yes_odds=parts.yes_odds,
            prefers_text=self._self_check.prefers_text,
        )
        Writes.__init__(self, weights, tokenizer, name)
        Answers.__init__(self, weights, tokenizer, requests)
        self.memory_config = memory
        self._parts = parts
        self._new_memories = NewMemories(weights, tokenizer, parts)
        self._new_memories.check(memory)
        if memory.has_vectors and weights.embedder is None:
            raise ValueError(
                f"recall={memory.recall!r} needs an embedder. Pass yours: embedder=…, any LangChain Embeddings, "
                f"LlamaIndex BaseEmbedding or function; or use recall={memory.token_recall!r}."
            )

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = catalog.DEFAULT_MODEL,
        *,
        device: str | Mapping[str, Any] | None = "auto",
        dtype: str | torch.dtype | None = "auto",
        memory: MemoryConfig | None = None,
        attention: str = "auto",
        decode_dtype: str | None = None,
        embedder: Any = None,
        revision: str | None = None,
        local_files_only: bool = False,
        gguf_file: str | None = None,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> "MPlus":
        """Load a model by built-in name, local folder or hub repository.

        Args:
            model: "smol-135m", a folder (plain backbone, published M+ checkpoint or our own save), a GGUF file, or a
                Hugging Face repository.
            device: "auto" (as None), "cpu", "cuda", "cuda:1", or an accelerate device map.
            dtype: "auto" (as None: the checkpoint's own on a GPU; float32 on a CPU, but for "qwen-0.5b" and
                "qwen-1.5b" bfloat16 where it computes in it), a torch dtype or its name, or "int8": bfloat16 (float32
                on a CPU without it), and ``decode_dtype="int8"``.
            memory: Layout of new memories; None takes the checkpoint's, else a preset for the backbone.
            attention: "auto", "sdpa", "eager" or "flash_attention_2".
            decode_dtype: Answer on a CPU with smaller copies of the weights, prompts of up to 512 tokens at once
                included: "auto", float16 or bfloat16, or "int8", those or int8. Which is quickest for how many tokens
                on this machine, and whether any is, is measured when the model is loaded. What is written and recalled
                stays as it is. None: no copies.
            embedder: Your own embedder, to find what a question is about: an ``Embedder``, or what that takes. Unless
                ``memory`` says which ``recall``, it is used beside the model's own scorer ("embedding+late").
            revision: Branch, tag or commit of a hub repository.
            local_files_only: Do not use the network.
            gguf_file: The GGUF file in that folder or repository; its weights are taken out of their quantisation.
            trust_remote_code: Run the code that the folder or repository brings for its model and tokenizer. Read it
                first: it can do whatever you can.
            options: Passed on to transformers, such as ``quantization_config`` or ``offload_folder``. ``torch_dtype``
                is another name of ``dtype``.

        Raises:
            ModelNotFoundError: There is no model of that name; the message says how to get it.
            CheckpointError: Weights are missing, of the wrong shape, or would be dropped.
            UnsupportedModelError: A backbone with which memory is not exact; the message has the difference found.
            ValueError: A bad device, dtype or memory layout.
        """
        loaded = load_pretrained(
            model,
            device=device,
            dtype=dtype,
            attention=attention,
            decode_dtype=decode_dtype,
            revision=revision,
            local_files_only=local_files_only,
            gguf_file=gguf_file,
            trust_remote_code=trust_remote_code,
            options=options,
        )
        return cls(
            loaded.weights,
            loaded.tokenizer,
            _using(embedder, memory, loaded.memory),
            name=str(model),
            parts=loaded.parts,
            embedder=embedder,
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Save backbone, tokenizer, trained parts and memory layout; ``from_pretrained`` loads them back.

        When it returns all files are on disk, safe from a power loss. A new folder is written beside its place, as
        ".writing-…", and gets its name when it is whole; what is killed leaves no folder of that name, and what is
        named ".writing-…" may then be deleted. Files of a folder that is there already are replaced one by one: killed
        meanwhile it may hold parts of two models, so save what must not be lost to a new one.

        Raises:
            ValueError: ``folder`` is a file, or the model came with a memory that only its published
                checkpoint can hold.
        """
        path = path_of("folder", folder)
        if path.is_file():
            raise ValueError(f"folder={str(folder)!r} is a file; expected a folder to save into.")
        with whole_folder(path) as writing:
            self.weights.backbone.save(writing)
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(writing)
            write_parts(writing, replace(self._parts, memory=self.memory_config))

    def with_calibration(self, calibration: Calibration) -> "MPlus":
        """This model with calibrated confidence. Weights are shared, and memories of one work with the other.

        ``save_pretrained`` of the result keeps it.
        """
        check_kind("calibration", calibration, Calibration, "a Calibration, such as a CalibrationReport has")
        parts = replace(self._parts, calibration=calibration)
        reads = self._self_check.known
        return MPlus(self.weights, self.tokenizer, self.memory_config, name=self.name, parts=parts, reads=reads)

    def with_embedder(self, embedder: Any, *, memory: MemoryConfig | None = None) -> "MPlus":
        """This model with an embedder of yours. Weights are shared, and it opens the memories of both.

        Args:
            embedder: An ``Embedder``, or what that takes.
            memory: Layout of new memories; None: the model's own. Unless it says which ``recall``, the embedder is used
                beside the model's own scorer.

        Raises:
            ValueError: ``embedder`` is not one, or the layout keeps single tokens.
        """
        config = _using(embedder, memory, self.memory_config)
        reads = self._self_check.known
        return MPlus(
            self.weights, self.tokenizer, config, name=self.name, parts=self._parts, embedder=embedder, reads=reads
        )

    @property
    def trained_parts(self) -> TrainedParts:
        """The parts that training added to the backbone."""
        return self._parts

    @property
    def prompt_turns(self) -> int | None:
        """How many of a conversation's latest turns this model answers best with in the prompt, before the question.

        Earlier turns are read from memory. None: as many turns as fit. It is kept with the trained parts.
        """
        return self._parts.prompt_turns

    @property
    def decline_threshold(self) -> float | None:
        """Probability from which on an answer from memory declines ("I don't know."), where a call gives none.

        None: whenever declining is likeliest. It is kept with the trained parts; ``decline_threshold=`` of a call
        overrides it.
        """
        return self._parts.decline_threshold

    @property
    def fingerprint(self) -> str:
        """A hash of the weights, and the name of the embedder, that memories of the model's own layout depend on."""
        config, embedder = self.memory_config, self.weights.embedder
        own = self.weights.fingerprints[config.recall]
        return f"{own}/{config.recall}/{embedder.name}" if config.has_vectors and embedder is not None else own

    @property
    def reads(self) -> HowRead:
        """How memories with ``read="auto"`` are read, and why.

        Without a read adapter, a check of a few seconds decides when this is first needed. Its result is kept.
        """
        return self._self_check.result()

    # --- memories ---------------------------------------------------------------------------------

    def new_memory(self, *, seed: int = 0, config: MemoryConfig | None = None) -> Memory:
        """A memory in which nothing has been written.

        Args:
            seed: Seed of random eviction; the same seed and writes give the same memory.
            config: Layout of the memory; None takes the model's own.

        Raises:
            ValueError: The layout needs parts that these weights do not have, or ``seed`` is no whole number.
        """
        check_kind("config", config, MemoryConfig, "a MemoryConfig", optional=True)
        return self._new_memories.make(config or self.memory_config, whole_number("seed", seed))

    def with_recall(self, memory: Memory, recall: Recall) -> Memory:
        """A copy of a memory that recalls in another way; the given memory is not changed.

        Chunks without a vector of the model's embedder get one now if ``recall`` needs it: their text is decoded from
        the ledger. So a memory can change to an embedder, to another one, or do without.

        Args:
            memory: The memory.
            recall: What ``MemoryConfig(recall=…)`` takes. Memory tokens keep their retrieval keys, so that a memory of
                late interaction changes to "embedding" and "embedding+late" only, and back.

        Returns:
            A memory with the same content and snapshots, and tensors shared.

        Raises:
            ValueError: The memory has no retrieval keys for that, or there is no embedder.
            EmbedderError: The embedder failed.
            LedgerMissingError: The memory keeps no ledger, and has chunks without vectors.
            MemoryMismatchError: The memory belongs to another model, or the text of a chunk is not in its ledger.
        """
        check_memory(memory)
        config = MemoryConfig.model_validate(memory.config.model_dump() | {"recall": recall})
        if config.token_recall != memory.config.token_recall:
            raise ValueError(
                f"recall={recall!r}: this memory has the retrieval keys of {memory.config.token_recall!r}, and those "
                f"of {config.token_recall!r} cannot be made from them. Write its texts into a new memory."
            )
        if config.has_vectors and self.weights.embedder is None:
            raise ValueError(f"recall={recall!r} needs an embedder. Pass yours to from_pretrained(embedder=…).")
        changed = self.new_memory(seed=memory.seed, config=config)
        check_weights(memory, self.weights, self.name)
        with memory.writing():
            state, snapshots = memory.state, memory.snapshots
        states = self._writer.recalling(config, [state, *(snapshot.state for snapshot in snapshots)])
        taken = [replace(snapshot, state=s) for snapshot, s in zip(snapshots, states[1:], strict=True)]
        changed.restore(states[0], tuple(taken))
        return changed

    def prompt_room(self, memory: MemoryLike | MemoryConfig | None = None) -> int:
        """Number of tokens left for prompt and answer with a full memory.

        Args:
            memory: The memory, several that are read together, or a layout; None: the model's own layout.
        """
        if memory is None or isinstance(memory, MemoryConfig):
            config, others = memory or self.memory_config, []
        else:
            config, *others = (one.config for one in memories_of(memory))
        short_term = config.short_term_tokens + sum(other.short_term_tokens for other in others)
        return self.weights.backbone.room(config.prefix_of(config.recalled_tokens + short_term)) - 1

    def __copy__(self) -> "MPlus":
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> "MPlus":
        return self  # it never changes

    def __getstate__(self) -> object:
        raise ValueError(
            f"An MPlus is not pickled: its weights are large, and have a name. Pass {self.name or 'its folder'!r} on, "
            "and call MPlus.from_pretrained there."
        )

    def __repr__(self) -> str:
        backbone = self.weights.backbone
        return (
            f"MPlus({self.name or backbone.config.model_type!r}, {backbone.num_layers} layers, "
            f"{backbone.dtype}, {backbone.device})"
        )


def _using(embedder: Any, given: MemoryConfig | None, own: MemoryConfig) -> MemoryConfig:
    """The layout of new memories: the model's own if none is given.

    An embedder is used beside the layout's scorer, unless the given layout says how to recall.
    """
    check_kind("memory", given, MemoryConfig, "a MemoryConfig", optional=True)
    config = given or own
    if embedder is None or config.has_vectors or (given is not None and "recall" in given.model_fields_set):
        return config
    return MemoryConfig.model_validate(config.model_dump() | {"recall": f"{EMBEDDING}+{config.recall}"})
