"""A bucket for tests: an emulator of Google Cloud Storage in a thread of this process."""

import contextlib
import os
import socket
import typing

import fsspec
import pytest
from gcp_storage_emulator import server

NAME = "bucket"


@contextlib.contextmanager
def emulated(home) -> typing.Iterator[fsspec.AbstractFileSystem]:
    """gs://bucket, for this process and those it starts; their home, with the cache, is `home`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    address = f"http://localhost:{port}"
    with pytest.MonkeyPatch.context() as patch, server.create_server(
            "localhost", port, in_memory=True, default_bucket=NAME):
        for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
            patch.setenv(name, address)
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
        patch.setenv("HOME", os.fspath(home))
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # as `storage` sets it
        yield fsspec.filesystem("gcs", use_listings_cache=False, skip_instance_cache=True)


def allow(patch: pytest.MonkeyPatch, *rights: str) -> None:
    """From now on the account has these rights only, as far as it is asked for them."""
    for pattern, methods in server.HANDLERS:
        if "testPermissions" in pattern:
            patch.setitem(methods, server.GET, lambda request, response, *_, **__: response.json(
                dict(permissions=rights)))
