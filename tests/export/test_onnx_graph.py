"""Programs as ONNX graphs give what JAX gives, whatever their open dimensions are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export

from maskclippp_jax import params as parameters
from maskclippp_jax.export import folder as exporting, programs
from maskclippp_jax.models import maskclippp
from maskclippp_jax.naming import inference

onnxruntime = pytest.importorskip("onnxruntime")


def converted(function, shapes, outputs):
    """A function without parameters, converted and run by ONNX Runtime."""
    from maskclippp_jax.export import onnx_graph

    scope = jax_export.SymbolicScope()
    specs = {name: jax.ShapeDtypeStruct(jax_export.symbolic_shape(shape, scope=scope), dtype)
             for name, (shape, dtype) in shapes.items()}
    graph = onnx_graph.convert(lambda _, *x: function(*x), specs, {}, {}, outputs, "test")
    session = onnxruntime.InferenceSession(graph.SerializeToString(),
                                           providers=["CPUExecutionProvider"])
    return lambda *inputs: session.run(None, dict(zip(specs, inputs)))


def test_operations_do_what_those_of_jax_do_in_any_size(rng):
    def function(x, y):  # [n, m, 4] float32, [n, 2m] int32
        n, m, _ = x.shape
        left, right = jnp.split(x, 2, -1)
        parts = jnp.stack([left * n, right / (m + 1)], 1)  # [n, 2, m, 2]
        rows = jnp.arange(n * m + 3, dtype=jnp.float32)
        padded = jnp.pad(y > 0, ((1, 0), (0, 2)), constant_values=True)
        masked = jnp.where(padded[1:, :, None], jnp.pad(x, ((0, 0), (0, m + 2), (0, 0))), -1.0)
        return (parts.reshape(n, -1), jnp.max(parts, (1, 3)), y % 3, jax.lax.rem(y, jnp.int32(3)),
                y // 2, rows * rows, masked, padded.all(0), padded.any(1),
                jnp.einsum("nmk,nlk->lm", x, x[:, :1]), jnp.einsum("nmk,jk->jnm", x, x[0]),
                x[:, -1], x[:, :1][:, :, 1:3], jnp.take(x, y[0] % 2, axis=1, mode="clip"),
                jnp.broadcast_to(x[0].sum(-1)[:, None], (m, n)) ** 3, jnp.tanh(x).astype("float16"),
                jnp.clip(x, -0.5, 0.5), jax.nn.logsumexp(x, axis=-1), jnp.logaddexp(x, 1 - x),
                jax.nn.gelu(x, approximate=False), x.reshape(n, m * 4)[:, 4:], jnp.sign(x),
                jnp.prod(y % 3, 1), jax.vmap(lambda rows, place: rows[place])(x, abs(y) % m))

    names = [f"out_{i}" for i in range(24)]
    run = converted(function, dict(x=("n, m, 4", np.float32), y=("n, 2*m", np.int32)), names)
    for n, m in ((2, 3), (1, 5)):
        x = rng.normal(size=(n, m, 4)).astype(np.float32)
        y = rng.integers(-9, 9, (n, 2 * m)).astype(np.int32)
        for name, got, want in zip(names, run(x, y), function(x, y), strict=True):
            assert got.dtype == want.dtype and got.shape == want.shape, name
            # float16 rounds its last bit; the others are float32.
            tolerance = 1e-3 if got.dtype == np.float16 else 2e-6
            np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance, err_msg=name)


def test_an_operation_without_a_rule_is_named():
    with pytest.raises(ValueError, match="the operation sort of JAX has no rule"):
        converted(lambda x: (jnp.sort(x),), dict(x=("n", np.float32)), ["y"])


def small(name):
    """A published model with as little as its kind needs, with random parameters."""
    model = getattr(maskclippp.MaskCLIPppConfig, name)(3)
    fields = {f.name for f in dataclasses.fields(model.image)}
    changes = dict(depth=3, depths=(1, 1, 1, 1), widths=(8, 16, 24, 32))
    if {"width", "num_heads"} <= fields:
        changes |= dict(num_heads=2, width=model.image.width // model.image.num_heads * 2)
    image = dataclasses.replace(
        model.image, **{k: v for k, v in changes.items() if k in fields})
    model = dataclasses.replace(model, image=image)
    _, shapes = parameters.abstract(lambda: maskclippp.MaskCLIPpp(model, rngs=parameters.Keys(0)))
    rng = np.random.default_rng(0)

    def draw(shape):
        deviation = 0.5 / np.sqrt(np.prod(shape.shape[:-1]) if len(shape.shape) > 1 else 4)
        return (deviation * rng.standard_normal(shape.shape)).astype(np.float32)

    leaves = {path: draw(s) for path, s in parameters.flatten(shapes).items()
              if not path.startswith("text/")}
    # Variances of batch norms are positive.
    return model, parameters.unflatten(
        {path: np.abs(x) if "var" in path else x for path, x in leaves.items()})


SLOW = ("eva02_b16", "eva01_g14_plus", "rn50x16", "siglip2_b16_256", "tipsv2_l14",
        "pe_core_l14_336", "dinotxt_l16")


@pytest.mark.parametrize("name", ["convnext_base_w_320", *(
    pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_every_kind_of_encoder_gives_the_same_numbers(name, rng, tmp_path):
    model, params = small(name)
    cell, previous, wishes = model.image.patch_size, {}, exporting.Wishes()

    def check(program):
        exporting._write_program(tmp_path, program, wishes)
        found = exporting._check(tmp_path, program, program, wishes, rng, previous)
        assert found.difference < 1e-5

    check(programs.encoder(model, params, (2 * cell, 3 * cell), 2 * cell))
    text = rng.standard_normal((8, 3, previous["embeddings"].shape[-1])).astype(np.float32)
    text /= np.linalg.norm(text, axis=-1, keepdims=True)
    names = inference.Names(text, np.array([0, 0, 1, 2, 3, 4, 8, 8], np.int32))
    synonyms = exporting.synonyms_of(names.synonym_class[:6], 5)
    names = inference.make_folder(model)(params, names)
    check(programs.classifier(model, params, names, synonyms, tokens=[6]))
    assert np.ptp(previous["scores"]) > 1e-3  # classes are told apart
    assert previous["scores"].shape == (2, 5, 5)
    for canvas in ((cell, cell), (cell, 3 * cell)):  # of one row, which is a strip to most towers
        check(programs.encoder(model, params, canvas, 2 * cell))
