"""Upload an exported folder to a dataset repository on the Hugging Face Hub, or on any server that speaks its API."""

from __future__ import annotations

from pathlib import Path

from ..catalogs.errors import DistdataError
from .export_hf import CARD, DATA_FOLDER, MARKER
from .export_webdataset import METADATA_FOLDER

_REPLACED = [f"{DATA_FOLDER}/*.parquet", f"{DATA_FOLDER}/*.tar", f"{METADATA_FOLDER}/*.parquet"]
"""What an earlier push left and this one has not: with another number of files, both would be loaded."""


def push_to_hub(
    out: Path, repo_id: str, *, endpoint: str | None = None, token: str | None = None, private: bool = True
) -> str:
    """Upload the export in `out` to the dataset repository `repo_id`, made if it is missing; return its address.

    The data files of an earlier push are replaced; other files in the repository stay. `endpoint` None is the
    Hub (or HF_ENDPOINT), `token` None the one that ``hf auth login`` stored (or HF_TOKEN). A repository that
    exists keeps its visibility whatever `private` says.

    Raises:
        DistdataError: `out` is no export, the name is malformed, no token or not enough rights, no answer.
    """
    if not (out / MARKER).is_file() or not (out / CARD).is_file():
        raise DistdataError(f"{out}: is no export. Write one first: distdata export hf {out}")
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint, token=token)
    try:
        url = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            repo_type="dataset",
            folder_path=out,
            commit_message="Export by distdata",
            ignore_patterns=[MARKER],
            delete_patterns=_REPLACED,
        )
    except Exception as e:
        reason = _reason(e, api.endpoint)
        if reason is None:
            raise
        raise DistdataError(f"push of {out} to {repo_id}: {reason}") from None
    return str(url)


def _reason(e: Exception, endpoint: str) -> str | None:
    """Say what went wrong and what to do; None for what is no fault of the name, the rights or the network."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if isinstance(e, RuntimeError) and isinstance(e.__cause__, Exception):
        e = e.__cause__  # how a failed upload of one file arrives
    if isinstance(e, HFValidationError):
        return f"this is no repository name ({e}). Write it as ORG/NAME."
    if isinstance(e, HfHubHTTPError):
        return f"{endpoint} says: {_refusal(e)}"
    if isinstance(e, ValueError):
        return f"{endpoint} refused it: {e}"
    if isinstance(e, HfHubHTTPError.__bases__):  # its HTTP library's own error, whichever that is, and OSError
        return f"no answer from {endpoint} ({e}). The export is complete; push again when the network is back."
    return None


def _refusal(e: Exception) -> str:
    """Return what the server said, its status and what that means for the user."""
    response = getattr(e, "response", None)
    status = response.status_code if response is not None else None
    said = (getattr(e, "server_message", None) or str(e).strip().splitlines()[0]).rstrip(".")
    advice = {
        401: "Log in with `hf auth login`, or set HF_TOKEN to a token with write access.",
        403: "The token may not write there: use one with write access to that organisation, or another name.",
        404: "There is no such organisation, or the token can't see it: check the name.",
        413: "A file is too large for this server.",
        429: "Too many requests: wait a few minutes and run the same command again.",
    }.get(status or 0, "Run the same command again.")
    return f"{said} (HTTP {status}). {advice}"
