"""How a trained PISR model uses its relations, in a few numbers: where to look when it gains nothing.

    relation varies      share of the squared size of [M b] that differs from image to image
    relation rank        directions of D that M works in
    feature rank         directions of D that the features F lie in
    encoding rank        directions of D in which the encodings of an image differ from each other
    absent encodings     share of the semantic encodings whose class no query claims (P < 0.5)
    absent weight        mean weight w of those, relative to that of the claimed ones
    changed pixels       share of pixels with another class in the second prediction than in the first
    changed queries      share of queries with another class, "no object" included
    gradient share       size of the gradient of PISR's parameters relative to that of all, in a batch
    below eps            share of PISR's gradient entries that Adam's eps outweighs after clipping

A rank is the participation ratio (Σλ)²/Σλ² of eigenvalues. What a variant has not is left out.

Shapes: as in pisr_maskformer/module.py.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import fmean
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from mask_former.data import build_mapper, dataset_records
from mask_former.optimizer import build_clipping, build_optimizer
from mask_former.predictor import Prediction
from pisr_maskformer.attention import AffineFeatures
from pisr_maskformer.hosts.maskformer import PISRPredictions, PISRTransformerPredictor

DIAGNOSIS = "diagnosis"  # the numbers' key in probe.json
IMAGES = 100  # of the test set, that are looked at
CLAIMED = 0.5  # probability from which on a query claims a class


def diagnose(cfg: CfgNode, model: nn.Module, predictor: PISRTransformerPredictor) -> dict[str, float]:
    """The numbers above, of the first IMAGES test images and of one batch of the first training images."""
    records = dataset_records(cfg.DATASETS.TEST[0])[:IMAGES]
    mapper = build_mapper(cfg, is_train=False)
    model.eval()
    with watched(predictor) as watch, torch.no_grad():
        for record in records:
            model([mapper(record)])
    return watch.numbers() | gradient_numbers(cfg, model, predictor)


def participation(symmetric: Tensor) -> float:
    """(Σλ)²/Σλ² of the eigenvalues of a symmetric matrix: 1 for one direction, D for D equal ones."""
    trace = symmetric.diagonal().sum()
    return float(trace.square() / symmetric.square().sum().clamp(min=torch.finfo(symmetric.dtype).tiny))


class Watch:
    """What the forwards of single images leave behind."""

    def __init__(self) -> None:
        self.relations: list[Tensor] = []  # [M b], flat, float64
        self.values: dict[str, list[float]] = {}  # of every image
        self.pixels = 0
        self.total: Tensor | float = 0.0  # Σ F, D
        self.products: Tensor | float = 0.0  # Σ F Fᵀ, D×D
        self.weights: Tensor | None = None  # E of this image

    def add(self, **numbers: float) -> None:
        for name, value in numbers.items():
            self.values.setdefault(name.replace("_", " "), []).append(value)

    def features(self, features: Tensor) -> None:
        pixels = features[0].flatten(1).double()
        self.pixels += pixels.shape[1]
        self.total = self.total + pixels.sum(dim=1)
        self.products = self.products + pixels @ pixels.T

    def encodings(self, encodings: Tensor) -> None:
        centred = (encodings - encodings.mean(dim=0)).double()
        self.add(encoding_rank=participation(centred @ centred.T))

    def relation(self, panoptic: AffineFeatures) -> None:
        matrix = panoptic.matrix[0].double()
        self.relations.append(torch.cat([matrix, panoptic.offset[0].double()[:, None]], dim=1).flatten())
        self.add(relation_rank=participation(matrix @ matrix.T))

    def predictions(self, outputs: PISRPredictions) -> None:
        first, final = (semantic_labels(stage) for stage in (outputs["initial"], outputs))
        self.add(changed_pixels=float((first != final).double().mean()))
        logits = outputs["initial"]["pred_logits"][0]
        different = logits.argmax(-1) != outputs["pred_logits"][0].argmax(-1)
        self.add(changed_queries=float(different.double().mean()))
        claimed = logits.softmax(-1)[:, :-1].amax(dim=0) >= CLAIMED
        self.add(absent_encodings=float((~claimed).double().mean()))
        if self.weights is not None and claimed.any() and not claimed.all():
            weights = self.weights[: len(claimed)]
            self.add(absent_weight=float(weights[~claimed].mean() / weights[claimed].mean()))

    def numbers(self) -> dict[str, float]:
        found = {name: fmean(values) for name, values in self.values.items()}
        if self.relations:
            every = torch.stack(self.relations)
            apart = (every - every.mean(dim=0)).square().sum() / every.square().sum()
            found["relation varies"] = float(apart)
        if self.pixels:
            mean = torch.as_tensor(self.total) / self.pixels
            covariance = torch.as_tensor(self.products) / self.pixels - mean[:, None] * mean
            found["feature rank"] = participation(covariance)
        return found


@contextmanager
def watched(predictor: PISRTransformerPredictor) -> Iterator[Watch]:
    """Look at every forward inside, of one image each."""
    watch, pisr = Watch(), predictor.pisr
    hooks: list[tuple[str, Callable[[Any, Any], None]]] = [
        ("encoder", lambda given, encoded: watch.encodings(encoded.encodings[0][encoded.valid[0]])),
        ("reweighting", lambda given, output: _note_weights(watch, output[1])),
        ("attention", lambda given, panoptic: _note_relation(watch, given[0], panoptic)),
    ]
    handles = [predictor.register_forward_hook(lambda module, given, output: watch.predictions(output))]
    for name, look in hooks:
        if hasattr(pisr, name) and pisr.uses_encodings:
            part = getattr(pisr, name)
            handles.append(part.register_forward_hook(lambda module, given, out, f=look: f(given, out)))
    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()


def _note_weights(watch: Watch, weights: Tensor | None) -> None:
    watch.weights = None if weights is None else weights[0].mean(dim=-1)


def _note_relation(watch: Watch, features: Tensor, panoptic: Any) -> None:
    watch.features(features)
    if isinstance(panoptic, AffineFeatures):
        watch.relation(panoptic)


def semantic_labels(prediction: Prediction) -> Tensor:
    """The likeliest class of every pixel of one image, at the size of the masks, H×W."""
    classes = prediction["pred_logits"][0].softmax(-1)[:, :-1]
    masks = prediction["pred_masks"][0].sigmoid()
    return torch.einsum("qc,qhw->chw", classes, masks).argmax(dim=0)


def gradient_numbers(cfg: CfgNode, model: nn.Module, predictor: PISRTransformerPredictor) -> dict[str, float]:
    """Of one training batch, in training mode; leaves no gradient behind."""
    own = list(predictor.pisr.parameters())
    if not own:
        return {}
    mapper = build_mapper(cfg, is_train=True)
    records = dataset_records(cfg.DATASETS.TRAIN[0])[: cfg.SOLVER.IMS_PER_BATCH]
    model.train()
    model.zero_grad()
    sum(model([mapper(record) for record in records]).values()).backward()
    clipping = build_clipping(cfg)
    whole, share = clipping.norm(list(model.parameters())), clipping.norm(own)
    entries = torch.cat([p.grad.flatten() for p in own if p.grad is not None]).abs()
    clipped = entries * (clipping.max_norm / whole).clamp(max=1.0)
    eps = build_optimizer(cfg, model).defaults.get("eps", 0.0)
    model.zero_grad()
    model.eval()
    return {
        "gradient share": float(share / whole),
        "below eps": float((clipped < eps).double().mean()),
    }
