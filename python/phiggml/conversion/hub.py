"""Checkpoints of the Hugging Face hub: the files that a conversion needs, in the hub's own cache.

Source: the hub's own client (huggingface_hub) lists and fetches; HF_ENDPOINT, HF_HOME, HF_TOKEN and
HF_HUB_OFFLINE mean here what they mean there.
"""

from __future__ import annotations

import importlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn

from phiggml.conversion.hub_download import Download, logged_as_ours, quiet_bar
from phiggml.conversion.hub_error import raise_refusal, refusals
from phiggml.conversion.jsonfile import LARGE_LIMIT, read_object
from phiggml.errors import FormatError, UnsupportedError
from phiggml.progress import Progress

__all__ = ["HubId", "LocalFolder", "Wanted", "local_folder", "parse_hub_id"]

_OWNER = r"[A-Za-z0-9](?:[\w.-]{0,94}\w)?"
_ID = re.compile(rf"(?P<model>{_OWNER}/{_OWNER})(?:@(?P<revision>[\w./-]{{1,200}}))?", re.ASCII)
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_WEIGHTS = re.compile(r"[\w.-]+\.safetensors")
_COMMIT = re.compile(r"[0-9a-f]{40,64}")
_CONFIG = "config.json"
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_TEXTS = frozenset(
    {
        "README.md",
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
        "config.json",
        "generation_config.json",
        "merges.txt",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
    }
)
_MORE_TEMPLATES = re.compile(r"additional_chat_templates/[\w.-]+\.jinja")


class Wanted(Enum):
    """Which files of a model are fetched."""

    CHECKPOINT = "checkpoint"
    HEADERS = "checkpoint, of its weights the headers only"
    ADAPTER = "adapter"
    CONFIG = "config.json"


@dataclass(frozen=True)
class HubId:
    """An id of the hub: `model` is "owner/name", `revision` a branch, tag or commit, or None."""

    model: str
    revision: str | None

    def __str__(self) -> str:
        return self.model if self.revision is None else f"{self.model}@{self.revision}"


@dataclass(frozen=True)
class LocalFolder:
    """Where the files lie; `model_id` is "owner/name" for those of the hub, else None."""

    path: Path
    model_id: str | None = None


def parse_hub_id(text: str) -> HubId | None:
    """ "microsoft/phi-2@main" -> HubId; None for what no id of the hub can be.

    Example:
        >>> parse_hub_id("microsoft/Phi-3.5-mini-instruct")
        HubId(model='microsoft/Phi-3.5-mini-instruct', revision=None)
        >>> parse_hub_id("./phi") is None
        True
    """
    found = _ID.fullmatch(text)
    if found is None or "--" in found["model"] or ".." in text:
        return None
    if found["model"].endswith(".git"):
        return None
    return HubId(found["model"], found["revision"])


@contextmanager
def local_folder(
    checkpoint: str | os.PathLike[str],
    *,
    operation: str,
    wanted: Wanted = Wanted.CHECKPOINT,
    progress: Callable[[Progress], object] | None = None,
) -> Iterator[LocalFolder]:
    """Gives the folder itself, or that of the files which an id of the hub stands for.

    Args:
        checkpoint: a folder, or a str "owner/name" or "owner/name@revision" where there is no file
            or folder of this name.
        operation: begins the sentences of errors.
        wanted: which files are fetched.
        progress: called with the bytes fetched, by the calling thread; what it raises ends it.

    Raises:
        FileNotFoundError: the hub has no such model or revision; or it is offline, and the cache
            does not have it.
        PermissionError: the hub wants its user to log in or to accept terms.
        ConnectionError: the hub cannot be reached, and the cache does not have it.
        OSError: the hub, the network or the disk failed.
        FormatError, UnsupportedError: the model lacks the files; or huggingface_hub is not
            installed.

    Cost:
        Files that are in the cache are not fetched again. Headers of weights take some 100 kB of
        each file and lie in a temporary folder, which goes with this context.
    """
    hub_id = parse_hub_id(checkpoint) if isinstance(checkpoint, str) else None
    if hub_id is None or os.path.lexists(checkpoint):
        yield LocalFolder(Path(checkpoint))
        return
    try:
        importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise UnsupportedError(
            f"{operation}: {hub_id}: there is no such folder, and models of the Hugging Face hub "
            "are fetched by huggingface_hub. Install it: pip install phiggml[hub]."
        ) from error
    with tempfile.TemporaryDirectory(prefix="phiggml-") as scratch:
        try:
            repository = _Repository(hub_id, operation)
            with logged_as_ours():
                folder = repository.fetch(wanted, Path(scratch), progress)
        except refusals() as error:
            raise_refusal(error, operation, str(hub_id))
        yield LocalFolder(folder, hub_id.model)


class _Repository:
    """One model on the hub."""

    def __init__(self, hub_id: HubId, operation: str) -> None:
        self._id = hub_id
        self._operation = operation

    def fetch(
        self, wanted: Wanted, scratch: Path, progress: Callable[[Progress], object] | None
    ) -> Path:
        """The folder with the wanted files."""
        from huggingface_hub import try_to_load_from_cache

        listed = self._list()
        if listed is None:
            return self._cached(wanted)
        commit, sizes = listed
        names = self._texts(wanted, sizes)
        download = Download(self._id.model, commit, sizes=sizes, progress=progress)
        # By the revision's own name, so that the cache knows what it stands for when offline.
        download.first(names[0], self._id.revision)
        folder = download.fetch(names)
        if wanted in (Wanted.CONFIG, Wanted.ADAPTER):
            return folder
        weights = self._weights(sizes, folder)
        if wanted is Wanted.CHECKPOINT:
            return download.fetch([*names, *weights])
        for name in names:
            (scratch / name).parent.mkdir(exist_ok=True)
            (scratch / name).symlink_to(folder / name)
        for name in weights:
            cached = try_to_load_from_cache(self._id.model, name, revision=commit)
            if isinstance(cached, str):
                (scratch / name).symlink_to(cached)
            else:
                download.header(name, scratch / name)
        return scratch

    def _list(self) -> tuple[str, dict[str, int]] | None:
        """The commit, and the sizes of its files; None where the hub cannot be asked."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        try:
            found = HfApi().model_info(
                self._id.model, revision=self._id.revision, files_metadata=True
            )
        except OfflineModeIsEnabled:
            return None
        except HfHubHTTPError:
            raise
        except UnicodeEncodeError:
            raise PermissionError(
                f"{self._operation}: {self._id}: the token for the hub holds characters that no "
                "token has. Log in again (hf auth login) or set HF_TOKEN anew."
            ) from None
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
            self._fail("the hub's list of its files is none", "Try again later.")
        except refusals():
            # No network: what is in the cache will do, as it does for transformers.
            return None
        sizes = {file.rfilename: file.size or 0 for file in found.siblings or ()}
        if not all(type(size) is int and 0 <= size < 1 << 62 for size in sizes.values()):
            self._fail("the hub gives a size that no file has", "Try again later.")
        if not isinstance(found.sha, str) or not _COMMIT.fullmatch(found.sha):
            self._fail("the hub gives no commit for it", "Try again later.")
        return found.sha, sizes

    def _cached(self, wanted: Wanted) -> Path:
        """The folder in the cache, whose index of weights will tell whether some are missing."""
        from huggingface_hub import snapshot_download

        adapter = wanted is Wanted.ADAPTER
        patterns = [*_ADAPTER, "README.md"] if adapter else [*sorted(_TEXTS), "model*.safetensors"]
        return Path(
            snapshot_download(
                self._id.model,
                revision=self._id.revision,
                local_files_only=True,
                allow_patterns=patterns if wanted is not Wanted.CONFIG else [_CONFIG],
                tqdm_class=quiet_bar(None),
            )
        )

    def _texts(self, wanted: Wanted, sizes: Mapping[str, int]) -> list[str]:
        """The files that are no weights of the model, the configuration first."""
        if wanted is Wanted.ADAPTER:
            for name in _ADAPTER:
                if name not in sizes:
                    self._fail(f"holds no {name}", "Give the id of an adapter that PEFT saved.")
            return [*_ADAPTER, *({"README.md"} & sizes.keys())]
        if _CONFIG not in sizes:
            self._fail(f"holds no {_CONFIG}", "Give the id of a checkpoint.")
        if wanted is Wanted.CONFIG:
            return [_CONFIG]
        names = sorted(n for n in sizes if n in _TEXTS or _MORE_TEMPLATES.fullmatch(n))
        return [_CONFIG, *(name for name in names if name != _CONFIG), *({_INDEX} & sizes.keys())]

    def _weights(self, sizes: Mapping[str, int], folder: Path) -> list[str]:
        """The files of weights that a conversion will open."""
        if _SINGLE in sizes:
            return [_SINGLE]
        if _INDEX in sizes:
            named = read_object(folder / _INDEX, limit=LARGE_LIMIT).get("weight_map")
            names = set(named.values()) if isinstance(named, dict) and _all_texts(named) else set()
            # What else is wrong with the index is told when it is opened.
            return sorted(n for n in names if _WEIGHTS.fullmatch(n) and n in sizes)
        shards = sorted(name for name in sizes if _SHARD.fullmatch(name))
        if not shards:
            raise UnsupportedError(
                f"{self._operation}: {self._id}: holds no model.safetensors and no shards of it. "
                "Other weights, such as pickles, are not loaded; look for a revision with "
                "safetensors."
            )
        return shards

    def _fail(self, what: str, remedy: str) -> NoReturn:
        raise FormatError(f"{self._operation}: {self._id}: {what}. {remedy}", path=str(self._id))


def _all_texts(named: Mapping[str, Any]) -> bool:
    return all(isinstance(value, str) for value in named.values())
