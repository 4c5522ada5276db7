"""The device that a user names with `--device`, resolved in one place."""

from __future__ import annotations

import torch

from resnetlab.core.errors import UserError


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """Returns the device called `name`; "auto" is the GPU where there is one, else the CPU.

    Raises:
        UserError: `name` is no device, or this machine does not have it.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        known = "" if reason.startswith("Expected one of") else f" ({reason})"
        raise UserError(
            f"device {str(name)!r} cannot be used on this machine{known}. "
            "Expected auto, cpu, or an accelerator that torch sees here, such as cuda or cuda:1."
        ) from error
    return device
