"""Embeddings of names by a frozen text tower, kept on disk: they are made once.

A file's name is a hash of everything its numbers depend on, so it is never out of date; the folder
may be deleted at any time.
"""

import hashlib
import io
import pathlib
import typing
import zipfile

import jax
import numpy as np
from absl import logging

from maskclippp_jax import params as parameters
from maskclippp_jax.models import layers, prefix_trees, siglip, similarity, text, tips, vit
from maskclippp_jax.runtime import storage

FOLDER = ".text_embeddings"  # in the folder of the data sets

# Their code decides on the embeddings, beside weights and token ids.
_CODE = (text, prefix_trees, siglip, tips, vit, layers, similarity)


def key_of(config: typing.Any, params: parameters.Tree, token_ids: np.ndarray) -> str:
    """A hash of what the embeddings depend on.

    Args:
      config: sizes of the text tower.
      params: its weights, on the host; their content counts, not where they come from.
      token_ids: [S, T, X] int32: what became of vocabulary, templates and tokenizer.

    Returns:
      32 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=16)

    def add(*values):
        for value in values:
            digest.update(value if isinstance(value, bytes) else repr(value).encode() + b"\0")

    add(config, jax.__version__, jax.default_backend(), jax.config.jax_default_matmul_precision)
    add(*(pathlib.Path(module.__file__).read_bytes() for module in _CODE))
    for leaf in parameters.contents(dict(params, token_ids=token_ids)):
        add(*leaf)
    return digest.hexdigest()


def load_or_make(folder: str, key: str, shape: tuple[int, int],
                 make: typing.Callable[[], np.ndarray]) -> np.ndarray:
    """The embeddings of a key: read, or made and kept.

    A damaged file is made anew, a folder that cannot be written keeps nothing; a line of the log
    says so.

    Args:
      folder: made if it is not there.
      key: of `key_of`.
      shape: [S, T] of the token ids.
      make: gives the embeddings, [S, T, E].
    """
    file = pathlib.Path(folder) / f"{key}.npz"
    if file.exists():
        try:
            return _read(file, shape)
        except Exception as error:  # of zipfile, or of numpy's reading of a header: anything
            logging.warning("the text embeddings in %s are damaged (%s); making them anew", file,
                            error)
    embeddings = make()
    content = io.BytesIO()
    np.savez(content, embeddings=embeddings)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        storage.write(file, content.getvalue())
    except OSError as error:
        logging.warning("text embeddings are not kept in %s (%s)", folder, error.strerror)
    return embeddings


def _read(file: pathlib.Path, shape: tuple[int, int]) -> np.ndarray:
    """Raises ValueError and others where a byte differs from what was written."""
    with zipfile.ZipFile(file) as parts:
        data = parts.read("embeddings.npy")  # compares its checksum
    embeddings = np.load(io.BytesIO(data))
    if embeddings.ndim != 3 or embeddings.shape[:2] != tuple(shape):
        raise ValueError(f"shape {embeddings.shape}, wanted {tuple(shape)} and channels")
    if not np.isfinite(embeddings).all():
        raise ValueError("it holds NaN or infinity")
    return embeddings
