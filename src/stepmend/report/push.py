"""A restored checkpoint on the hub: one commit of the folder that ``--export`` writes. Nothing here ever shows or keeps a token."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from stepmend.records import InputError
from stepmend.report.card import Parent, licence_of

ENDPOINT = "HF_ENDPOINT"
"""The variable of the environment that names another hub, as the hub's own client reads it."""
KNOWN = {401: "the token is not valid", 403: "the token may not write there"}
"""What a status of the hub means here."""


class Hub:
    """The hub, as the user is logged in there (``hf auth login``, or ``HF_TOKEN`` in the environment)."""

    def __init__(self, name: str) -> None:
        """``name``: of the model repository, OWNER/NAME, or NAME for the user's own.

        Raises InputError where that is no name of one, or nobody is logged in: before any work.
        """
        from huggingface_hub import HfApi, get_token
        from huggingface_hub.utils import HFValidationError, validate_repo_id

        try:
            validate_repo_id(name)
        except HFValidationError:
            raise InputError(f"push: {name[:120]!r} is not a hub name; use OWNER/NAME, of letters, digits, -, _ and .") from None
        self._token = get_token()
        if not self._token:
            raise InputError("push: nobody is logged in to the hub: run 'hf auth login', or set HF_TOKEN in the environment")
        self.name, self._api = name, HfApi(endpoint=os.environ.get(ENDPOINT) or None, token=self._token)

    def completed(self, parent: Parent) -> Parent:
        """What the hub knows of the full-precision model beside what is known already: the licence on its card."""
        if parent.licence or not parent.name:
            return parent
        try:
            card = self._api.model_info(parent.name).card_data
        except Exception:  # the card does without: the client raises many kinds, and pushing will say what is the matter
            return parent
        return replace(parent, licence=licence_of(card.to_dict() if card else {}))

    def push(self, folder: Path, *, private: bool) -> str:
        """Make the repository where it is not there yet, private or not, and commit the folder's files; returns the commit's address.

        Raises InputError where the hub refuses or cannot be reached: then the repository is as it was, or empty.
        """
        try:
            repository = self._api.create_repo(self.name, private=private, exist_ok=True).repo_id
            message = "Restored checkpoint, model card and evaluation results, by stepmend"
            return str(self._api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message).commit_url)
        except Exception as error:  # the client raises many kinds: HTTP, network, validation of the card
            raise InputError(f"push: {self.name}: {self._reason(error)}; nothing is lost, the same command pushes again") from None

    def _reason(self, error: Exception) -> str:
        """What went wrong, in few words and without the token, wherever it is repeated."""
        status = getattr(getattr(error, "response", None), "status_code", None)
        said: Any = getattr(error, "server_message", None) or str(error) or type(error).__name__
        first = next((line.strip().rstrip(".") for line in str(said).splitlines() if line.strip()), "")
        parts = f"HTTP {status}" if status else "", KNOWN.get(status or 0, ""), first
        return ": ".join(filter(None, parts)).replace(self._token or "\0", "***")
