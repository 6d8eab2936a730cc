"""Training cases: similarity head, loss, steps, trajectories, schedule, optimiser, augmentation."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax

from maskclippp_jax import params as parameters, weights
from maskclippp_jax.data import transforms
from maskclippp_jax.models import clip_convnext, layers, maskclippp, resample, similarity
from maskclippp_jax.parity.case import (
    Case,
    Check,
    NotBuilt,
    channels_last,
    close,
    close_to_largest,
    equal,
    head_config,
    model_config,
    model_of,
)
from maskclippp_jax.training import losses, optim, train_step
from maskclippp_jax.vocabulary import Vocabulary, split_names
from maskclippp_jax.weights import maskclippp as layout, rules

_FLOAT32_ONLY = "reduced precision (this case is float32 only)"


def head(case: Case) -> list[Check]:
    """A similarity head: logits, and gradients of a probe.

    The stored similarities [N, C, T] go through the real head as inner products with the N vectors
    of the standard basis.
    """
    psm, arrays = case.spec["psm_cfg"], case.arrays
    if psm["NAME"] == "PseudoTextPSM":
        return _pseudo_text(case)
    given = jnp.asarray(arrays["in/similarity"])
    num_masks, _, num_templates = given.shape
    masks = jnp.eye(num_masks)[None]
    as_text = lambda s: jnp.transpose(s, (1, 2, 0))  # [C, T, E = N]
    if psm["NAME"] == "DummyPSM":
        apply = lambda params, s: similarity.mean_similarity(masks, as_text(s), 1.0)[0]
        params = {}
    elif psm["NAME"] == "LinearPSM":
        config = similarity.LinearSimilarityConfig(num_templates, psm["CORR_WIDTH"])
        build, shapes = parameters.abstract(
            lambda: similarity.LinearSimilarity(config, rngs=parameters.Keys(0)))
        loaded, _ = rules.load(case.weights, layout.LINEAR_HEAD, {"similarity": shapes})
        params = loaded["similarity"]
        apply = lambda params, s: build(params)(masks, as_text(s), 1.0)[0]
    else:
        raise NotBuilt(f"similarity head {psm['NAME']}")
    probe = arrays["in/probe"]
    gradients, given_gradient = jax.jit(jax.grad(
        lambda p, s: (apply(p, s) * probe).sum(), argnums=(0, 1)))(params, given)
    largest = np.abs(arrays["out/logits"]).max()
    checks = [close("logits", jax.jit(apply)(params, given), arrays["out/logits"],
                    atol=1e-5 * largest),
              close_to_largest("grad/in/similarity", given_gradient,
                               case.gradients["grad/in/similarity"], 1e-5)]
    named = rules.export({"similarity": gradients}, layout.LINEAR_HEAD) if params else {}
    return checks + [close_to_largest(f"grad/{k}", x, case.gradients[f"grad/{k}"], 1e-5)
                     for k, x in named.items()]


def _pseudo_text(case: Case) -> list[Check]:
    """The pseudo-text head.

    The stored similarities of its linear branch are no inner products of the stored embeddings, so
    they pass through the branch alone, as in `head`; the sum of both is the stored logits.
    """
    psm, arrays = case.spec["psm_cfg"], case.arrays
    given = {k: jnp.asarray(arrays[f"in/{k}"])
             for k in ("similarity", "m_embs", "t_embs", "p_embs")}
    num_masks, _, num_templates = given["similarity"].shape
    config = head_config(psm, num_templates, given["m_embs"].shape[-1])
    build, shapes = parameters.abstract(lambda: config.make(rngs=parameters.Keys(0)))
    params = rules.load(case.weights, layout.PSEUDO_TEXT, {"similarity": shapes})[0]["similarity"]
    # [B, M] number of the mask in each slot, -1 empty; an image may have none.
    slots = _slots(arrays["in/mask2batch"], len(given["p_embs"]))
    of_mask = np.zeros((num_masks, 2), int)
    of_mask[slots[slots >= 0]] = np.argwhere(slots >= 0)  # image and slot of every mask

    def apply(params, given):
        head = build(params)
        patches = given["p_embs"].reshape(*given["p_embs"].shape[:2], -1).swapaxes(1, 2)
        masks = jnp.concatenate([given["m_embs"], jnp.zeros((1, config.embed_dim))])[slots]
        logits = head(masks, given["t_embs"], 0.0, similarity.Condition(patches, None))
        logits = logits[of_mask[:, 0], of_mask[:, 1]]
        if config.residual_width is not None:
            branch = lambda scale: similarity.linear_similarity(
                head.corr_in, head.corr_out, jnp.eye(num_masks)[None],
                jnp.transpose(given["similarity"], (1, 2, 0)), scale)[0]
            logits = logits + branch(1.0) - branch(0.0)  # at scale 0 the head added the constant
        return logits

    objective = lambda p, g: (apply(p, g) * arrays["in/probe"]).sum()
    gradients, given_gradients = jax.jit(jax.grad(objective, argnums=(0, 1)))(params, given)
    largest = np.abs(arrays["out/logits"]).max()
    checks = [close("logits", jax.jit(apply)(params, given), arrays["out/logits"],
                    atol=1e-5 * largest)]
    named = {f"grad/{k}": x for k, x in rules.export(
        {"similarity": gradients}, layout.PSEUDO_TEXT).items()}
    named |= {f"grad/in/{k}": x for k, x in given_gradients.items()}
    for key, got in named.items():
        if key in case.gradients:
            checks.append(close_to_largest(key, got, case.gradients[key], 1e-5))
        else:  # nothing reaches it
            checks.append(equal(key, np.abs(got).max(), 0.0))
    return checks


def loss(case: Case) -> list[Check]:
    """Balanced cross-entropy and its gradient; batches in all shapes, on one and two devices."""
    arrays, checks = case.arrays, []
    for variant in case.spec["variants"]:
        temperature = variant["TEMPERATURE"]
        setting = (f"balance{variant['BALANCE_CLS']:d}_ignore{variant['IGNORE_EMPTY']:d}"
                   f"_t{temperature:g}")
        found = {}
        for name in case.spec["batches"]:
            given = {k: arrays[f"in/{name}/{k}"]
                     for k in ("logits", "labels", "mask2batch", "areas")}
            slots = _slots(given["mask2batch"])  # [B, N] row of each slot, -1 empty
            of_slot = lambda x: np.append(x, np.zeros_like(x, shape=(1, *x.shape[1:])), 0)[slots]
            labels = np.where(slots >= 0, of_slot(given["labels"]), -1)
            counted = slots >= 0
            if variant["IGNORE_EMPTY"]:
                counted &= of_slot(given["areas"]) > 0
            value, gradient = _loss_of_slots(given["logits"], temperature, labels, counted, slots,
                                             variant["BALANCE_CLS"])
            found[name] = value
            checks.append(close(f"{setting}/{name}", value, arrays[f"out/{setting}/{name}/loss"],
                                atol=1e-5))
            if f"grad/{setting}/{name}" in case.gradients:  # none is stored without any mask
                checks.append(close(f"grad/{setting}/{name}", gradient,
                                    case.gradients[f"grad/{setting}/{name}"], atol=2e-6))
        key = f"out/{setting}/two_devices/loss"
        if key in arrays:
            both = np.mean([found[r] for r in case.spec["ranks"]])
            checks.append(close(f"{setting}/two_devices", both, arrays[key], atol=1e-5))
    return checks


@functools.partial(jax.jit, static_argnums=5)
@jax.value_and_grad
def _loss_of_slots(logits, temperature, labels, counted, slots, balance_classes):
    """Logits [N, C] of masks, slots [B, M] of images: the loss, and its gradient in the logits."""
    padded = jnp.concatenate([logits, jnp.zeros((1, logits.shape[1]))])[slots]
    return losses.balanced_cross_entropy(padded / temperature, labels, counted,
                                         balance_classes=balance_classes)


def _slots(image_of_mask: np.ndarray, images: int | None = None) -> np.ndarray:
    """[N] image of each mask -> [B, M] index of each slot's mask, -1 for empty slots.

    Images behind the last one with a mask must be told.
    """
    images = images or int(image_of_mask.max(initial=0)) + 1
    rows = [np.flatnonzero(image_of_mask == b) for b in range(images)]
    slots = np.full((images, max(1, max(map(len, rows)))), -1)
    for b, row in enumerate(rows):
        slots[b, :len(row)] = row
    return slots


class _Tuning:
    """The model of a step or trajectory: its parameters, what learns, its loss and its gradient."""

    def __init__(self, case: Case):
        spec = case.spec
        if case.dtype != jnp.float32:
            raise NotBuilt(_FLOAT32_ONLY)
        vocabulary = Vocabulary("case", tuple(map(split_names, spec["class_names"])), (), ())
        token_ids = case.arrays["in/token_ids"]
        num_templates = len(token_ids) // vocabulary.num_synonyms
        config = model_config(case, num_templates=num_templates)
        self.build, self.shapes = parameters.abstract(
            lambda: maskclippp.MaskCLIPpp(config, rngs=parameters.Keys(0)))
        self.table = weights.rules_for("maskclippp", config)
        self.params, _ = rules.load(case.weights, self.table, self.shapes)
        self.text_tuned = spec["text_encoder_cfg"]["FINETUNE_TYPE"] != "none"
        self.is_trainable = optim.trainable_predicate(
            spec["encoder_cfg"]["FINETUNE_TYPE"], spec["text_encoder_cfg"]["FINETUNE_TYPE"], config)
        ids = jnp.asarray(token_ids.reshape(vocabulary.num_synonyms, num_templates, -1))
        self.text = ids if self.text_tuned else train_step.encode_prompts(
            self.build(self.params), ids)
        criterion = spec["criterion_cfg"]
        self.loss = types.SimpleNamespace(
            balance_classes=criterion["BALANCE_CLS"], ignore_empty=criterion["IGNORE_EMPTY"],
            temperature=criterion["TEMPERATURE"])
        self.config = config
        self.value_and_grad = jax.jit(jax.value_and_grad(self._loss))

    def _loss(self, trainable, frozen, batch, grid_masks, rows):
        model = self.build(parameters.combine(trainable, frozen))
        text = self.text[rows]
        if self.text_tuned:
            text = train_step.encode_prompts(model, text)
        return train_step.grid_masks_loss(model, dict(batch, grid_masks=grid_masks), text,
                                          self.loss)[0]

    def batch(self, arrays, prefix: str):
        image, sizes = channels_last(arrays[f"{prefix}images"]), arrays[f"{prefix}image_sizes"]
        if isinstance(self.config.image, clip_convnext.ConvNeXtConfig):
            # The reference's batches of these models see their padding, as the mean colour.
            rows, columns = (np.arange(side) < sizes[:, i, None]
                             for i, side in enumerate(image.shape[1:3]))
            inside = rows[:, :, None, None] & columns[:, None, :, None]
            image = jnp.where(inside, image, jnp.asarray(layers.PIXEL_MEAN).reshape(1, 1, 1, 3))
            sizes = np.broadcast_to(image.shape[1:3], sizes.shape)
        labels = np.where(np.arange(arrays[f"{prefix}labels"].shape[1])
                          < arrays[f"{prefix}num_masks"][:, None], arrays[f"{prefix}labels"], -1)
        batch = dict(image=image, image_size=jnp.asarray(sizes), labels=jnp.asarray(labels))
        grid_masks = jax.jit(resample.masks_to_grid, static_argnums=1)(
            jnp.asarray(arrays[f"{prefix}masks"]), self.config.image.patch_size)
        return batch, grid_masks


def step(case: Case) -> list[Check]:
    """Loss, embeddings and every gradient of one training step."""
    tuning, arrays = _Tuning(case), case.arrays
    batch, grid_masks = tuning.batch(arrays, "in/")
    rows = jnp.asarray(arrays["in/synonym_rows"])
    trainable, frozen = parameters.partition(tuning.params, tuning.is_trainable)
    value, gradients = tuning.value_and_grad(trainable, frozen, batch, grid_masks, rows)
    model = tuning.build(tuning.params)
    features = model.encode_image(batch["image"], batch["image_size"], grid_masks)
    valid = np.asarray(batch["labels"]) >= 0
    checks = [close("loss", value, arrays["out/loss"], atol=1e-4),
              close("areas", np.asarray(grid_masks.sum(-1))[valid], arrays["out/areas"], atol=2e-5,
                    rtol=1e-4),
              close("m_embs", np.asarray(features.mask_embeddings)[valid], arrays["out/m_embs"],
                    atol=1e-4, rtol=1e-4)]
    text = tuning.text[rows]
    text = train_step.encode_prompts(model, text) if tuning.text_tuned else text
    logits = np.asarray(model.classify(features, text))[valid]
    checks.append(close("t_embs", text, arrays["out/t_embs"], atol=1e-4, rtol=1e-4))
    checks.append(close("logits", logits, arrays["out/logits"],
                        atol=1e-5 * np.abs(arrays["out/logits"]).max(), rtol=1e-4))
    named = rules.export(gradients, tuning.table)
    checks.append(equal("trainable", sorted(named), sorted(case.spec["trainable"])))
    for name in sorted(set(named) & set(case.spec["trainable"])):  # others are a miss already
        if name not in case.spec["gradient_is_zero_but_for_rounding"]:
            checks.append(close_to_largest(f"grad/{name}", named[name],
                                           case.gradients[f"grad/{name}"], 3e-4))
    return checks


def _settings(solver: dict) -> types.SimpleNamespace:
    """The reference's solver keys as our `config.optimizer`."""
    return types.SimpleNamespace(
        learning_rate=solver["BASE_LR"], end_learning_rate=solver["BASE_LR_END"],
        warmup_steps=solver["WARMUP_ITERS"], warmup_factor=solver["WARMUP_FACTOR"],
        image_multiplier=solver["VISUAL_ENCODER_MULTIPLIER"],
        text_multiplier=solver["TEXT_ENCODER_MULTIPLIER"], weight_decay=solver["WEIGHT_DECAY"],
        clip_norm=solver["CLIP_GRADIENTS"]["CLIP_VALUE"])


def trajectory(case: Case) -> list[Check]:
    """Twelve optimiser steps: losses, rates, gradient norms, and where the parameters end."""
    tuning, arrays, solver = _Tuning(case), case.arrays, case.spec["solver"]
    settings, steps = _settings(solver), solver["MAX_ITER"]
    trainable, frozen = parameters.partition(tuning.params, tuning.is_trainable)
    optimizer = optim.make_optimizer(settings, steps, trainable, tuning.config)
    opt, update = optimizer.init(trainable), jax.jit(optimizer.update)
    batches = [tuning.batch(arrays, f"in/batch{i}/") for i in range(3)]
    rows = jnp.asarray(arrays["in/synonym_rows"])
    found: dict[str, list] = dict(loss=[], grad_norm=[])
    first = None
    for t in range(steps):
        value, gradients = tuning.value_and_grad(trainable, frozen, *batches[t % 3], rows[t])
        updates, opt = update(gradients, opt, trainable)
        trainable = optax.apply_updates(trainable, updates)
        found["loss"].append(value)
        found["grad_norm"].append(optax.tree.norm(gradients))
        first = first or rules.export(trainable, tuning.table)
    after, _ = tuning.value_and_grad(trainable, frozen, *batches[0], rows[0])

    hot = case.name in ("trajectory_eva02_hot", "trajectory_eva02_decay")
    strong = case.name in ("trajectory_eva02_wtext", "trajectory_convnext")  # larger moves
    rates = [optim.schedule(settings, steps)(t) for t in range(steps)]
    checks = [close("loss", found["loss"], arrays["out/loss"], atol=2e-4 if strong else 3e-4),
              close("grad_norm", found["grad_norm"], arrays["out/grad_norm"], atol=0, rtol=1e-4),
              close("lr", rates, arrays["out/lr"], atol=0, rtol=1e-9),
              close("loss_after", after, arrays["out/loss_after"],
                    atol=2e-4 if strong else 3e-4)]
    final = rules.export(trainable, tuning.table)
    stored = {k.removeprefix("out/final/") for k in arrays if k.startswith("out/final/")}
    noise = set(case.spec["gradient_is_zero_but_for_rounding"])  # may be stored or not
    checks.append(equal("trainable", sorted(set(final) - noise), sorted(stored - noise)))
    for when, named in (("first", first), ("final", final)):
        for name, x in named.items():
            if (name in case.spec["gradient_is_zero_but_for_rounding"]
                    or f"out/{when}/{name}" not in arrays):
                continue
            want, keep = arrays[f"out/{when}/{name}"], np.ones(np.size(x), bool)
            for start, end in case.spec.get("flat_ranges_without_gradient", {}).get(name, ()):
                keep[start:end] = False
            tolerance = 1e-5 if strong else 1.5e-6
            if hot:
                tolerance = 1e-5 if name.startswith("psm.") else 4e-5
                tolerance = 1e-4 if name.endswith("mask_logit_scale") else tolerance
            checks.append(close(f"{when}/{name}", np.ravel(x)[keep], np.ravel(want)[keep],
                                atol=tolerance))
    return checks


def schedule(case: Case) -> list[Check]:
    checks = []
    for name, s in case.spec["schedules"].items():
        settings = types.SimpleNamespace(
            learning_rate=s["base_lr"], end_learning_rate=s["end_lr"],
            warmup_steps=s["warmup_iters"], warmup_factor=s["warmup_factor"])
        steps = case.arrays[f"in/{name}/step"].astype(np.float64)
        checks.append(close(name, optim.schedule(settings, s["max_iter"])(steps),
                            case.arrays[f"out/{name}"], atol=1e-15, rtol=1e-9))
    return checks


def optimizer_groups(case: Case) -> list[Check]:
    """What learns, at which rate and decay, for every parameter."""
    checks, decay = [], case.spec["solver"]["WEIGHT_DECAY"]
    for name, spec in case.spec["models"].items():
        # The reference has the logit scale under an alias at the top level of its model.
        names = {{"_logit_scale": "text_encoder.logit_scale"}.get(k, k): v
                 for k, v in spec["table"].items()}
        model = model_of(names)
        table = weights.rules_for("maskclippp", model)
        is_trainable = optim.trainable_predicate(
            spec["encoder_finetune"], spec["text_finetune"], model)
        wrong = []
        for key, (_, trainable, multiplier, its_decay) in names.items():
            got = [(is_trainable(p), optim.learning_rate_multiplier(
                p, spec["visual_encoder_multiplier"], spec["text_encoder_multiplier"]),
                optim.weight_decay(p, decay, model)) for p in rules.paths_for(key, table)]
            want = (True, multiplier, its_decay)
            if not got or any(g != want if trainable else g[0] for g in got):
                wrong.append(key)
        checks.append(equal(f"{name} ({', '.join(wrong[:3])})" if wrong else name, wrong, []))
    return checks


def augment(case: Case) -> list[Check]:
    """Geometry, masks and colours of both families with given parameters."""
    arrays, checks = case.arrays, []
    levels = case.spec["largest_difference_if_hsv_to_rgb_rounds"]
    for name, drawn in case.spec["colour"].items():
        got = transforms.apply_color_jitter(arrays["in/image"], _jitter(drawn))
        checks.append(close(f"colour/{name}", got, arrays[f"out/colour/{name}"],
                            atol=max(levels[name], 0.1)))
    for name, drawn in case.spec["semantic"].items():
        size = transforms.shortest_edge(
            *arrays["in/labels"].shape, drawn["short"], drawn["longest"])
        (top, left), (height, width) = drawn["offset"], drawn["crop"]
        window = (slice(top, top + height), slice(left, left + width))
        image = transforms.resize_image(arrays["in/image"], size)[window]
        labels = transforms.resize_segments(arrays["in/labels"], size)[window]
        image = transforms.apply_color_jitter(image, _jitter(drawn["colour"]))
        if drawn["flip"]:
            image, labels = image[:, ::-1], labels[:, ::-1]
        present = [int(c) for c in np.unique(labels) if c != 255]
        checks += [
            equal(f"{name}/resized_size", size, arrays[f"out/semantic/{name}/resized_size"]),
            close(f"{name}/image", image, arrays[f"out/semantic/{name}/image"],
                  atol=_levels(drawn["colour"])),
            equal(f"{name}/labels", present, arrays[f"out/semantic/{name}/labels"]),
            equal(f"{name}/masks", np.stack([labels == c for c in present]),
                  arrays[f"out/semantic/{name}/masks"])]
    sizes = [transforms.shortest_edge(*asked)
             for asked in case.spec["sizes_asked"]["shortest_edge"]]
    red, green, blue = np.moveaxis(arrays["in/panoptic"].astype(np.int64), -1, 0)
    rows = case.spec["segments"]
    segments = np.zeros(red.shape, np.uint16)
    for n, row in enumerate(rows, start=1):
        segments[red + 256 * green + 65536 * blue == row["id"]] = n
    table = dict(id=np.arange(1, len(rows) + 1), class_id=np.array([r["category"] for r in rows]),
                 is_crowd=np.array([r["iscrowd"] for r in rows], bool))
    for name, drawn in case.spec["panoptic"].items():
        step = -1 if drawn["flip"] else 1
        size = transforms.fitting_size(*segments.shape, drawn["scale"], drawn["target"])
        image = transforms.resize_image(
            np.ascontiguousarray(arrays["in/image"][:, ::step]), size)
        image, cut = transforms.large_scale_crop(
            image, transforms.resize_panoptic(segments[:, ::step], size), drawn["u"],
            drawn["target"])
        slots, labels = transforms.to_slots(cut, table, len(rows), name, keep_vanished=True)
        labels = labels[labels >= 0]
        masks = slots == np.arange(1, len(labels) + 1)[:, None, None]
        for key, got in dict(resized_size=size, image=image, labels=labels, masks=masks).items():
            checks.append(equal(f"panoptic {name}/{key}", got,
                                arrays[f"out/panoptic/{name}/{key}"]))
    fitted = [transforms.fitting_size(*asked[:3], asked[3:])
              for asked in case.spec["sizes_asked"]["resize_scale"]]
    return [*checks, equal("sizes", sizes, arrays["out/sizes/shortest_edge"]),
            equal("fitted sizes", fitted, arrays["out/sizes/resize_scale"])]


def _jitter(drawn: dict) -> transforms.ColorJitter:
    return transforms.ColorJitter(
        brightness=drawn.get("brightness"), contrast=drawn.get("contrast"),
        saturation=drawn.get("sat"), hue=drawn.get("hue_delta"),
        contrast_first=drawn["contrast_first"])


def _levels(drawn: dict) -> float:
    """Levels of 255 allowed in a whole chain, for which the case states none: OpenCV's vector code
    truncates on the way back from HSV, its scalar code rounds (one level), and what follows
    enlarges that to as much as 4."""
    conversions = ("sat" in drawn) + ("hue_delta" in drawn)
    return {0: 0.1, 1: 1.0, 2: 4.0}[conversions]
