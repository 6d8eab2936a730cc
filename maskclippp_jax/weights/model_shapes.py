"""Shapes of the parameters of a model, to which what is read must fit."""

import typing

import jax
import jax.numpy as jnp

from maskclippp_jax import params as parameters
from maskclippp_jax.runtime import texts


def of(config: typing.Any, abstract: typing.Callable[[], tuple[typing.Callable, parameters.Tree]]
       ) -> parameters.Tree:
    """The nested dict of `jax.ShapeDtypeStruct`, from the disk if it is kept there (`texts`).

    Args:
      config: sizes of the model, all that its parameters depend on.
      abstract: what `params.abstract` gives of the model.
    """
    found = texts.load_or_make_value(("shapes", config), lambda: {
        path: (x.shape, x.dtype.name) for path, x in parameters.flatten(abstract()[1]).items()})
    return parameters.unflatten({path: jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))
                                 for path, (shape, dtype) in found.items()})
