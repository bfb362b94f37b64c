"""How a trained PISR model uses its relations, in a few numbers: where to look when it gains nothing.

    relation varies      distance (rms) of [M b] from its mean over images, relative to its size, which is 1
    relation rank        of M Mᵀ, mean over images: in how many of D directions M works
    feature rank         of the covariance of F over the pixels of all images
    encoding rank        of the encodings of an image around their mean, mean over images
    unclaimed classes    share of the classes that no query claims (P < 0.5), whose encodings mean nothing
    unclaimed weight     mean weight w of their encodings, relative to that of the claimed ones
    changed pixels       share of pixels with another class in the second prediction than in the first
    changed queries      share of queries with another class, "no object" included
    gradient share       of attention and reweighting in the size of the whole gradient, after training
    below eps            share of their gradient entries that Adam's eps outweighs after clipping

A rank is the participation ratio (Σλ)²/Σλ² of eigenvalues λ: n equal ones give n, and small ones hardly
count. What a variant has not is left out.

Shapes: as in pisr_maskformer/module.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean

import torch
from detectron2.config import CfgNode
from detectron2.utils.env import seed_all_rng
from torch import Tensor, nn

from mask_former.data import build_mapper, dataset_records
from mask_former.optimizer import build_clipping, build_optimizer
from mask_former.predictor import Prediction
from pisr_maskformer.attention import AffineFeatures, MapFeatures
from pisr_maskformer.encodings import semantic_heatmaps
from pisr_maskformer.hosts.maskformer import PISRPredictions, PISRTransformerPredictor

DIAGNOSIS = "diagnosis"  # the numbers' key in probe.json
IMAGES = 100  # of the test set, that are looked at
BATCH = 4  # training images of the gradient, at most
CLAIMED = 0.5  # probability from which on a query claims a class


def diagnose(cfg: CfgNode, model: nn.Module, predictor: PISRTransformerPredictor) -> dict[str, float]:
    """The numbers above, of the first IMAGES test images and the first BATCH training images.

    The model's entries and mode are as before; there are no gradients afterwards.
    """
    records = dataset_records(cfg.DATASETS.TEST[0])[:IMAGES]
    mapper = build_mapper(cfg, is_train=False)
    with as_it_was(model):
        model.eval()
        with watched(predictor) as watch, torch.no_grad():
            for record in records:
                model([mapper(record)])
        return watch.numbers() | gradient_numbers(cfg, model, predictor)


@contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    """Afterwards buffers (the statistics of batch norms) and mode are those of before."""
    training, buffers = model.training, [buffer.clone() for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(before)
        model.train(training)
        model.zero_grad()


def participation(symmetric: Tensor) -> float:
    """(Σλ)²/Σλ² of the eigenvalues of a symmetric matrix: 1 for one direction, D for D equal ones."""
    trace = symmetric.diagonal().sum()
    return float(trace.square() / symmetric.square().sum().clamp(min=torch.finfo(symmetric.dtype).tiny))


class Watch:
    """What the forwards of single images leave behind; padding does not count."""

    def __init__(self) -> None:
        self.relations: list[Tensor] = []  # [M b], flat, float64
        self.values: dict[str, list[float]] = {}  # of every image
        self.pixels = 0
        self.total: Tensor | float = 0.0  # Σ F, D
        self.products: Tensor | float = 0.0  # Σ F Fᵀ, D×D
        self.valid: Tensor | None = None  # H×W bool of this image; None: all
        self.weights: Tensor | None = None  # E of this image

    def add(self, **numbers: float) -> None:
        for name, value in numbers.items():
            self.values.setdefault(name.replace("_", " "), []).append(value)

    def image(self, valid_pixels: Tensor | None) -> None:
        """A forward of PISR begins."""
        self.valid = None if valid_pixels is None else valid_pixels[0, 0]
        self.weights = None

    def inside(self, values: Tensor) -> Tensor:
        """The valid pixels of …×H×W, …×n."""
        return values.flatten(-2) if self.valid is None else values[..., self.valid]

    def encodings(self, encodings: Tensor) -> None:
        centred = (encodings - encodings.mean(dim=0)).double()
        self.add(encoding_rank=participation(centred @ centred.T))

    def reweighting(self, weights: Tensor | None) -> None:
        self.weights = None if weights is None else weights[0].mean(dim=-1)

    def attention(self, features: Tensor, panoptic: AffineFeatures | MapFeatures) -> None:
        pixels = self.inside(features[0]).double()
        self.pixels += pixels.shape[1]
        self.total = self.total + pixels.sum(dim=1)
        self.products = self.products + pixels @ pixels.T
        if isinstance(panoptic, AffineFeatures):
            matrix = panoptic.matrix[0].double()
            self.relations.append(torch.cat([matrix, panoptic.offset[0].double()[:, None]], dim=1).flatten())
            self.add(relation_rank=participation(matrix @ matrix.T))

    def predictions(self, outputs: PISRPredictions) -> None:
        first, final = (self.inside(semantic_labels(stage)) for stage in (outputs["initial"], outputs))
        self.add(changed_pixels=float((first != final).double().mean()))
        logits = outputs["initial"]["pred_logits"][0]
        different = logits.argmax(-1) != outputs["pred_logits"][0].argmax(-1)
        self.add(changed_queries=float(different.double().mean()))
        claimed = logits.softmax(-1)[:, :-1].amax(dim=0) >= CLAIMED
        self.add(unclaimed_classes=float((~claimed).double().mean()))
        if self.weights is not None and claimed.any() and not claimed.all():
            weights = self.weights[: len(claimed)]
            self.add(unclaimed_weight=float(weights[~claimed].mean() / weights[claimed].mean()))

    def numbers(self) -> dict[str, float]:
        found = {name: fmean(values) for name, values in self.values.items()}
        if self.relations:
            every = torch.stack(self.relations)
            apart = (every - every.mean(dim=0)).square().sum() / every.square().sum()
            found["relation varies"] = float(apart.sqrt())
        if self.pixels:
            mean = torch.as_tensor(self.total) / self.pixels
            covariance = torch.as_tensor(self.products) / self.pixels - mean[:, None] * mean
            found["feature rank"] = participation(covariance)
        return found


@contextmanager
def watched(predictor: PISRTransformerPredictor) -> Iterator[Watch]:
    """Look at every forward inside, of one image each."""
    watch, pisr = Watch(), predictor.pisr
    handles = [
        pisr.register_forward_pre_hook(
            lambda module, given, named: watch.image(named.get("valid_pixels")), with_kwargs=True
        ),
        predictor.register_forward_hook(lambda module, given, output: watch.predictions(output)),
    ]
    if pisr.uses_encodings:
        handles += [
            pisr.encoder.register_forward_hook(
                lambda module, given, encoded: watch.encodings(encoded.encodings[0][encoded.valid[0]])
            ),
            pisr.reweighting.register_forward_hook(lambda module, given, out: watch.reweighting(out[1])),
            pisr.attention.register_forward_hook(
                lambda module, given, panoptic: watch.attention(given[0], panoptic)
            ),
        ]
    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()


def semantic_labels(prediction: Prediction) -> Tensor:
    """The likeliest class of every pixel of one image, at the size of the masks, H×W."""
    classes = prediction["pred_logits"].softmax(-1)[..., :-1]
    return semantic_heatmaps(prediction["pred_masks"].sigmoid(), classes)[0].argmax(dim=0)


def gradient_numbers(cfg: CfgNode, model: nn.Module, predictor: PISRTransformerPredictor) -> dict[str, float]:
    """Of the first training images, in training mode, with the configuration's seed."""
    pisr = predictor.pisr
    if not pisr.uses_encodings:
        return {}
    seed_all_rng(max(cfg.SEED, 0))
    mapper = build_mapper(cfg, is_train=True)
    records = dataset_records(cfg.DATASETS.TRAIN[0])[: min(BATCH, cfg.SOLVER.IMS_PER_BATCH)]
    model.train()
    model.zero_grad()
    sum(model([mapper(record) for record in records]).values()).backward()
    own = [*pisr.attention.parameters(), *pisr.reweighting.parameters()]
    clipping = build_clipping(cfg)
    whole = clipping.norm(list(model.parameters()))
    found = {"gradient share": float(clipping.norm(own) / whole)}
    eps = build_optimizer(cfg, model).defaults.get("eps")
    if eps is not None:
        entries = torch.cat([p.grad.flatten() for p in own if p.grad is not None]).abs()
        clipped = entries * (clipping.max_norm / whole).clamp(max=1.0)
        found["below eps"] = float((clipped < eps).double().mean())
    return found
