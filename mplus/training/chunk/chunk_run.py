"""A run for the default layout: the projection that recall scores with, the read adapter, the comparison scorer."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from accelerate import Accelerator

from mplus.backbone.adapters import Adapter, mean_of, rank_of, widened
from mplus.backbone.cpu import computes_bfloat16
from mplus.checkpoint.parts import TrainedParts
from mplus.computed_once import computed_once
from mplus.config import MemoryConfig
from mplus.evaluation.datasets.talk import talk_task
from mplus.evaluation.facts_task import facts
from mplus.evaluation.passage_search import SentenceEmbedder
from mplus.model import MPlus
from mplus.progress import followed, is_watched
from mplus.recall.gate import Gate
from mplus.recall.late_interaction import LateInteraction
from mplus.training.ahead import spare_processes
from mplus.training.chunk.bank_recall import BankRecall
from mplus.training.chunk.broad import broad_files, general_questions, read_answered
from mplus.training.chunk.broad_lessons import broad_lesson, talk_lessons
from mplus.training.chunk.chunk_bank import ChunkBank
from mplus.training.chunk.conversations import alike_conversations
from mplus.training.chunk.decline import DECLINE_AT, DeclineSettings, decline_examples, fit_decline_head
from mplus.training.chunk.gate import GateSettings, gate_examples, train_gate
from mplus.training.chunk.invented_run import invent, shards
from mplus.training.chunk.ordinary_requests import answered, general_requests
from mplus.training.chunk.plain_text import read_documents
from mplus.training.chunk.projection import Lesson, ProjectionSettings, train_projection
from mplus.training.chunk.questions import Question, read_squad
from mplus.training.chunk.read_adapter import Reader, ReaderSettings, StateBank, new_adapter
from mplus.training.chunk.read_adapter_task import ReaderTask
from mplus.training.chunk.sample import SampleSource
from mplus.training.chunk.samples import Samples
from mplus.training.chunk.several import JoinedBanks, Mixed, Part
from mplus.training.chunk.talk_samples import TalkSamples
from mplus.training.chunk.tellings import add_tellings
from mplus.training.chunk.text_samples import TextSamples
from mplus.training.chunk.told_texts import ToldTexts
from mplus.training.chunk.training_data import TrainingData, make_training_data
from mplus.training.chunk.writing import kept_layer, recall_layer_of, trained_to_write_from
from mplus.training.loop import train_task
from mplus.training.published.comparison_scorer import ScorerSettings, ScorerTask
from mplus.training.run_folder import RunFolder
from mplus.training.run_settings import RunSettings
from mplus.training.talk import talk_items
from mplus.training.talk.corpus import decline_files

Preset = TypeVar("Preset", ProjectionSettings, ReaderSettings, ScorerSettings)

TUNED = ReaderSettings(steps=500, learning_rate=3e-4, warmup=20, decay=700)
TALK_SHARE = 0.8
"""Share of samples of the package's own corpus and of broad passages, where they are learnt from."""
BESIDE_TALK = (
    ("passage", 0.18),
    ("cloze", 0.04),
    ("persona", 0.22),
    ("dialogue", 0.16),
    ("keep", 0.14),
    ("request", 0.26),
)
"""The mixture of the other samples then."""
REQUESTS = 120
GENERAL = 600
"""Generated requests that the gate learns to let pass, beside those of broad files."""
PEOPLE_TELL = 110
"""Questions of generated people that the decline head learns from, told, and as many never told."""
INVENTED_SHARE = 0.25
"""Share of the reader stage's samples that are about made-up passages."""
MEASURED_SHARE, MEASURED_MOST = 0.1, 200
"""Questions that measure recall and are not learnt from."""


class ChunkRun:
    """Model, bank and questions of a run, and its stages by name.

    On a GPU it encodes, and trains read adapters; recall and samples are CPU work, of several processes there.
    """

    def __init__(self, settings: RunSettings, folder: RunFolder, accelerator: Accelerator) -> None:
        self.settings, self.folder, self.accelerator = settings, folder, accelerator
        self.log = folder.log(writes=accelerator.is_main_process)
        is_on_gpu = accelerator.device.type != "cpu"
        # Half the memory of float32, and quicker, where the CPU can.
        dtype = settings.dtype or ("bfloat16" if computes_bfloat16() and not is_on_gpu else "float32")
        self.model = MPlus.from_pretrained(settings.model, device="cpu", dtype=dtype)
        self.computing = self.model
        self.processes = 0
        if is_on_gpu:
            dtype = settings.dtype or "bfloat16"
            self.computing = MPlus.from_pretrained(settings.model, device=str(accelerator.device), dtype=dtype)
            self.processes = spare_processes()

    @computed_once
    def data(self) -> TrainingData:
        """Everything that is trained on, encoded when the first unfinished stage asks for it."""
        settings = self.settings
        documents = read_documents(settings.texts) if settings.texts else []
        # Named by what is in it: texts that were changed since are encoded again.
        digest = hashlib.sha256("\0".join(d.text for d in documents).encode())
        for file in (settings.squad, settings.dialogues, *broad_files(settings.broad)):
            digest.update(file.read_bytes() if file is not None else b"")
        digest.update(
            f"{settings.broad_texts} {settings.talk} {talk_items('train')}".encode() if settings.talk else b""
        )
        if (kept := kept_layer(settings, self.model.weights)) is not None:
            digest.update(f"layer {kept}".encode())
        self.folder.states.mkdir(exist_ok=True)
        states = self.folder.states / f"{digest.hexdigest()[:16]}.bin"
        data = make_training_data(settings, self.model, self.computing, documents, states)
        self.log.say(f"{len(data.questions)} questions about {data.num_tokens:,} tokens of text")
        return data

    def stage(self, name: str, start: TrainedParts) -> TrainedParts:
        """Train a stage from the parts that the one before it left."""
        layer = recall_layer_of(self.settings, self.model.weights)
        start = replace(start, recall_layer=layer, memory=start.memory or self.model.memory_config)
        if name == "scorer":
            return self._scorer(layer, start)
        if name == "gate":
            return self._gate(layer, start)
        if name == "decline":
            return self._decline(start)
        # These are fitted to parts that are trained anew.
        start = replace(start, calibration=None, decline_threshold=None, decline_head=None, yes_odds=None)
        if name == "projection":
            return self._projection(layer, start)
        if self._reads_text:
            return self._text_reader(name, layer, start)
        write_from = trained_to_write_from(self.settings, self.model.weights)
        start = replace(start, write_from=write_from, adapter_reads="latent")
        return self._tune(layer, start) if name == "tune" else self._reader(layer, start)

    @property
    def _reads_text(self) -> bool:
        """Whether reader and tune learn to read text."""
        said = self.settings.read or self.model.memory_config.read
        return said == "text"

    def _projection(self, layer: int, start: TrainedParts) -> TrainedParts:
        settings, data = self.settings, self.data
        learnt, measured = self._split(len(data.questions))
        base = late_interaction(self.model, None)
        # Those about conversations are asked of many more conversations, each among others that are like it.
        asked = [data.questions[n] for n in learnt if n not in data.dialogue_questions]
        lessons = [Lesson(data.bank, asked, data.groups, data.private)]
        if data.made is not None:
            rng = random.Random(f"{settings.seed}/alike")
            assert settings.dialogues is not None
            talks = alike_conversations(self.model, self.computing, settings.dialogues, layer, rng)
            lessons.append(talks)
        rng = random.Random(f"{settings.seed}/lessons")
        if settings.broad:
            rows = read_answered(broad_files(settings.broad), settings.broad_texts, rng)
            lessons.append(broad_lesson(self.model, self.computing, rows, layer, rng))
        if settings.talk:
            lessons += talk_lessons(self.model, self.computing, talk_items("train"), layer, rng)
        preset = _changed(ProjectionSettings(seed=settings.seed), settings, "projection")
        teacher = SentenceEmbedder(settings.teacher) if settings.teacher is not None else None
        trained = train_projection(lessons, layer, base, preset, teacher)
        checked = [data.questions[n] for n in measured]
        for done, scorer in ((0, base), (preset.steps, trained)):
            self.log.write("projection", done, BankRecall(data.bank, scorer, layer).figures(checked))
        return replace(start, late=trained)

    def _reader(self, layer: int, start: TrainedParts) -> TrainedParts:
        settings = self.settings
        scorer = late_interaction(self.model, start.late)
        bank, samples = self._with_invented(self._samples(scorer, layer), scorer, layer)
        trained: list[TrainedParts] = []
        for number in range(settings.adapters):
            learning = _asked_for(ReaderSettings(seed=settings.seed + number, rank=settings.rank), settings, "reader")
            adapter = new_adapter(self.model.weights, learning)
            reader = Reader(self.computing.weights, bank, adapter, write_from=start.write_from)
            name = "reader" if number == 0 else f"reader-{number + 1}"
            task = ReaderTask(reader, samples, learning, start, name=name, processes=self.processes)
            trained.append(train_task(task, self.accelerator, self.folder.stage(name), self.log, settings))
        adapters = [parts.read_adapter for parts in trained if parts.read_adapter is not None]
        return trained[0] if len(trained) == 1 else replace(start, read_adapter=mean_of(adapters))

    def _text_reader(self, name: str, layer: int, start: TrainedParts) -> TrainedParts:
        """Train a read adapter, or the model's own one further, on text that stands in the prompt."""
        settings = self.settings
        if not settings.talk:
            raise ValueError("Reading text is learnt from the package's own corpus. Give --talk 1.")
        if not getattr(self.model.tokenizer, "chat_template", None):
            raise ValueError('read="text": text is read in the system message, and this model has no chat template.')
        goes_on = name == "tune"
        learning = _asked_for(
            replace(TUNED if goes_on else ReaderSettings(rank=settings.rank), seed=settings.seed), settings, name
        )
        adapter = self._own_adapter(start) if goes_on else new_adapter(self.model.weights, learning)
        rng = random.Random(f"{settings.seed}/told texts")
        rows = read_answered(broad_files(settings.broad), settings.broad_texts, rng)
        others = general_questions(broad_files(settings.broad))
        asked = [*general_requests(rng, REQUESTS), *rng.sample(others, min(REQUESTS, len(others)))]
        self.folder.states.mkdir(exist_ok=True)
        requests = answered(self.computing, list(dict.fromkeys(asked)), kept=self.folder.states / "requests.json")
        samples = ToldTexts(self.model.tokenizer, talk_items("train"), rows, requests)
        weights = self.computing.weights
        bank = ChunkBank(weights, self.model.tokenizer, MemoryConfig(), only_layer=layer)  # stays empty
        task = ReaderTask(
            Reader(weights, bank, adapter),
            samples,
            learning,
            # A conversation is read through the adapter, too: none of it stands in the prompt as turns.
            replace(start, write_from=None, adapter_reads="text", prompt_turns=start.prompt_turns or 0),
            name=name,
            processes=self.processes,
        )
        return train_task(task, self.accelerator, self.folder.stage(name), self.log, settings)

    def _own_adapter(self, start: TrainedParts) -> Adapter:
        """The model's own read adapter, of the rank to which it is widened."""
        if start.read_adapter is None:
            raise ValueError(
                "stage 'tune' goes on with a read adapter, and the model has none. Train one: reader,tune."
            )
        adapter, rank = start.read_adapter, self.settings.tune_rank or 0
        if rank_of(adapter) >= rank:
            return adapter
        return widened(adapter, rank, torch.Generator().manual_seed(self.settings.seed))

    def _tune(self, layer: int, start: TrainedParts) -> TrainedParts:
        """Train the model's own read adapter further."""
        adapter = self._own_adapter(start)
        learning = _asked_for(replace(TUNED, seed=self.settings.seed), self.settings, "tune")
        samples = self._samples(late_interaction(self.model, start.late), layer, tuning=True)
        reader = Reader(self.computing.weights, self.data.bank, adapter, write_from=start.write_from)
        task = ReaderTask(reader, samples, learning, start, name="tune", processes=self.processes)
        return train_task(task, self.accelerator, self.folder.stage("tune"), self.log, self.settings)

    def _scorer(self, layer: int, start: TrainedParts) -> TrainedParts:
        settings, data = self.settings, self.data
        learning = _changed(ScorerSettings(seed=settings.seed), settings, "scorer")
        if settings.retriever_size is not None:
            learning = replace(learning, size=settings.retriever_size)
        scorer = late_interaction(self.model, start.late)
        task = ScorerTask(data.bank, data.questions, layer, scorer, learning, start, data.groups)
        return train_task(task, self.accelerator, self.folder.stage("scorer"), self.log, settings)

    def _samples(self, scorer: LateInteraction, layer: int, *, tuning: bool = False) -> SampleSource:
        """The default model's mixture where its files were given, else what texts and questions allow; or both."""
        data, made = self.data, self.data.made
        if made is None:
            requests: list[tuple[str, str]] = []
            if getattr(self.model.tokenizer, "chat_template", None):
                rng = random.Random(f"{self.settings.seed}/requests")
                kept = self.folder.states / "requests.json"
                requests = answered(self.computing, general_requests(rng, REQUESTS), kept=kept)
            return TextSamples(data.bank, scorer, layer, data.questions, data.texts, requests)
        usual = Samples(made, scorer, layer, tuning, BESIDE_TALK if self.settings.talk else None)
        if self.processes:
            usual.prepare(self.processes)
        if self.settings.talk:
            talk = self._talk(scorer, layer, data.bank, made.passages, made.questions)
            return Mixed([Part(usual, 1 - TALK_SHARE), Part(talk, TALK_SHARE)])
        if not data.own_questions:
            return usual
        texts = data.texts[len(made.passages) + len(made.conversations) :]
        told = TextSamples(data.bank, scorer, layer, data.own_questions, texts)
        return Mixed([Part(usual, 0.5), Part(told, 0.5)])

    def _talk(
        self, scorer: LateInteraction, layer: int, bank: ChunkBank, others: Sequence[int], asked: Sequence[Question]
    ) -> TalkSamples:
        """Samples of our own corpus, and of passages of other origins, whose texts are added to a bank.

        Args:
            scorer: Recall as it will be at reading.
            layer: Whose states it scores.
            bank: Where texts are added.
            others: Passages that it has already.
            asked: Questions about these.
        """
        settings = self.settings
        rng = random.Random(f"{settings.seed}/talk")
        rows = read_answered(broad_files(settings.broad), settings.broad_texts, rng)
        passages = bank.add(rows.texts, progress="broad passages")
        questions = [replace(q, passages=(passages[q.passages[0]],)) for q in rows.questions]
        tellings = add_tellings(bank, talk_items("train"), settings.talk, rng)
        memory = self.model.memory_config
        return TalkSamples(bank, scorer, layer, tellings, [*others, *passages], [*questions, *asked], memory)

    def _gate(self, layer: int, start: TrainedParts) -> TrainedParts:
        """Train the gate, which decides whether a question needs memory."""
        steps = self.settings.steps.get("gate", GateSettings.steps)
        settings = GateSettings(steps=steps, seed=self.settings.seed)
        scorer = late_interaction(self.model, start.late)
        weights, tokenizer = self.model.weights, self.model.tokenizer
        bank = ChunkBank(weights, tokenizer, MemoryConfig(), only_layer=layer, encoder=self.computing.weights)
        samples = self._talk(scorer, layer, bank, [], [])
        rng = random.Random(f"{settings.seed}/gate")
        general = self._general(rng)
        gate = Gate(scorer.mean[layer].clone(), scorer.deviation[layer].clone(), settings.hidden)
        figures = train_gate(gate_examples(samples, general, settings.examples, rng), gate, settings)
        self.log.write("gate", settings.steps, figures)
        return replace(start, gate=gate.requires_grad_(False))

    def _general(self, rng: random.Random) -> list[str]:
        """Ordinary requests: of broad files, and generated ones."""
        return [*general_questions(broad_files(self.settings.broad)), *general_requests(rng, GENERAL)]

    def _decline(self, start: TrainedParts) -> TrainedParts:
        """Train the decline head, on the model as it was loaded."""
        number = self.settings.steps.get("decline", DeclineSettings.questions)
        settings = DeclineSettings(questions=number, seed=self.settings.seed)
        talk = talk_task(decline_files(), None, None, random.Random(settings.seed))
        people = facts(PEOPLE_TELL, PEOPLE_TELL, settings.seed, split="train")
        task = replace(
            talk, contexts={**talk.contexts, **people.contexts}, questions=(*talk.questions, *people.questions)
        )
        general = self._general(random.Random(f"{settings.seed}/decline"))
        with followed(is_watched(), "decline", "question") as progress:
            examples = decline_examples(self.computing, task, general, settings, progress)
        head, figures = fit_decline_head(examples, settings)
        self.log.write("decline", len(examples.own), figures)
        return replace(start, decline_head=head, decline_threshold=DECLINE_AT)

    def _with_invented(
        self, samples: SampleSource, scorer: LateInteraction, layer: int
    ) -> tuple[StateBank, SampleSource]:
        """The run's bank and samples, with those of made-up passages where they are asked for."""
        settings, bank = self.settings, self.data.bank
        if not settings.invented:
            return bank, samples
        assert settings.squad is not None
        texts, questions, _ = read_squad(settings.squad)
        file = invent(
            settings,
            self.folder.path,
            self.computing,
            passages=texts,
            questions=questions,
            accelerator=self.accelerator,
            log=self.log,
        )
        made = shards(
            file, self.model, self.computing, scorer, layer, only_layer=kept_layer(settings, self.model.weights)
        )
        for shard in made:
            if self.processes:
                shard.prepare(self.processes)
        joined = JoinedBanks([bank, *(shard.bank for shard in made)])
        parts = [Part(samples, 1 - INVENTED_SHARE)]
        parts += [
            Part(shard, INVENTED_SHARE / len(made), first) for shard, first in zip(made, joined.first[1:], strict=False)
        ]
        return joined, Mixed(parts)

    def _split(self, num_questions: int) -> tuple[list[int], list[int]]:
        """Numbers of the questions to learn from, and of those that measure recall."""
        measured = set(
            random.Random(f"{self.settings.seed}/measured").sample(
                range(num_questions), min(int(num_questions * MEASURED_SHARE), MEASURED_MOST)
            )
        )
        return [n for n in range(num_questions) if n not in measured], sorted(measured)


def late_interaction(model: MPlus, trained: LateInteraction | None) -> LateInteraction:
    """The given scorer, else the model's own, in float32."""
    scorer = trained or model.weights.scorers["late"]
    assert isinstance(scorer, LateInteraction)
    return scorer.float()


def _changed(preset: Preset, settings: RunSettings, stage: str) -> Preset:
    """A preset with the steps and the batch that were asked for."""
    changes = {"steps": settings.steps.get(stage), "batch": settings.batch}
    return replace(preset, **{name: value for name, value in changes.items() if value is not None})


def _asked_for(preset: ReaderSettings, settings: RunSettings, stage: str) -> ReaderSettings:
    """A reader's preset with what was asked for; a short run's rate rises for an eighth, and falls for two thirds."""
    learning = _changed(preset, settings, stage)
    rate = settings.learning_rate if settings.learning_rate is not None else learning.learning_rate
    steps = learning.steps
    return replace(
        learning, learning_rate=rate, warmup=min(learning.warmup, steps // 8), decay=min(learning.decay, steps * 2 // 3)
    )
