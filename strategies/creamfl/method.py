"""CreamFL: contrastive ensembles of representations, of clients with different modalities and models.

Yu, Liu, Wang, Xu, Liu. "Multimodal Federated Learning via Contrastive Representation Ensemble", ICLR 2023,
arXiv:2302.08888.

| paper | here | meaning |
|---|---|---|
| P | `data.public` | public pairs of image and text, on the server and on all clients |
| I_k, T_k | `Reader.all` | a client's representations of P: unit vectors, the only thing that it sends |
| I^g, T^g | `State.representations` | the server's, the only thing that it sends |
| L_inter, L_intra | `inter_contrast`, `intra_contrast` | what ties a client to the server's space |
| alpha_k | `aggregate` | weight of a client's representation of a sample |
| gamma | `Config.contrast` | weight of the two contrasts |

    server     an epoch on P with its own loss; I^g, T^g of P go to the clients of the round
    client     for each local epoch: a pass over its private data, then one over P with gamma (L_inter + L_intra);
               its representations of P come back
    server     the ensemble of each modality, weighted by alpha_k; epochs of distillation towards it

No weights travel: clients have models of their own, of the zoo's image models (`image_models`, one after the other) and
of the text models of `umbel.models.text`, and keep them in their memory. The server's image model is the experiment's
(`model.name`). With int8, a row is scaled to its largest entry and its length of 1 restored at the other end, so that
no scale travels.

Where the authors' code differs or is not followed: public representations are taken without augmentation and in
evaluation mode; a modality of which no client replied is left out of the distillation (their code fails); AdamP is
AdamW here; clients' optimisers begin anew in each round, the server's goes on; distillation counts each modality once;
the soft contrast is a mean over rows, not a sum, and is taken once, since both ways have the same terms; encoders end
in a linear map, without PIE-Net; `client.clip_norm` and `client.lr_decay` are one for all clients. `exclude_self` is
the paper's equation, without it their code.

Legend: K clients, P public samples, M of them in a round, D dimension, B batch, C classes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from umbel.core import training
from umbel.core.building import build_seeded
from umbel.core.device import parameter_dtype
from umbel.core.folds import Folded, Product, product
from umbel.core.memory import MemoryRecord
from umbel.core.names import unknown
from umbel.core.records import Payload, Reply
from umbel.core.rng import generator
from umbel.core.training import OPTIMIZERS, LocalConfig
from umbel.core.tree import Tree, raw_bytes
from umbel.data.types import Examples
from umbel.models import registry
from umbel.models.pair import MODALITIES, Encoders, Reader, class_logits, margin_loss, pair_contrast, soft_contrast
from umbel.models.text import TextEncoder, TextShape, build_text, text_options
from umbel.strategies.base import ClientContext, Phase, Predictor, ServerContext, Strategy
from umbel.strategies.creamfl.representations import WIRES, Representations, from_wire, to_wire

LEARN = Phase("learn", "server")
KINDS = ("image", "text", "both")
_CHUNK_BYTES = 64 << 20
_PUBLIC_BATCH = 512


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of CreamFL; each of its parts can be turned off.

    Attributes:
        num_image: Clients with images and labels; the first partitions.
        num_text: Clients with texts and labels; the next.
        num_both: Clients with pairs; the last. Together they are `data.num_clients`.
        dimension: D of the common space.
        image_models: Models of the clients with images, one after the other.
        image_sizes: Size keywords of each of them by its name, such as `cnn: {width: 16}`; several in a list are taken
            by turns, client k the one of number k modulo their number.
        text_models: Text models of the clients with texts, one after the other.
        text_sizes: Size keywords of each of them by its name, likewise.
        server_text: The server's text model.
        server_text_sizes: Its size keywords.
        pair_loss: `pcme`: soft contrast over all pairs of a batch; `infonce`: softmax over its rows and columns.
        pair_temperature: Temperature under `infonce`.
        class_loss: `margin`: the authors' margin softmax with non-negative weights and a centre loss; `plain`.
        class_sharpness: By how much the logits of both are scaled; the authors have 128, with learning rates of 1e-4.
        inter: Contrast to the other modality's global representations.
        intra: Contrast to the same modality's, against the client's own at the start of the round.
        contrast: gamma, weight of both.
        temperature: tau of both.
        ensemble: `contrast` (weights alpha_k), or `mean`.
        ensemble_temperature: tau of the weights; the paper has 1, at which they are nearly equal.
        exclude_self: See `aggregate`.
        distil: Weight of the distillation of each modality; 0 leaves the server alone.
        wire: Numbers that travel: float32, float16 or int8.
        public_per_round: Public samples that a round uses; 0 uses all.
        stratify: Draw clients of each modality in proportion, at least one while there are enough; without, a round
            may miss a modality.
        server_epochs: Epochs on P with the server's own loss, before the clients.
        distil_epochs: Epochs on P of distillation, after them; 0 is as many as `server_epochs`.
        server_batch_size: Samples in a batch.
        server_optimizer: sgd, adam or adamw.
        server_lr: Its learning rate.
        server_cosine: Let it fall towards 0 along a cosine over the rounds.
        server_weight_decay: Its weight decay.
        server_clip_norm: Largest gradient norm; 0 does not clip.
        noise_clients: Clients that send noise in place of representations, to see what the ensemble makes of it; the
            same in each round, because noise drawn anew would average out.
    """

    num_image: int = 0
    num_text: int = 0
    num_both: int = 0
    dimension: int = 256
    image_models: list[str] = field(default_factory=lambda: ["cnn"])
    image_sizes: dict[str, Any] = field(default_factory=dict)
    text_models: list[str] = field(default_factory=lambda: ["gru"])
    text_sizes: dict[str, Any] = field(default_factory=dict)
    server_text: str = "transformer"
    server_text_sizes: dict[str, Any] = field(default_factory=dict)
    pair_loss: str = "pcme"
    pair_temperature: float = 0.07
    class_loss: str = "margin"
    class_sharpness: float = 128.0
    inter: bool = True
    intra: bool = True
    contrast: float = 0.5
    temperature: float = 0.5
    ensemble: str = "contrast"
    ensemble_temperature: float = 1.0
    exclude_self: bool = False
    distil: float = 0.3
    wire: str = "float32"
    public_per_round: int = 0
    stratify: bool = True
    server_epochs: int = 1
    distil_epochs: int = 0
    server_batch_size: int = 128
    server_optimizer: str = "adamw"
    server_lr: float = 2e-4
    server_cosine: bool = True
    server_weight_decay: float = 0.0
    server_clip_norm: float = 2.0
    noise_clients: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class State:
    """What the server keeps.

    Attributes:
        model: Its pair of encoders, parameters and buffers.
        representations: `image` and `text` [P, D] float32, of the whole public set; empty before the first round.
        moments: Its optimiser's, which goes on from pass to pass and from round to round.
    """

    model: dict[str, Tensor]
    representations: dict[str, Tensor]
    moments: dict[str, Tensor]


def aggregate(
    representations_KPD: Tensor,
    other_modality_PD: Tensor,
    temperature: float = 1.0,
    exclude_self: bool = False,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Combine clients' representations of the public set, by how well each tells its pair from the rest.

    s_k(i) = log softmax_j (I_k,i . T_j / tau) at j = i; the weights of sample i are the softmax of s_k(i) over k.

    Args:
        representations_KPD: I_k of one modality, [K, P, D], rows of unit length.
        other_modality_PD: T, the server's representations of the other modality, [P, D].
        temperature: tau; the paper has 1, at which weights of unit vectors are nearly equal.
        exclude_self: Leave j = i out of the denominator, as the paper's equation does.
        chunk: Rows of the [P, P] matrix that exist at once; None takes 64 MiB of them.

    Returns:
        The combined representations [P, D], not normalised again, and the weights [K, P], which sum to 1 over K.

    Raises:
        ValueError: Shapes do not fit, or nothing is left in the denominator.
    """
    if representations_KPD.ndim != 3 or representations_KPD.shape[1:] != other_modality_PD.shape:
        raise ValueError(
            f"Expected representations [K, P, D] and [P, D], found {list(representations_KPD.shape)} and "
            f"{list(other_modality_PD.shape)}."
        )
    num_clients, num_public, _ = representations_KPD.shape
    if not num_clients:
        raise ValueError("Expected the representations of at least one client, found none.")
    if not temperature > 0:
        raise ValueError(f"Expected a temperature above 0, found {temperature}.")
    if exclude_self and num_public < 2:
        raise ValueError("Without a sample's own pair, one public sample has nothing to be told from.")
    if chunk is not None and chunk < 1:
        raise ValueError(f"Expected a chunk of at least one row, found {chunk}.")
    rows = chunk or max(1, _CHUNK_BYTES // (num_public * other_modality_PD.element_size()))
    scores = representations_KPD.new_empty(num_clients, num_public)
    for client in range(num_clients):
        for start in range(0, num_public, rows):
            part = slice(start, min(start + rows, num_public))
            logits = representations_KPD[client, part] @ other_modality_PD.T / temperature
            own = torch.arange(part.start, part.stop, device=logits.device)
            here = torch.arange(len(own), device=logits.device)
            positive = logits[here, own].clone()
            if exclude_self:
                logits[here, own] = -torch.inf
            scores[client, part] = positive - torch.logsumexp(logits, dim=1)
    weights_KP = torch.softmax(scores, dim=0)
    aggregated = torch.zeros_like(representations_KPD[0])
    for client in range(num_clients):
        aggregated += weights_KP[client][:, None] * representations_KPD[client]
    return aggregated, weights_KP


def inter_contrast(local_BD: Tensor, global_other_PD: Tensor, index_B: Tensor, temperature: float = 0.5) -> Tensor:
    """Return the contrast of local representations to the global ones of the other modality, mean over B.

    Args:
        local_BD: z, [B, D].
        global_other_PD: Of all public samples, [P, D]; all of them are negatives, not the batch's alone.
        index_B: [B] int64, which public sample each row is.
        temperature: tau.
    """
    return F.cross_entropy(local_BD @ global_other_PD.T / temperature, index_B)


def intra_contrast(local_BD: Tensor, global_same_BD: Tensor, previous_BD: Tensor, temperature: float = 0.5) -> Tensor:
    """Return the contrast of local representations to the global ones of their modality, mean over B.

    The one negative is what the client's model said at the start of the round.

    Args:
        local_BD: z, [B, D].
        global_same_BD: [B, D].
        previous_BD: [B, D].
        temperature: tau.
    """
    nearer = (local_BD * (previous_BD - global_same_BD)).sum(1) / temperature
    return F.softplus(nearer).mean()


def modality(client: int, config: Config) -> str:
    """Return what a client has: `image`, `text` or `both`."""
    return KINDS[(client >= config.num_image) + (client >= config.num_image + config.num_text)]


def fingerprint(public: Examples) -> float:
    """Return a number that tells public sets apart: 48 bits of a hash of what is the same on every machine.

    That is labels, identities, texts, shapes and dtypes, and images and tokens where they are whole numbers: embeddings
    of a frozen encoder may differ in their last bits between processors. Made once for a set in a process.
    """
    if _fingerprints.get(id(public), (None, 0.0))[0] is not public:
        digest = hashlib.sha256(raw_bytes(public.labels) + raw_bytes(public.identities()))
        if public.texts is not None:
            digest.update(raw_bytes(public.texts.content) + raw_bytes(public.texts.offsets))
        for table in (public.images, public.tokens):
            if table is not None:
                digest.update(f"{table.dtype} {list(table.shape)}".encode())
                digest.update(b"" if table.is_floating_point() else raw_bytes(table))
        _fingerprints.clear()
        _fingerprints[id(public)] = (public, float(int.from_bytes(digest.digest()[:6], "little")))
    return _fingerprints[id(public)][1]


_fingerprints: dict[int, tuple[Examples, float]] = {}  # the set is kept, so that its id cannot be another's


def _check_sizes(key: str, sizes: Any, known: Iterable[str]) -> None:
    if not isinstance(sizes, Mapping):
        raise ValueError(f"strategy.{key} should be a mapping, found {sizes!r}")
    for size in sizes:
        if size not in known:
            raise unknown("size", size, list(known), key=f"strategy.{key}.{size}")


def _check_turns(key: str, sizes: Any, known: Iterable[str]) -> None:
    if isinstance(sizes, list) and not sizes:
        raise ValueError(f"strategy.{key} should have at least one entry")
    for number, each in enumerate(sizes if isinstance(sizes, list) else ()):
        _check_sizes(f"{key}[{number}]", each, known)
    if not isinstance(sizes, list):
        _check_sizes(key, sizes, known)


def _sizes_of(client: int, sizes: Any) -> Mapping[str, Any]:
    """Return a client's sizes of a model, where several are taken by turns."""
    found: Mapping[str, Any] = sizes[client % len(sizes)] if isinstance(sizes, list) else sizes
    return found


class CreamFL(Strategy[State]):
    """Clients and server teach one another by their representations of public pairs."""

    config_class = Config
    config: Config
    own_model = True

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        choices = {
            "pair_loss": ("pcme", "infonce"),
            "class_loss": ("margin", "plain"),
            "ensemble": ("contrast", "mean"),
            "wire": tuple(WIRES),
            "server_optimizer": OPTIMIZERS,
        }
        for key, allowed in choices.items():
            if getattr(config, key) not in allowed:
                raise unknown(key, getattr(config, key), allowed, key=f"strategy.{key}")
        for key in ("num_image", "num_text", "num_both", "public_per_round", "distil_epochs"):
            if not getattr(config, key) >= 0:
                raise ValueError(f"strategy.{key} should be at least 0, found {getattr(config, key)}")
        for key in (
            "class_sharpness",
            "pair_temperature",
            "temperature",
            "ensemble_temperature",
            "server_lr",
            "dimension",
        ):
            if not 0 < getattr(config, key) < math.inf:
                raise ValueError(f"strategy.{key} should be a finite number above 0, found {getattr(config, key)}")
        for key in ("distil", "contrast", "server_weight_decay", "server_clip_norm"):
            if not 0 <= getattr(config, key) < math.inf:
                raise ValueError(
                    f"strategy.{key} should be a finite number of at least 0, found {getattr(config, key)}"
                )
        if config.server_epochs < 1 or config.server_batch_size < 1:
            raise ValueError("strategy.server_epochs and strategy.server_batch_size should be at least 1")
        if config.public_per_round == 1 and config.exclude_self:
            raise ValueError(
                "strategy.exclude_self leaves nothing of one sample: set strategy.public_per_round to more"
            )
        strangers = set(config.noise_clients) - set(range(config.num_image + config.num_text + config.num_both))
        if strangers:
            raise ValueError(f"strategy.noise_clients names {sorted(strangers)}, which are no clients")
        self._check_models()

    def _check_models(self) -> None:
        """Raise `ValueError` for a model or a size that there is not."""
        config = self.config
        if not config.image_models or not config.text_models:
            raise ValueError("strategy.image_models and strategy.text_models should name at least one model each")
        _check_sizes(
            "server_text_sizes", config.server_text_sizes, text_options(config.server_text, key="strategy.server_text")
        )
        known = {name: text_options(name, key="strategy.text_models") for name in config.text_models}
        _check_sizes("text_sizes", config.text_sizes, known)
        for name, sizes in config.text_sizes.items():
            _check_turns(f"text_sizes.{name}", sizes, known[name])
        known = {name: registry.options(name) for name in config.image_models}
        _check_sizes("image_sizes", config.image_sizes, known)
        for name, sizes in config.image_sizes.items():
            _check_turns(f"image_sizes.{name}", sizes, [size for size in known[name] if size != "image_size"])

    # ---- models ----------------------------------------------------------------------------------------------

    def _server_model(self, server: ServerContext) -> Encoders:
        """Return the server's encoders as initialised, on its device."""
        public, config = _public(server), self.config

        def make() -> Encoders:
            text = self._text(server.vocabulary, public, config.server_text, "server_text", config.server_text_sizes)
            return Encoders(server.build_model(), text, config.dimension)

        dtype = parameter_dtype(server.local.precision)
        return build_seeded(make, server.seed, dtype, purpose="encoders").to(server.device)

    def _client_model(self, client: ClientContext) -> Encoders:
        """Return the client's encoders as it remembers them, or as initialised."""
        dtype, public = parameter_dtype(client.local.precision), _public(client)
        make = partial(self._make, client.id, public, client.vocabulary, client.num_classes)
        model = build_seeded(make, client.seed, dtype, client.id, "encoders")
        if client.memory is not None and "encoders" in client.memory.trees:
            model.load_state_dict(dict(client.memory.trees["encoders"]))
        return model.to(client.device)

    def _make(self, client: int, public: Examples, vocabulary: int, num_classes: int) -> Encoders:
        """Return fresh encoders of a client's kind and architectures."""
        config, kind = self.config, modality(client, self.config)
        image, text = None, None
        if kind != "text":
            name = config.image_models[client % len(config.image_models)]
            shape = public.images.shape
            size = shape[-1] if len(shape) == 4 else 1
            sizes = _sizes_of(client, config.image_sizes.get(name, {}))
            image = registry.build(name, config.dimension, size, shape[1], **sizes)
        if kind != "image":
            name = config.text_models[client % len(config.text_models)]
            text = self._text(
                vocabulary, public, name, "text_models", _sizes_of(client, config.text_sizes.get(name, {}))
            )
        return Encoders(image, text, config.dimension, 0 if kind == "both" else num_classes)

    def _try_models(self, server: ServerContext) -> None:
        """Build each kind of client once and let it read two public pairs: what fails, fails before anything starts."""
        public, config = _public(server), self.config
        two = {name: table[:2] for name, table in _tables(server).items()}
        tables = (*config.image_sizes.values(), *config.text_sizes.values())
        lists = (config.image_models, config.text_models, *(sizes for sizes in tables if isinstance(sizes, list)))
        turns = math.lcm(*map(len, lists))
        seen = set()
        for client in range(server.num_clients):
            kind = (modality(client, config), client % turns)
            if kind in seen:
                continue
            seen.add(kind)
            make = partial(self._make, client, public, server.vocabulary, 1)
            model = build_seeded(make, server.seed, parameter_dtype(server.local.precision), client, "trial")
            Reader(model.to(server.device), two).all()

    @staticmethod
    def _text(vocabulary: int, public: Examples, name: str, key: str, sizes: Mapping[str, Any]) -> TextEncoder:
        length = 0 if public.tokens is None else public.tokens.shape[1]  # `_public` has looked
        return build_text(name, TextShape(vocabulary, length), key=f"strategy.{key}", **sizes)

    # ---- the server's half -----------------------------------------------------------------------------------

    def initial(self, server: ServerContext) -> State:
        kinds = self.config.num_image + self.config.num_text + self.config.num_both
        if kinds != server.num_clients:
            raise ValueError(
                f"strategy.num_image + num_text + num_both make {kinds} clients, data.num_clients={server.num_clients}"
            )
        self._try_models(server)
        return State(_state(self._server_model(server)), {}, {})

    def phases(self, state: State) -> tuple[Phase, ...]:
        config = self.config
        kinds = (0,) * config.num_image + (1,) * config.num_text + (2,) * config.num_both
        return (LEARN, Phase("contrast", "sample", kinds if config.stratify else ()))

    def broadcast(self, phase: Phase, state: State, server: ServerContext) -> Payload:
        if phase.name != "contrast":
            return Payload({})  # clients evaluate what they have
        rows = self._rows(server)
        sent = {name: to_wire(found[rows], self.config.wire) for name, found in state.representations.items()}
        numbers = {"public": fingerprint(_public(server))}
        return Payload({"representations": sent, "index": {"rows": rows.to(torch.int32)}}, numbers)

    def fold(self, phase: Phase) -> Product:
        return product({"representations": Representations(self.config.wire)}, numbers=["loss"])

    def update(self, phase: Phase, state: State, folded: Folded, server: ServerContext) -> State:
        model = self._load(state, server)
        if phase.name == LEARN.name:
            moments = self._learn(model, state.moments, server)
            return State(_state(model), self._read(model, server), moments)
        if not self.config.distil:
            return state
        moments = self._distil(model, self.ensembles(folded, state, server), state.moments, server)
        return State(_state(model), state.representations, moments)

    def finish(self, state: State, server: ServerContext) -> State:
        return replace(state, representations=self._read(self._load(state, server), server))

    def ensembles(self, folded: Folded, state: State, server: ServerContext) -> dict[str, Tensor]:
        """Return the ensemble [M, D] of each modality of which somebody replied."""
        rows, found = self._rows(server), {}
        replies = folded.trees["representations"]
        for own, other in (MODALITIES, MODALITIES[::-1]):
            if own in replies:
                across = from_wire(to_wire(state.representations[other][rows], self.config.wire)).to(server.device)
                found[own] = self._combine(replies[own], across)
        return found

    def _combine(self, sent_KMD: Tensor, across_MD: Tensor) -> Tensor:
        """Return the ensemble of one modality, in the order of the cohort."""
        # One copy of all replies beside them; the mean of more than 16 has other bits when it is summed one by one.
        stacked = torch.empty(sent_KMD.shape, dtype=torch.float32, device=across_MD.device)
        for client, each in enumerate(sent_KMD):
            stacked[client] = from_wire(each)
        if self.config.ensemble == "mean":
            return stacked.mean(0)
        return aggregate(stacked, across_MD, self.config.ensemble_temperature, self.config.exclude_self)[0]

    def _load(self, state: State, server: ServerContext) -> Encoders:
        model = self._server_model(server)
        model.load_state_dict(state.model)
        return model

    @staticmethod
    def _read(model: Encoders, server: ServerContext) -> dict[str, Tensor]:
        """Return a model's representations of the public set."""
        return {name: found.float().cpu() for name, found in Reader(model, _tables(server)).all().items()}

    def _rows(self, server: ServerContext) -> Tensor:
        """Return the public samples of this round, ascending."""
        total, asked = len(_public(server)), self.config.public_per_round
        if not 0 < asked < total:
            return torch.arange(total)
        return torch.randperm(total, generator=server.rng("public"))[:asked].sort().values

    def _local(self, server: ServerContext) -> LocalConfig:
        """Return how the server trains in this round."""
        config, share = self.config, (server.round - 1) / server.num_rounds
        return LocalConfig(
            epochs=config.server_epochs,
            batch_size=config.server_batch_size,
            optimizer=config.server_optimizer,
            lr=config.server_lr * ((1 + math.cos(math.pi * share)) / 2 if config.server_cosine else 1.0),
            weight_decay=config.server_weight_decay,
            clip_norm=config.server_clip_norm,
            precision=server.local.precision,
        )

    def _learn(self, model: Encoders, moments: Tree, server: ServerContext) -> dict[str, Tensor]:
        """Train on the public pairs with the server's own loss; return the optimiser's moments."""
        reader = Reader(model, _tables(server))
        loss = self._pair_loss(model, _public(server).identities().to(server.device))
        source, noise, local, own = server.rng("learn"), server.rng("learn noise"), self._local(server), reader.numbers
        done = training.train(reader, own, own, local, batches=source, noise=noise, loss=loss, moments=moments)
        return dict(done.moments)

    def _distil(
        self, model: Encoders, ensemble: Mapping[str, Tensor], moments: Tree, server: ServerContext
    ) -> dict[str, Tensor]:
        """Move the server's representations towards the ensembles; return the optimiser's moments.

        A modality without an ensemble is not read, so that nothing moves it.
        """
        names = [name for name in MODALITIES if name in ensemble]
        if not names:
            return dict(moments)
        reader = Reader(model, _tables(server), self._rows(server).to(server.device), names)
        targets = [ensemble[name].to(parameter_dtype(server.local.precision)) for name in names]

        def loss(found_MBD: Tensor, index_B: Tensor) -> Tensor:
            pairs = zip(found_MBD, targets, strict=True)
            return self.config.distil * torch.stack([F.mse_loss(own, to[index_B]) for own, to in pairs]).sum()

        local = replace(self._local(server), epochs=self.config.distil_epochs or self.config.server_epochs)
        source, noise, own = server.rng("distil"), server.rng("distil noise"), reader.numbers
        done = training.train(reader, own, own, local, batches=source, noise=noise, loss=_exact(loss), moments=moments)
        # Moments of what was not read are as they were.
        return dict(moments) | dict(done.moments)

    def _pair_loss(self, model: Encoders, identity_N: Tensor) -> training.Loss:
        def loss(found_MBD: Tensor, index_B: Tensor) -> Tensor:
            image, text = found_MBD
            own = identity_N[index_B]
            same = own[:, None] == own[None, :]
            if self.config.pair_loss == "infonce":
                return pair_contrast(image, text, same, self.config.pair_temperature)
            squared = (2 - 2 * image @ text.T).clamp_min(0)
            return soft_contrast((squared + 1e-6).sqrt(), same, model.scale, model.shift)

        return _exact(loss)

    # ---- a client's half -------------------------------------------------------------------------------------

    def local(self, phase: Phase, payload: Payload, client: ClientContext) -> Reply:
        public = _public(client)
        if payload.numbers["public"] != fingerprint(public):
            raise ValueError("This client has another public set than the server: data.public must be the same set.")
        model = self._client_model(client)
        rows = payload.trees["index"]["rows"].to(client.device, torch.int64)
        whole = len(rows) == len(public)  # ascending and each once, as the server draws them
        reader = Reader(model, _on_device(public, client, model.modalities), None if whole else rows)
        report = self._train(model, reader, payload, client)
        client.remember(MemoryRecord({"encoders": _state(model)}))
        made = reader.all()
        if client.id in self.config.noise_clients:
            source = generator(client.seed, client=client.id, purpose="noise in place of representations")
            made = {
                name: F.normalize(torch.randn(found.shape, generator=source), dim=1) for name, found in made.items()
            }
        sent = {name: to_wire(found.float(), self.config.wire) for name, found in made.items()}
        return Reply({"representations": sent}, {"loss": report}, client.num_examples)

    def _train(self, model: Encoders, reader: Reader, payload: Payload, client: ClientContext) -> float:
        """Do the local epochs, each a pass over the private data and one over the public; return the private loss."""
        before = reader.all()
        shared = {name: from_wire(sent).to(client.device) for name, sent in payload.trees["representations"].items()}
        contrast = self._contrast(model, before, shared)
        private, targets, private_loss = self._private(model, client)
        batches, noise = client.rng("batches"), client.rng("noise")
        losses: list[float] = []
        moments: dict[str, Tensor] = {}  # one optimiser for both passes; begun anew, Adam would forget gamma
        public_batch = client.local.batch_size or _PUBLIC_BATCH  # all of P against all of P is too much at once
        steps, budget = 0, client.local.max_steps
        while len(losses) < client.local.epochs or (not client.local.epochs and steps < budget):
            for kind, loss in ((private, private_loss), (reader, contrast)):
                if loss is None or (budget and steps >= budget):
                    continue
                numbers, labels = kind.numbers, targets if kind is private else kind.numbers
                once = replace(client.local, epochs=1, max_steps=budget - steps if budget else 0)
                if kind is reader:
                    once = replace(once, batch_size=public_batch)
                done = training.train(
                    kind,
                    numbers,
                    labels,
                    once,
                    batches=batches,
                    noise=noise,
                    round_=client.round,
                    loss=loss,
                    moments=moments,
                )
                moments = dict(done.moments)
                steps += done.num_steps
                if kind is private:
                    losses.append(done.loss)
            if budget and steps >= budget:
                break
        return sum(losses) / len(losses)

    def _contrast(
        self, model: Encoders, before: Mapping[str, Tensor], shared: Mapping[str, Tensor]
    ) -> training.Loss | None:
        """Return gamma (L_inter + L_intra); L_inter is summed over the client's modalities, L_intra their mean."""
        config = self.config
        if not config.contrast or not (config.inter or config.intra):
            return None
        other = dict(zip(MODALITIES, MODALITIES[::-1], strict=True))

        def loss(found_MBD: Tensor, index_B: Tensor) -> Tensor:
            parts = []
            for name, own in zip(model.modalities, found_MBD, strict=True):
                if config.inter:
                    parts.append(inter_contrast(own, shared[other[name]].to(own.dtype), index_B, config.temperature))
                if config.intra:
                    near, past = shared[name][index_B].to(own.dtype), before[name][index_B]
                    parts.append(intra_contrast(own, near, past, config.temperature) / len(model.modalities))
            return config.contrast * torch.stack(parts).sum()

        return _exact(loss)

    def _private(self, model: Encoders, client: ClientContext) -> tuple[Reader, Tensor, training.Loss]:
        """Return what is trained on the private data, the targets of its rows, and the loss."""
        data = client.train_data
        reader = Reader(model, _on_device(data, client, model.modalities))
        if model.classes is None:
            return reader, reader.numbers, self._pair_loss(model, data.identities().to(client.device))
        weight = model.classes

        def loss(found_MBD: Tensor, labels_B: Tensor) -> Tensor:
            if self.config.class_loss == "margin":
                return margin_loss(found_MBD[0], weight, labels_B, self.config.class_sharpness)
            return F.cross_entropy(class_logits(found_MBD[0], weight, self.config.class_sharpness), labels_B)

        return reader, data.labels.to(client.device), _exact(loss)

    # ---- what is evaluated -----------------------------------------------------------------------------------

    def model(self, state: State) -> dict[str, Tensor]:
        return state.model

    def representations(self, state: State) -> dict[str, Tensor]:
        return state.representations

    def predictors(self, state: State, server: ServerContext) -> Mapping[str, Predictor]:
        return {"model": _retrieval(self._load(state, server).eval())}

    def personal(self, payload: Payload, client: ClientContext) -> Mapping[str, Predictor]:
        model = self._client_model(client).eval()
        if model.classes is None:
            return {"retrieval": _retrieval(model)}
        weight, name = model.classes, model.modalities[0]
        encode: Callable[[Tensor], Tensor] = model.encode_image if name == "image" else model.encode_text
        reads = "images" if name == "image" else "tokens"
        return {name: Predictor(lambda x: class_logits(encode(x), weight, self.config.class_sharpness), reads=reads)}


def _exact(loss: training.Loss) -> training.Loss:
    """Return a loss that autocast does not round: a sharp softmax of unit vectors needs more than bf16."""

    def exact(found: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(found.device.type, enabled=False):
            return loss(found, target)

    return exact


def _retrieval(model: Encoders) -> Predictor:
    return Predictor(model.encode_image, family="retrieval", texts=model.encode_text)


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def _public(context: ServerContext | ClientContext) -> Examples:
    """Return the public set; raise `ValueError` without one that has images and texts."""
    public = context.public
    if public is None or public.tokens is None or not public.images.shape[1]:
        raise ValueError(
            "CreamFL needs public pairs of image and text, a set that has both: set data.public and data.text_encoder."
        )
    return public


def _tables(server: ServerContext) -> dict[str, Tensor]:
    """Return the public images and texts on the server's device."""
    public = _public(server)
    images, _ = server.prepare(public)
    return {"image": images, "text": public.read_tokens(server.device, images.dtype)}


def _on_device(examples: Examples, client: ClientContext, modalities: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the images and texts that a client's encoders read, on its device."""
    found = {}
    if "image" in modalities:
        found["image"] = client.prepare(examples)[0]
    if "text" in modalities:
        found["text"] = examples.read_tokens(client.device, parameter_dtype(client.local.precision))
    return found
