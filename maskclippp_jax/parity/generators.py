"""Cases of mask generators: masks in plain files, and what becomes of a generator's classes."""

import functools

import jax
import numpy as np

from maskclippp_jax.data import mask_chain, mask_files
from maskclippp_jax.models import resample, similarity
from maskclippp_jax.naming import segmenter
from maskclippp_jax.parity import class_scores
from maskclippp_jax.parity.case import Case, Check, close, equal
from maskclippp_jax.vocabulary import Vocabulary, split_names

_KINDS = dict(json=".json", png_rgb=".png", png_l=".png", png_i16=".png", png_palette=".png",
              npy=".npy")


def offline_segmentor(case: Case) -> list[Check]:
    """Masks of every kind of file, and some of them at the size of the generator's input."""
    config, checks = case.spec["config"], []
    size = tuple(config["image_size"])
    folder = case.file.with_name(case.name)
    for kind, ending in _KINDS.items():
        masks = mask_files.read_masks(str(folder / kind / f"img_0{ending}"), size, ())
        checks.append(equal(f"{kind}_masks", masks, case.arrays[f"{kind}_masks"]))
        if f"{kind}_padded" not in case.arrays:
            continue
        sizes = mask_chain.given_mask_sizes(np.array(size), np.array(config["resized"]))
        got = _at_generator_size(masks, sizes, canvas=tuple(config["padded"]))
        checks.append(close(f"{kind}_padded", got, case.arrays[f"{kind}_padded"], atol=5e-5,
                            rtol=1e-5))
    empty = mask_files.read_masks(str(folder / "json_empty/img_0.json"), size)
    return [*checks, equal("json_empty", empty.shape, (0, *size))]  # the reference raises


def generator_classes(case: Case) -> list[Check]:
    """Names seen in training, ensembles with void, and embeddings of names."""
    config, arrays = case.spec["config"], case.arrays
    training, test = (Vocabulary("", tuple(map(split_names, config[k])), (), ())
                      for k in ("train_classes", "test_classes"))
    lookup, seen = test.lookup_from(training), test.seen_in(training)
    checks = [equal("train2test_lut", lookup, arrays["train2test_lut"]),
              equal("category_overlapping_mask", seen, arrays["category_overlapping_mask"]),
              equal("num_synonyms", [len(c) for c in test.classes], arrays["num_synonyms"]),
              equal("sentences", test.prompts(config["templates"]), config["sentences"])]
    for kind, given in (("closed", lookup), ("open", None)):
        generator = arrays[f"logits_{kind}"]
        got, _ = class_scores.mix(arrays["logits"], generator, seen, config["alpha"],
                                  config["beta"], given)
        checks.append(close(f"ensembled_{kind}", got[:, :test.num_classes],
                            arrays[f"ensembled_{kind}"], atol=5e-5, rtol=1e-5))
        checks += class_scores.compare_scores(
            kind, class_scores.join(got, generator), test.num_classes,
            lambda _, kind=kind: arrays[f"ensembled_{kind}_with_void"], ["with_void"])
    shape = test.num_synonyms, len(config["templates"]), -1
    rows = [np.asarray(similarity.unit(arrays[k])).reshape(shape)
            for k in ("text_raw", "text_raw_main")]
    return [*checks,
            close("text_embs_f", segmenter.mean_over_templates(rows[0]), arrays["text_embs_f"],
                  atol=5e-5, rtol=1e-5),
            close("text_embs_main", rows[1], arrays["text_embs_main"], atol=5e-5, rtol=1e-5)]


@functools.partial(jax.jit, static_argnames="canvas")
def _at_generator_size(masks, sizes, canvas):
    return resample.resize_masks(mask_chain.probabilities(masks),
                                 *mask_chain.mask_taps(sizes, sizes.kept, canvas))
