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

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, MinLen
from torch import Tensor, nn

from umbel.core import training
from umbel.core.device import parameter_dtype
from umbel.core.folds import Folded, Product, product
from umbel.core.memory import MemoryRecord
from umbel.core.ranges import OneOf
from umbel.core.records import Payload, Reply
from umbel.core.rng import generator
from umbel.core.training.config import OPTIMIZERS
from umbel.core.tree import Tree
from umbel.models.pair import MODALITIES, Encoders, Reader, class_logits
from umbel.strategies.base import ClientContext, Phase, Predictor, ServerContext, Setting, Strategy
from umbel.strategies.creamfl.architectures import check_models, client_model, server_model, try_models
from umbel.strategies.creamfl.combinations import check_options, check_setting
from umbel.strategies.creamfl.contrasts import class_loss, contrast_loss, exact, pair_loss
from umbel.strategies.creamfl.ensemble import combine
from umbel.strategies.creamfl.passes import by_turns, num_by_turns, server_training
from umbel.strategies.creamfl.public import fingerprint, on_device, public_of, rows_of, tables_of
from umbel.strategies.creamfl.representations import WIRES, Representations, from_wire, to_wire
from umbel.strategies.phase import Visit, no_pass


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
        ensemble: `contrast` (weights alpha_k); `mean` (as FedMD), or `variance` (as FedET weighs class scores).
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

    num_image: Annotated[int, Ge(0)] = 0
    num_text: Annotated[int, Ge(0)] = 0
    num_both: Annotated[int, Ge(0)] = 0
    dimension: Annotated[int, Ge(1)] = 256
    image_models: Annotated[list[str], MinLen(1)] = field(default_factory=lambda: ["cnn"])
    image_sizes: dict[str, Any] = field(default_factory=dict)
    text_models: Annotated[list[str], MinLen(1)] = field(default_factory=lambda: ["gru"])
    text_sizes: dict[str, Any] = field(default_factory=dict)
    server_text: str = "transformer"
    server_text_sizes: dict[str, Any] = field(default_factory=dict)
    pair_loss: Annotated[str, OneOf("pcme", "infonce")] = "pcme"
    pair_temperature: Annotated[float, Gt(0)] = 0.07
    class_loss: Annotated[str, OneOf("margin", "plain")] = "margin"
    class_sharpness: Annotated[float, Gt(0)] = 128.0
    inter: bool = True
    intra: bool = True
    contrast: Annotated[float, Ge(0)] = 0.5
    temperature: Annotated[float, Gt(0)] = 0.5
    ensemble: Annotated[str, OneOf("contrast", "mean", "variance")] = "contrast"
    ensemble_temperature: Annotated[float, Gt(0)] = 1.0
    exclude_self: bool = False
    distil: Annotated[float, Ge(0)] = 0.3
    wire: Annotated[str, OneOf(*WIRES)] = "float32"
    public_per_round: Annotated[int, Ge(0)] = 0
    stratify: bool = True
    server_epochs: Annotated[int, Ge(1)] = 1
    distil_epochs: Annotated[int, Ge(0)] = 0
    server_batch_size: Annotated[int, Ge(1)] = 128
    server_optimizer: Annotated[str, OneOf(*OPTIMIZERS)] = "adamw"
    server_lr: Annotated[float, Gt(0)] = 2e-4
    server_cosine: bool = True
    server_weight_decay: Annotated[float, Ge(0)] = 0.0
    server_clip_norm: Annotated[float, Ge(0)] = 2.0
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


class CreamFL(Strategy[State]):
    """Clients and server teach one another by their representations of public pairs."""

    config_class = Config
    config: Config
    own_model = True

    @property
    def plans_rounds(self) -> bool:
        """Under `server_cosine` the server's learning rate falls to 0 over all rounds."""
        return bool(self.config.server_cosine)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        check_options(config)
        check_models(config)

    def check(self, setting: Setting) -> None:
        check_setting(self.config, setting)

    def initial(self, server: ServerContext) -> State:
        try_models(self.config, server)
        return State(_state(server_model(self.config, server)), {}, {})

    def every_phase(self) -> tuple[Phase[State], ...]:
        config = self.config
        kinds = (0,) * config.num_image + (1,) * config.num_text + (2,) * config.num_both
        groups = kinds if config.stratify else ()
        return (
            Phase.of_server("learn", self.after_learn),
            Phase(
                "contrast",
                self.send,
                self.contrast,
                self.fold,
                self.after_contrast,
                groups=groups,
                num_processed=no_pass,
                besides=self.gone_through,
            ),
        )

    def gone_through(self, state: State, visit: Visit) -> int:
        """Return the samples that a client goes through: the public ones also before and after it trains."""
        public, config = len(rows_of(visit.server, self.config.public_per_round)), self.config
        contrasts = bool(config.contrast and (config.inter or config.intra))
        return 2 * public + num_by_turns(visit.server.local, visit.own, public if contrasts else 0)

    # ---- learn: the server by itself, on the public pairs ----------------------------------------------------

    def after_learn(self, state: State, server: ServerContext) -> State:
        model = self._load(state, server)
        moments = self._learn(model, state.moments, server)
        return State(_state(model), self._read(model, server), moments)

    def _load(self, state: State, server: ServerContext) -> Encoders:
        model = server_model(self.config, server)
        model.load_state_dict(state.model)
        return model

    def _learn(self, model: Encoders, moments: Tree, server: ServerContext) -> dict[str, Tensor]:
        """Train on the public pairs with the server's own loss; return the optimiser's moments."""
        reader = Reader(model, tables_of(server))
        report = training.train(
            reader,
            reader.numbers,
            reader.numbers,
            server_training(self.config, server),
            batches=server.rng("learn"),
            noise=server.rng("learn noise"),
            loss=pair_loss(self.config, model, public_of(server).identities().to(server.device)),
            moments=moments,
        )
        return dict(report.moments)

    @staticmethod
    def _read(model: Encoders, server: ServerContext) -> dict[str, Tensor]:
        """Return a model's representations of the public set."""
        return {name: unit.float().cpu() for name, unit in Reader(model, tables_of(server)).all().items()}

    # ---- contrast: clients with what the server says of P, and back ------------------------------------------

    def send(self, state: State, server: ServerContext) -> Payload:
        rows = rows_of(server, self.config.public_per_round)
        sent = {name: to_wire(unit[rows], self.config.wire) for name, unit in state.representations.items()}
        numbers = {"public": fingerprint(public_of(server))}
        return Payload({"representations": sent, "index": {"rows": rows.to(torch.int32)}}, numbers)

    def contrast(self, payload: Payload, client: ClientContext) -> Reply:
        public = public_of(client)
        if payload.numbers["public"] != fingerprint(public):
            raise ValueError("This client has another public set than the server: data.public must be the same set.")
        model = client_model(self.config, client)
        rows = payload.trees["index"]["rows"].to(client.device, torch.int64)
        whole = len(rows) == len(public)  # ascending and each once, as the server draws them
        reader = Reader(model, on_device(public, client, model.modalities), None if whole else rows)
        loss = self._train(model, reader, payload, client)
        client.remember(MemoryRecord({"encoders": _state(model)}))
        said = reader.all()
        if client.id in self.config.noise_clients:
            source = generator(client.seed, client=client.id, purpose="noise in place of representations")
            said = {name: F.normalize(torch.randn(unit.shape, generator=source), dim=1) for name, unit in said.items()}
        sent = {name: to_wire(unit.float(), self.config.wire) for name, unit in said.items()}
        return Reply({"representations": sent}, {"loss": loss}, client.num_examples)

    def _train(self, model: Encoders, reader: Reader, payload: Payload, client: ClientContext) -> float:
        """Do the local epochs, each a pass over the private data and one over the public; return the private loss."""
        before = reader.all()
        shared = {name: from_wire(sent).to(client.device) for name, sent in payload.trees["representations"].items()}
        contrast = contrast_loss(self.config, model, before, shared)
        private, targets, private_loss = self._private(model, client)
        return by_turns(client, private, targets, private_loss, reader, contrast)

    def _private(self, model: Encoders, client: ClientContext) -> tuple[Reader, Tensor, training.Loss]:
        """Return what is trained on the private data, the targets of its rows, and the loss."""
        data = client.train_data
        reader = Reader(model, on_device(data, client, model.modalities))
        if model.classes is None:
            return reader, reader.numbers, pair_loss(self.config, model, data.identities().to(client.device))
        return reader, data.labels.to(client.device), class_loss(self.config, model.classes)

    def fold(self) -> Product:
        return product({"representations": Representations(self.config.wire)}, numbers=["loss"])

    def after_contrast(self, state: State, folded: Folded, server: ServerContext) -> State:
        if not self.config.distil:
            return state
        model = self._load(state, server)
        moments = self._distil(model, self.ensembles(folded, state, server), state.moments, server)
        return State(_state(model), state.representations, moments)

    def ensembles(self, folded: Folded, state: State, server: ServerContext) -> dict[str, Tensor]:
        """Return the ensemble [M, D] of each modality of which somebody replied."""
        rows = rows_of(server, self.config.public_per_round)
        replies, combined = folded.trees["representations"], {}
        for own, other in (MODALITIES, MODALITIES[::-1]):
            if own in replies:
                across = from_wire(to_wire(state.representations[other][rows], self.config.wire)).to(server.device)
                combined[own] = combine(self.config, replies[own], across)
        return combined

    def _distil(
        self, model: Encoders, ensemble: Mapping[str, Tensor], moments: Tree, server: ServerContext
    ) -> dict[str, Tensor]:
        """Move the server's representations towards the ensembles; return the optimiser's moments.

        A modality without an ensemble is not read, so that nothing moves it.
        """
        names = [name for name in MODALITIES if name in ensemble]
        if not names:
            return dict(moments)
        rows = rows_of(server, self.config.public_per_round).to(server.device)
        reader = Reader(model, tables_of(server), rows, names)
        targets = [ensemble[name].to(parameter_dtype(server.local.precision)) for name in names]

        def loss(unit_MBD: Tensor, index_B: Tensor) -> Tensor:
            pairs = zip(unit_MBD, targets, strict=True)
            return self.config.distil * torch.stack([F.mse_loss(own, to[index_B]) for own, to in pairs]).sum()

        report = training.train(
            reader,
            reader.numbers,
            reader.numbers,
            server_training(self.config, server, self.config.distil_epochs),
            batches=server.rng("distil"),
            noise=server.rng("distil noise"),
            loss=exact(loss),
            moments=moments,
        )
        # Moments of what was not read are as they were.
        return dict(moments) | dict(report.moments)

    # ---- what is evaluated -----------------------------------------------------------------------------------

    def finish(self, state: State, server: ServerContext) -> State:
        return replace(state, representations=self._read(self._load(state, server), server))

    def model(self, state: State) -> dict[str, Tensor]:
        return state.model

    def representations(self, state: State) -> dict[str, Tensor]:
        return state.representations

    def evaluated(self, state: State, server: ServerContext) -> Payload:
        return Payload({})  # clients evaluate what they have

    def predictors(self, state: State, server: ServerContext) -> Mapping[str, Predictor]:
        return {"model": _retrieval(self._load(state, server).eval())}

    def personal(self, payload: Payload, client: ClientContext) -> Mapping[str, Predictor]:
        model = client_model(self.config, client).eval()
        if model.classes is None:
            return {"retrieval": _retrieval(model)}
        weight, name = model.classes, model.modalities[0]
        encode: Callable[[Tensor], Tensor] = model.encode_image if name == "image" else model.encode_text
        reads = "images" if name == "image" else "tokens"
        return {name: Predictor(lambda x: class_logits(encode(x), weight, self.config.class_sharpness), reads=reads)}


def _retrieval(model: Encoders) -> Predictor:
    return Predictor(model.encode_image, family="retrieval", texts=model.encode_text)


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
