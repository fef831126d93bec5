"""What the published recipe trains: two adapters, the bos and position vectors, the retriever.

The parts are leaves around a backbone that stays frozen. ``weights`` shows them to the package's own code
for writing and reading, so that training runs through what is used afterwards.
"""

import copy
from dataclasses import dataclass, replace
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from mplus.backbone.adapters import LoraLinear, untrained_adapter, with_adapter
from mplus.backbone.backbone import Backbone
from mplus.checkpoint.parts import TrainedParts
from mplus.config import MemoryConfig, Recall
from mplus.errors import UnsupportedModelError
from mplus.memory.memory import Memory
from mplus.recall.published_retriever import PublishedRetriever
from mplus.training.chunk.read_adapter import in_full, in_half, leaves
from mplus.weights import Weights

TARGETS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "mlp.up_proj",
    "mlp.down_proj",
    "mlp.gate_proj",
)
"""Linear layers that the published adapters change, in every decoder layer."""


@dataclass(frozen=True)
class PartSizes:
    """Sizes of what is trained; the defaults are the published ones."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.1
    """On the inputs of the adapters, where gradients flow."""
    retriever_size: int = 256
    """Numbers of a retrieval key [R]."""


class TrainableRetriever(PublishedRetriever):
    """The published retriever in float32, whatever precision surrounds it.

    Autocast keeps the low-precision copy of a weight that it makes for a search without gradient, and would
    hand that copy to the loss, which then trains nothing.
    """

    def keys(self, layer: int, normed: Float[Tensor, "S D"]) -> Float[Tensor, "S R"]:
        """f_k of that layer."""
        with torch.autocast(normed.device.type, enabled=False):
            return super().keys(layer, normed.float())

    def queries(self, layer: int, normed: Float[Tensor, "S D"]) -> Float[Tensor, "S R"]:
        """f_q of that layer."""
        with torch.autocast(normed.device.type, enabled=False):
            return super().queries(layer, normed.float())


class TrainableParts:
    """Leaves that an optimizer changes, and the backbone they change the reading and writing of.

    Args:
        backbone: Frozen.
        sizes: Of parts that ``start`` does not have.
        seed: Decides the first values of new parts.
        start: Parts to go on from.

    Raises:
        UnsupportedModelError: The backbone's layers lie on several devices, or are not there at all.
    """

    def __init__(
        self, backbone: Backbone, sizes: PartSizes, *, seed: int = 0, start: TrainedParts | None = None
    ) -> None:
        start = start or TrainedParts()
        self.sizes = sizes
        device = _only_device(backbone)
        layers: nn.ModuleList = backbone.model.model.layers  # pyright: ignore[reportAssignmentType, reportAttributeAccessIssue]
        generator = torch.Generator().manual_seed(seed)
        self.roles: dict[str, dict[str, LoraLinear]] = {}
        views: dict[str, nn.ModuleList] = {}
        names = [f"{number}.{target}" for number in range(len(layers)) for target in TARGETS]
        for role, given in (("write_adapter", start.write_adapter), ("read_adapter", start.read_adapter)):
            adapter = given or untrained_adapter(layers, names, sizes.rank, sizes.alpha, generator)
            views[role] = with_adapter(layers, in_full(adapter, device), merge=False)
            named = dict(views[role].named_modules())
            self.roles[role] = {n: m for n in adapter if isinstance(m := named[n], LoraLinear)}
            for linear in self.roles[role].values():
                linear.dropout = sizes.dropout
        # An untrained M+ starts every prefix with the bos token's own states; training goes on from there.
        bos = backbone.bos_states if start.bos_states is None else start.bos_states
        position = torch.zeros(backbone.hidden_size) if start.write_position is None else start.write_position
        self.bos_states = nn.Parameter(bos.detach().to(device, torch.float32, copy=True))
        self.write_position = nn.Parameter(position.detach().to(device, torch.float32, copy=True))
        self.retriever = new_retriever(backbone, sizes.retriever_size, generator).to(device)
        if start.published is not None:
            known = copy.deepcopy(start.published)
            self.retriever = TrainableRetriever(known.query_projections, known.key_projections)
            self.retriever.to(device, torch.float32)
        self._backbone = replace(backbone, write_layers=views["write_adapter"], read_layers=views["read_adapter"])
        for parameter in self.named().values():
            parameter.requires_grad_(True)

    @property
    def device(self) -> torch.device:
        """The device that everything computes on."""
        return self.bos_states.device

    def named(self) -> dict[str, nn.Parameter]:
        """Every leaf, by a name that a checkpoint can hold."""
        found = {"bos_states": self.bos_states, "write_position": self.write_position}
        for role, linears in self.roles.items():
            found |= {f"{role}.{name}": leaf for name, leaf in leaves(linears).items()}
        return found | {f"published.{name}": leaf for name, leaf in self.retriever.named_parameters()}

    def weights(self) -> Weights:
        """The model as it stands, to write and to read with; gradients reach the leaves through it."""
        backbone = replace(self._backbone, bos_states=self.bos_states.to(self._backbone.dtype))
        return Weights(
            backbone,
            {"published": self.retriever},
            recall_layer=0,
            fingerprints=dict.fromkeys(get_args(Recall), "in training"),
            write_position=self.write_position.to(backbone.dtype),
        )

    def trained(self, start: TrainedParts, memory: MemoryConfig) -> TrainedParts:
        """The parts as a checkpoint keeps them, in half precision: far finer than what they change."""
        return replace(
            start,
            memory=memory,
            calibration=None,
            write_adapter=in_half(self.roles["write_adapter"]),
            read_adapter=in_half(self.roles["read_adapter"]),
            published=half_precision(self.retriever),
            bos_states=self.bos_states.detach().cpu().clone(),
            write_position=self.write_position.detach().cpu().clone(),
        )

    def new_memory(self, *, seed: int = 0, config: MemoryConfig | None = None) -> Memory:
        """A memory in which nothing has been written, for these parts."""
        assert config is not None, "a memory in training says its layout"
        weights = self.weights()
        return Memory(
            config, weights.empty_state(config), model_fingerprint=weights.fingerprints[config.recall], seed=seed
        )


def new_retriever(backbone: Backbone, size: int, generator: torch.Generator) -> TrainableRetriever:
    """Untrained projections for every layer. Queries and keys start with the same ones, so that similar rows match."""

    def projections() -> nn.ModuleList:
        return nn.ModuleList(PublishedRetriever.projection(backbone.hidden_size, size) for _ in range(num_layers))

    num_layers = backbone.num_layers
    retriever = TrainableRetriever(projections(), projections())
    with torch.no_grad():
        for parameter in retriever.query_projections.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[1] ** 0.5)
        retriever.key_projections.load_state_dict(retriever.query_projections.state_dict())
    return retriever


def half_precision(retriever: PublishedRetriever) -> PublishedRetriever:
    """A copy of the retriever in half precision, to save; it computes in the precision of its model."""
    kept = copy.deepcopy(retriever).cpu().half().requires_grad_(False)
    return PublishedRetriever(kept.query_projections, kept.key_projections)


def retriever_loss(
    queries: Float[Tensor, "S R"], keys: Float[Tensor, "T R"], is_relevant: torch.Tensor
) -> Float[Tensor, ""]:
    """Class-balanced binary cross-entropy on the mean sigmoid (spec section 9).

    Probability that a memory token is relevant: mean over the query rows of sigmoid(query . key). The
    relevant and the other tokens weigh the same, however many there are of each; both must be there.
    """
    scores = keys @ queries.T
    # log of a mean of sigmoids, and of one minus it, without ever leaving the logarithm
    log_rows = torch.tensor(float(queries.shape[0]), device=scores.device).log()
    log_relevant = functional.logsigmoid(scores).logsumexp(dim=1) - log_rows
    log_other = functional.logsigmoid(-scores).logsumexp(dim=1) - log_rows
    return -(log_relevant[is_relevant].mean() + log_other[~is_relevant].mean()) / 2


def _only_device(backbone: Backbone) -> torch.device:
    devices = {backbone.layer_device(layer) for layer in range(backbone.num_layers)} | {backbone.device}
    if len(devices) > 1 or next(iter(devices)).type == "meta":
        raise UnsupportedModelError(
            f"Training needs the whole backbone on one device, found it on {', '.join(sorted(map(str, devices)))}. "
            "Several GPUs train side by side, each with a copy: accelerate launch --num_processes N."
        )
    return next(iter(devices))
