"""What huggingface_hub and its HTTP client raise, in sentences of ours."""

from __future__ import annotations

from typing import NoReturn

__all__ = ["raise_refusal", "refusals"]

_LOG_IN = "Log in (hf auth login) or set HF_TOKEN."


def refusals() -> tuple[type[Exception], ...]:
    """The classes: the hub's own, and those of its HTTP client, which differ between versions.

    HfHubHTTPError derives from the client's HTTPError, as what the client raises does.
    """
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled

    client = tuple(
        base
        for base in HfHubHTTPError.__bases__
        if base.__module__.partition(".")[0] not in ("builtins", "huggingface_hub")
    )
    return (*client, HfHubHTTPError, EntryNotFoundError, OfflineModeIsEnabled)


def raise_refusal(error: Exception, operation: str, hub_id: str) -> NoReturn:
    """Raises what the error means for the caller, in a sentence that says what to do."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError):
        # Said of the cache where a server's answer is the reason.
        cause = error.__cause__
        error = cause if isinstance(cause, errors.HfHubHTTPError) else error
    what = f"{operation}: {hub_id}:"
    if isinstance(error, errors.GatedRepoError):
        raise PermissionError(
            f"{what} the hub gives it only to those who accepted its terms. Accept them on the "
            f"model's page. {_LOG_IN}"
        ) from error
    if isinstance(error, errors.RevisionNotFoundError):
        raise FileNotFoundError(
            f"{what} the hub has the model, but no such revision. Name a branch, tag or commit."
        ) from error
    if isinstance(error, errors.RepositoryNotFoundError):
        raise FileNotFoundError(
            f"{what} there is no such folder here, and no such model on the hub, or it is private. "
            f"Check the name. {_LOG_IN}"
        ) from error
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        _raise_not_cached(error, what)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        raise PermissionError(f"{what} the hub refuses (HTTP {status}). {_LOG_IN}") from error
    if status is not None:
        raise OSError(f"{what} the hub failed (HTTP {status}). Try again later.") from error
    raise ConnectionError(
        f"{what} the connection to the hub failed ({type(error).__name__}: {error}). Try again; "
        "what has been fetched is kept."
    ) from error


def _raise_not_cached(error: Exception, what: str) -> NoReturn:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise FileNotFoundError(
            f"{what} is neither a folder here nor in the cache, and HF_HUB_OFFLINE keeps from "
            "fetching it. Unset it."
        ) from error
    raise ConnectionError(
        f"{what} is neither a folder here nor in the cache, and the hub cannot be reached "
        f"({constants.ENDPOINT}). Check the name and the network."
    ) from error
