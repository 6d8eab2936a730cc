"""What each kind of stored case compares; one function a kind, see `parity`."""
