"""Checkpoints: parts of a network that are computed again when autograd goes back through them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from torch.autograd.graph import disable_saved_tensors_hooks

from pytest_triguard.errors import ModelError


@contextmanager
def refused(purpose: str) -> Iterator[None]:
    """Refuse a network that computes a part of itself again on the way back.

    What stands in for its operators while it goes forward in the block does not stand in for them
    by then, so that autograd would mix numbers of the one with derivatives of the other.

    Args:
        purpose: What needs the network to be computed once, for the message.

    Raises:
        ModelError: If the network has such a part and is called in the block.
    """
    message = (
        f"{purpose} needs a network that computes each of its parts once, but this one has hooks "
        "on what autograd saves, as torch.utils.checkpoint has, to compute a part of it again; "
        "turn them off"
    )
    with ExitStack() as stack:
        # Hooks of somebody else, within which the network is called, are no part of it.
        with suppress(RuntimeError):
            stack.enter_context(disable_saved_tensors_hooks(message))
        try:
            yield
        except RuntimeError as error:
            if message not in str(error):
                raise
            raise ModelError(message) from error
