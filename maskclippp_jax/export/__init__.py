"""A model as files that run without this package: ONNX, or StableHLO of `jax.export`."""
