"""Replay recorded runs of the published implementation and compare every number.

    python tests/golden/replay.py --checkpoint DIR --trace FILE.json [--trace FILE.json …]

Prints the largest difference per quantity; exits 1 beyond ``--atol`` or on any integer mismatch. Random
choices and the order of recalled tokens are taken from the recording, everything else is computed here.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file
from torch import Tensor

from mplus.checkpoint.backbone_files import round_rope_frequencies
from mplus.checkpoint.initial_memory import initial_state, stored, tokens_from_states
from mplus.checkpoint.loading import load
from mplus.config import MemoryConfig
from mplus.encode import encode_adapter
from mplus.layouts.by_config import layout_of
from mplus.layouts.single_tokens import random_eviction
from mplus.memory.long_term import LongTermMemory
from mplus.memory.state import Context, MemoryState, Track
from mplus.memory.tiers import Segment
from mplus.memory.tokens import Provenance, Tokens
from mplus.read import decode
from mplus.read import prefill as read
from mplus.recall.choose import Recalled, nothing_recalled
from mplus.recall.scorer import Question, Scorer, Shortlist
from mplus.recall.units import Candidates
from mplus.weights import Weights

OVERRIDES = {
    "update_ltm_frequency": "consolidate_every",
    "decay_frequency": "recall_frequency_decay",
    "initial_rf_when_moving_stm_to_ltm": "initial_recall_frequency",
    "num_tokens": "tokens_per_write",
}
UNUSED_OVERRIDES = {"num_blocks", "ltm_initial_size", "drop_memory_per_layer", "update_ltm_mode"}


@dataclass
class Report:
    """Largest difference per quantity."""

    atol: float
    differences: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def close(self, name: str, ours: Tensor, theirs: Tensor) -> None:
        if ours.shape != theirs.shape:
            self.failures.append(f"{name}: shape {tuple(ours.shape)}, recorded {tuple(theirs.shape)}")
            return
        gap = float((ours.double() - theirs.double()).abs().max()) if ours.numel() else 0.0
        self.differences[name] = max(self.differences.get(name, 0.0), gap)
        if not gap <= self.atol:
            self.failures.append(f"{name}: differs by {gap:.3g}, allowed {self.atol:.3g}")

    def equal(self, name: str, ours: Any, theirs: Any) -> None:
        self.differences.setdefault(name, 0.0)
        same = torch.equal(ours, theirs) if isinstance(ours, Tensor) else ours == theirs
        if not same:
            self.differences[name] = float("inf")
            self.failures.append(f"{name}: {ours}, recorded {theirs}")


class Replay:
    """One trace being replayed: the memory as it stands, and what has been compared."""

    def __init__(self, checkpoint: Path, trace: Path, report: Report) -> None:
        self.trace = json.loads(trace.read_text())
        self.tensors = load_file(trace.with_suffix(".safetensors"))
        self.report = report
        loaded = load(checkpoint, device="cpu", dtype="float32", attention="sdpa")
        self.weights: Weights = loaded.weights
        self.config = self._configured(loaded.memory)
        if wants_rounded_frequencies(self.trace):
            round_rope_frequencies(self.weights.backbone.model)
        self.state = initial_state(self.weights, self.config, loaded.parts.initial)

    def _configured(self, config: MemoryConfig) -> MemoryConfig:
        changes: dict[str, Any] = {"keep_states": True}
        overrides: Mapping[str, Any] = self.trace.get("attribute_overrides") or {}
        for name, value in overrides.items():
            if name == "num_ltm_blocks":
                changes["recalled_tokens"] = value * overrides.get("num_tokens", config.tokens_per_write)
            elif name in OVERRIDES:
                changes[OVERRIDES[name]] = value
            elif name not in UNUSED_OVERRIDES and "inv_freq" not in name:
                raise SystemExit(f"{self.trace['name']}: unknown attribute override {name!r}")
        return MemoryConfig(**(config.model_dump() | changes))

    def get(self, *names: str) -> Tensor | None:
        return self.tensors.get("/".join(names))

    @torch.inference_mode()
    def run(self) -> None:
        for op in self.trace["ops"]:
            {
                "state": self.load_state,
                "inject": self.inject,
                "forward": self.forward,
                "multichunk_update": self.multichunk_update,
            }[op["kind"]](op, op["tag"])

    # --- state ------------------------------------------------------------------------------------

    def load_state(self, op: dict[str, Any], tag: str) -> None:
        memory = self.tensors[f"{tag}/memory"]
        self.config = self.config.model_copy(update={"short_term_tokens": memory.shape[1]})
        tracks: list[Track] = []
        for layer, track in enumerate(self.weights.empty_state(self.config).tracks):
            ages = self.tensors[f"{tag}/memory_ages"][layer]
            long_term = stored(
                self.weights,
                layer,
                self.tensors[f"{tag}/ltm.{layer}"],
                self.tensors[f"{tag}/ltm_ages.{layer}"],
                self.tensors[f"{tag}/ltm_recall_frequencies.{layer}"],
                self.config,
                retrieval_keys=self.tensors[f"{tag}/ltm_keys.{layer}"],
            )
            tracks.append(
                replace(
                    track,
                    short_term=tokens_from_states(self.weights, layer, memory[layer], ages, self.config),
                    pending=self._pending(op, tag, layer),
                    long_term=long_term,
                )
            )
        num = self.config.tokens_per_write
        context = Context(tuple(rows[-num:] for rows in memory), torch.full((num,), -1))
        self.state = MemoryState(tuple(tracks), digest=tag, context=context, waiting_tokens=int(op["update_step"]))

    def _pending(self, op: dict[str, Any], tag: str, layer: int) -> LongTermMemory:
        if not op.get("has_cache"):
            return LongTermMemory.empty()
        tokens = tokens_from_states(
            self.weights,
            layer,
            self.tensors[f"{tag}/cached_dropped_memories"][layer],
            self.tensors[f"{tag}/cached_dropped_memory_ages"][layer],
            self.config,
        )
        keys = self.tensors[f"{tag}/cached_dropped_keys"][layer]
        content = replace(tokens.content, retrieval_keys=keys)
        return LongTermMemory.empty().append(Segment.store(content, "auto"), tokens.provenance)

    def compare_state(self, tag: str, described: Mapping[str, Any] | None) -> None:
        report = self.report
        for layer, track in enumerate(self.state.tracks):
            assert track.short_term.content.states is not None
            if (memory := self.get(tag, "memory")) is not None:
                report.close("memory", track.short_term.content.states[0], memory[layer])
            if (ages := self.get(tag, "memory_ages")) is not None:
                report.equal("memory_ages", track.short_term.provenance.ages, ages[layer].long())
            self._compare_store("ltm", track.long_term, layer, tag)
            if self.get(tag, "cached_dropped_memories") is not None:
                self._compare_store("cached_dropped", track.pending, layer, tag)
        if described is not None:
            if "update_step" in described:
                report.equal("update_step", self.state.waiting_tokens, described["update_step"])
            if "has_cache" in described:
                report.equal("has_cache", len(self.state.tracks[0].pending) > 0, described["has_cache"])

    def _compare_store(self, kind: str, store: LongTermMemory, layer: int, tag: str) -> None:
        if kind == "ltm":
            names = [
                f"ltm.{layer}",
                f"ltm_keys.{layer}",
                f"ltm_ages.{layer}",
                f"ltm_recall_frequencies.{layer}",
            ]
            states, keys, ages, frequencies = (self.get(tag, name) for name in names)
        else:
            names = ["cached_dropped_memories", "cached_dropped_keys", "cached_dropped_memory_ages"]
            found = [self.get(tag, name) for name in names]
            states, keys, ages = (None if t is None else t[layer] for t in found)
            frequencies = None
        if ages is not None:
            self.report.equal(f"{kind}_ages", store.provenance.ages, ages.long())
        if frequencies is not None:
            self.report.close(f"{kind}_recall_frequencies", store.provenance.recall_frequencies, frequencies.double())
        if not len(store):
            return
        content = store.content(torch.arange(len(store)), torch.float32, (torch.device("cpu"),))
        if keys is not None:
            self.report.close(f"{kind}_keys", content.retrieval_keys, keys)
        if states is not None:
            assert content.states is not None
            self.report.close(kind, content.states[0], states)

    # --- inject -----------------------------------------------------------------------------------

    def inject(self, op: dict[str, Any], tag: str) -> None:
        ids = self.tensors[f"{tag}/input_ids"][0].tolist()
        assert self.state.context is not None
        past = self.state.context.states
        given = self.get(tag, "in_delta_memory")
        if given is not None:
            num = self.config.tokens_per_write
            past = tuple(torch.cat([rows, new])[-num:] for rows, new in zip(past, given[0], strict=True))
        hidden: list[Tensor] = []
        encoded = encode_adapter(
            self.weights, self.config, ids, past, observe=lambda _, rows: hidden.append(rows.clone())
        )
        delta = torch.stack(encoded.states)
        if (recorded := self.get(tag, "delta_memory")) is not None:
            self.report.close("delta_memory", delta, recorded[0])
        self._compare_rows(tag, hidden, encoded.hidden)
        if op.get("update_memory"):
            self._update(tag, delta, op.get("after"))

    def _compare_rows(self, tag: str, hidden: list[Tensor], last: Tensor) -> None:
        if (recorded := self.get(tag, "hidden_states")) is not None:
            normed = self.weights.backbone.model.model.norm(last)
            self.report.close("hidden_states", torch.stack([*hidden, normed]), recorded)
        if (recorded := self.get(tag, "logits")) is not None:
            self.report.close("logits", self.weights.backbone.logits(last)[None], recorded)

    def _update(self, tag: str, delta: Tensor, after: Mapping[str, Any] | None) -> None:
        permutation = self.tensors[f"{tag}/drop_perm"]
        tracks: list[Track] = []
        for layer, track in enumerate(self.state.tracks):
            count = delta.shape[1]
            fresh = tokens_from_states(self.weights, layer, delta[layer], torch.arange(count - 1, -1, -1), self.config)
            old = len(track.short_term)
            room = self.config.short_term_tokens - count
            for name, part in (
                ("drop_remaining", permutation[layer][:room]),
                ("drop_dropped", permutation[layer][room:old]),
            ):
                if (recorded := self.get(tag, name)) is not None:
                    self.report.equal(name, part.sort().values, recorded[layer])
            eviction = random_eviction(permutation[layer], count, self.config.short_term_tokens)
            written, _ = track.after(eviction, fresh, self.config)
            tracks.append(written)
        num = self.config.tokens_per_write
        context = Context(tuple(rows[-num:] for rows in delta), torch.full((num,), -1))
        state = replace(
            self.state,
            tracks=tuple(tracks),
            context=context,
            waiting_tokens=self.state.waiting_tokens + delta.shape[1],
        )
        self.state, _ = state.consolidated_when_due(self.config)
        self.compare_state(f"{tag}/after", after)

    def multichunk_update(self, op: dict[str, Any], tag: str) -> None:
        """Several chunks' new tokens enter at once (one permutation) or one after the other (several)."""
        delta = next(
            t[0] if t.dim() == 4 else t
            for name in ("delta_memory", "in_delta_memory", "delta_memories")
            if (t := self.get(tag, name)) is not None
        )
        permutation = self.tensors[f"{tag}/drop_perm"]
        if permutation.dim() == 2:
            self._update(tag, delta, op.get("after"))
            return
        num = delta.shape[1] // permutation.shape[0]
        for step, part in enumerate(permutation):
            self.tensors[f"{tag}/{step}/drop_perm"] = part
            last = step == len(permutation) - 1
            if last:
                for name in [n for n in self.tensors if n.startswith(f"{tag}/after/")]:
                    self.tensors[name.replace(f"{tag}/", f"{tag}/{step}/", 1)] = self.tensors[name]
            piece = delta[:, step * num : (step + 1) * num]
            self._update(f"{tag}/{step}", piece, op.get("after") if last else None)

    # --- forward ----------------------------------------------------------------------------------

    def forward(self, op: dict[str, Any], tag: str) -> None:
        ids = self.tensors[f"{tag}/input_ids"][0].tolist()
        state = self._with_delta(op, tag)
        request = read.ReadRequest(state, self.config, ids, (0, len(ids)))
        hidden: list[Tensor] = []
        hooks = [
            layer.register_forward_pre_hook(lambda _, args: hidden.append(args[0][0].clone()))
            for layer in self.weights.backbone.read_layers
        ]
        last: list[Tensor] = []
        norm = self.weights.backbone.model.model.norm
        hooks.append(norm.register_forward_hook(lambda _, __, output: last.append(output[0].clone())))
        with self._recorded_recall(op, tag):
            logits, reading = read.prefill(self.weights, [request], all_logits=True)
        for hook in hooks:
            hook.remove()
        if (recorded := self.get(tag, "hidden_states")) is not None:
            self.report.close("hidden_states", torch.stack([*hidden, last[0]]), recorded)
        self.report.close("logits", logits, self.tensors[f"{tag}/logits"])
        self._compare_loss(tag, logits)
        self._compare_retriever(op, tag, hidden)
        for name in ("keys", "values"):
            if (recorded := self.get(tag, f"cache_{name}")) is not None:
                ours = torch.stack([getattr(layer, name)[0] for layer in reading.layers])
                self.report.close(f"cache_{name}", ours, recorded)
        if "cache_len" in op:
            self.report.equal("cache_len", reading.layers[0].get_seq_length(), op["cache_len"])
        self._decode(op, tag, logits, reading)

    def _decode(self, op: dict[str, Any], tag: str, logits: Tensor, reading: decode.Reading) -> None:
        following = logits[0, -1]
        for step, token in enumerate(op.get("decoded_tokens", ())):
            self.report.equal("decoded_tokens", int(following.argmax()), token)
            following = reading.decode([token])[0]
            if (recorded := self.get(tag, f"decode{step}", "logits")) is not None:
                self.report.close("decode_logits", following, recorded[0, 0])
        if "cache_len_after_decode" in op:
            self.report.equal(
                "cache_len_after_decode", reading.layers[0].get_seq_length(), op["cache_len_after_decode"]
            )

    def _with_delta(self, op: dict[str, Any], tag: str) -> MemoryState:
        """The memory a forward sees when new tokens are handed to it without having been written."""
        delta = self.get(tag, "in_delta_memory")
        if delta is None:
            delta = self.get(tag, "delta_memory")
        if delta is None:
            return self.state
        permutation = self.get(tag, "randperm")
        tracks: list[Track] = []
        for layer, track in enumerate(self.state.tracks):
            count = delta.shape[2]
            fresh = tokens_from_states(
                self.weights, layer, delta[0, layer], torch.arange(count - 1, -1, -1), self.config
            )
            if permutation is not None:
                kept = permutation[layer][: len(track.short_term) - count].sort().values
                fresh = Tokens.cat([track.short_term.take(kept), fresh])
            tracks.append(replace(track, short_term=fresh))
        return replace(self.state, tracks=tuple(tracks))

    @contextmanager
    def _recorded_recall(self, op: dict[str, Any], tag: str) -> Iterator[None]:
        draws = op.get("randint_draws_in_call_order")

        def recall(scorer: Scorer, track: Track, config: MemoryConfig, question: Question, sources: None) -> Recalled:
            layer = track.layers[0]
            if draws:
                question = replace(question, normed=question.normed[: draws[2 * layer]])
            stores = [store for store in (track.long_term, track.pending) if len(store)]
            order = self.get(tag, f"layer{layer}", "final_order")
            if order is None:
                return original(scorer, track, config, question) if op.get("layers") else nothing_recalled()
            everyone = Provenance.cat([store.provenance for store in stores])
            fallback = bool(op["layers"][layer].get("fallback")) if op.get("layers") else False
            recorded_scores = self.get(tag, f"layer{layer}", "scores")
            if recorded_scores is not None and not fallback:
                everything = Shortlist(Candidates.of(stores, layout_of(config)))
                scores = scorer.scores(question, everything, config).relevance
                self.report.close("scores", scores[: len(recorded_scores)], recorded_scores)
            ours = original(scorer, track, config, question)
            recorded = self.get(tag, f"layer{layer}", "selected_sorted")
            if recorded is not None:
                self.report.equal("selected_sorted", ours.index.sort().values, recorded.sort().values)
            described = op["layers"][layer] if op.get("layers") else {}
            if described.get("order_equals_stable_argsort_reversed") and not fallback:
                self.report.equal("final_order", ours.index, order)
            if (ages := self.get(tag, f"layer{layer}", "ages_in_final_order")) is not None:
                self.report.equal("ages_in_final_order", ours.provenance.ages, ages.long())
            return Recalled(order, everyone.take(order), torch.zeros(len(order)))

        original = read.recall
        with mock.patch.object(read, "recall", recall):
            yield

    def _compare_loss(self, tag: str, logits: Tensor) -> None:
        loss, labels = self.get(tag, "loss"), self.get(tag, "labels")
        if loss is not None and labels is not None:
            ours = torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=-100)
            self.report.close("loss", ours, loss.reshape(()))

    def _compare_retriever(self, op: dict[str, Any], tag: str, hidden: list[Tensor]) -> None:
        """Relevance of short-term rows, which the retriever's training loss is made of."""
        recorded = self.get(tag, "retriever_weights")
        if recorded is None:
            return
        draws = op.get("randint_draws_in_call_order")
        scorer = self.weights.scorers["published"]
        for layer, track in enumerate(self.state.tracks):
            normed = self.weights.norm(layer, hidden[layer], reading=True)
            if draws:
                normed = normed[: draws[2 * layer + 1]]
            queries = scorer.queries(layer, normed)
            weights = (queries @ track.short_term.content.retrieval_keys.T).sigmoid()
            theirs = recorded[layer]
            self.report.close("retriever_weights", weights if theirs.dim() == 2 else weights.mean(dim=0), theirs)


def wants_rounded_frequencies(trace: Mapping[str, Any]) -> bool:
    """Whether a trace was recorded with rotary frequencies rounded to bfloat16."""
    described = json.dumps({k: v for k, v in trace.items() if k != "ops"}).lower()
    return "bf16" in described or ("inv_freq" in described and "bfloat16" in described)


def replay(checkpoint: Path, trace: Path, *, atol: float = 1e-4) -> Report:
    """Replay one trace."""
    report = Report(atol)
    Replay(checkpoint, trace, report).run()
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of the published checkpoint")
    parser.add_argument("--trace", type=Path, required=True, action="append", nargs="+", help="a trace's .json")
    parser.add_argument("--atol", type=float, default=1e-4)
    arguments = parser.parse_args()
    failed = False
    for trace in [path for group in arguments.trace for path in group]:
        report = replay(arguments.checkpoint, trace, atol=arguments.atol)
        print(f"{trace.stem}: {'FAILED' if report.failures else 'ok'}")
        for name, gap in sorted(report.differences.items()):
            print(f"  {name:28} {gap:.3g}")
        for failure in report.failures:
            print(f"  ! {failure[:400]}")
        failed = failed or bool(report.failures)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
