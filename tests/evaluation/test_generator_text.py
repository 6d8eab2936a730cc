"""Class embeddings of a generator and the text tower they speak to, from files to a table."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from maskclippp_jax.data import bundle_writer
from maskclippp_jax.data.bundles import Bundle
from maskclippp_jax.models.clip_convnext import ConvNeXtConfig
from maskclippp_jax.models.maskclippp import MaskCLIPppConfig
from maskclippp_jax.models.similarity import LinearSimilarityConfig
from maskclippp_jax.models.text import TextConfig
from maskclippp_jax.naming import loading
from maskclippp_jax.naming.segmenter import mean_over_templates
from tests.evaluation import test_evaluate as three
from tests.evaluation.test_evaluate import NAMES, VOCABULARY, evaluate

place = three.place
# The CLIP of an FC-CLIP, small: a ConvNeXt beside a text tower with CLIP's whole vocabulary.
GENERATOR = MaskCLIPppConfig(
    ConvNeXtConfig(96, (8, 16, 24, 32), (1, 1, 2, 1), 16, head_width=24),
    TextConfig(77, 49408, 16, 1, 2, 16), LinearSimilarityConfig(1, 16))
CONFIG = three.CONFIG.replace("    return config.lock()", f"""
    from maskclippp_jax.models.clip_convnext import ConvNeXtConfig
    from maskclippp_jax.models.text import TextConfig
    config.eval.generator = maskclippp.MaskCLIPppConfig(
        {GENERATOR.image!r}, {GENERATOR.text!r}, similarity.LinearSimilarityConfig(1, 16))
    config.eval.generator_weights = "clip.safetensors"
    config.eval.seen_vocabulary = "scenes_seen"
    return config.lock()""")


def write_clip(file, rng):
    """A checkpoint in OpenCLIP's layout: a ConvNeXt beside a random text tower."""
    width = 16
    shapes = {"token_embedding.weight": (49408, width), "positional_embedding": (77, width),
              "ln_final.weight": (width,), "ln_final.bias": (width,),
              "text_projection": (width, 16), "logit_scale": ()}
    block = {"ln_1.weight": (width,), "ln_1.bias": (width,), "attn.in_proj_weight": (48, width),
             "attn.in_proj_bias": (48,), "attn.out_proj.weight": (width, width),
             "attn.out_proj.bias": (width,), "ln_2.weight": (width,), "ln_2.bias": (width,),
             "mlp.c_fc.weight": (64, width), "mlp.c_fc.bias": (64,),
             "mlp.c_proj.weight": (width, 64), "mlp.c_proj.bias": (width,)}
    shapes |= {f"transformer.resblocks.0.{k}": shape for k, shape in block.items()}
    shapes["visual.head.mlp.fc2.weight"] = (16, 24)
    save_file(load_file(three.ROOT / "tests/golden/small/convnext.safetensors") | {
        k: rng.normal(size=shape, scale=0.5).astype(np.float32) for k, shape in shapes.items()},
        file)


@pytest.mark.slow
def test_embeddings_and_the_logits_they_stand_for_give_the_same_results(place, rng):
    (place / "tiny.py").write_text(CONFIG)
    write_clip(place / "clip.safetensors", rng)
    three.write_generated(place / "embeddings", kind="embeddings")
    bundle = Bundle(place / "embeddings")
    tower = loading.load_text_tower(str(place / "clip.safetensors"), GENERATOR)
    names = mean_over_templates(loading.embed_names(GENERATOR, tower, loading.tokenize(
        GENERATOR, VOCABULARY, bundle.classes["templates"])))
    writer = bundle_writer.Writer(
        place / "logits", masks="logits", generator=dict(name="random"),
        classes=dict(kind="open", vocabulary=[list(c) for c in VOCABULARY.classes]),
        preparation=bundle.preparation._asdict())
    for number, name in enumerate(NAMES):
        stored = bundle.read(name)
        classes, _ = three.naive_logits("embeddings", stored.classes, VOCABULARY, names, bundle)
        writer.add(name, stored.masks.astype(np.float32), three.way(number), classes)
    writer.finish()
    found = []
    for kind in ("embeddings", "logits"):
        done = evaluate(place, "--checkpoint=untuned", f"--bundle={kind}", f"--workdir=of_{kind}",
                        "--config.eval.ensemble=True", "--config.eval.alpha=0.2",
                        "--config.eval.beta=0.2", "--samples=0")
        assert done.returncode == 0, done.stderr
        found.append(json.loads((place / f"of_{kind}/results.json").read_text()))
    one, other = (f["models"][0] for f in found)
    assert found[0]["protocol"]["generator_text"] == "clip.safetensors"
    for part in ("semantic", "panoptic", "instances"):
        one[part], other[part] = ({k: v for k, v in x[part].items() if k != "confusions"}
                                  for x in (one, other))
        jax.tree.map(lambda a, b: a == b or np.testing.assert_allclose(a, b, atol=0.2),
                     one[part], other[part])
    assert one["semantic"]["pACC"] > 0


@pytest.mark.parametrize("change, says", [
    (("config.eval.generator_weights = ", "config.eval.generator_weights = 'gone' + "), "gone"),
    (("TextConfig(context_length=77, vocab_size=49408, width=16, depth=1, num_heads=2, "
      "embed_dim=16", "TextConfig(context_length=77, vocab_size=49408, width=16, depth=1, "
      "num_heads=2, embed_dim=8"), "clip.safetensors")])
def test_a_text_tower_that_does_not_fit_is_named(place, rng, change, says):
    assert change[0] in CONFIG
    (place / "tiny.py").write_text(CONFIG.replace(*change))
    write_clip(place / "clip.safetensors", rng)
    if not (place / "speaking").exists():
        three.write_generated(place / "speaking", kind="embeddings")
    done = evaluate(place, "--checkpoint=untuned", "--bundle=speaking", "--workdir=bad")
    assert done.returncode == 2 and says in done.stderr.splitlines()[-1], done.stderr
    assert "Traceback" not in done.stderr and not (place / "bad/results.json").exists()
