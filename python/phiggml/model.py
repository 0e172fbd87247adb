"""Models: weights and vocabulary, placed on devices."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from phiggml import _core
from phiggml.chat import Message, render_chat, tools_in_place
from phiggml.chat_answer import MARKERS
from phiggml.errors import InputError, SessionError, UnsupportedError
from phiggml.gguf import GGUFFile
from phiggml.model_check import check_model
from phiggml.placement import Placement, placement_of
from phiggml.placement_search import settled
from phiggml.placement_settings import Offload, SessionSettings, core_model_settings
from phiggml.progress import Progress, ProgressCallback
from phiggml.runtime import forward_log

__all__ = ["Model"]

Tokens = Sequence[int] | npt.NDArray[np.integer[Any]]


class Model:
    """A GGUF model, loaded. Sessions share it; it may be used from many threads.

    Args:
        path: the GGUF file, or any part of a split one.
        n_gpu_layers: how many layers to hold on the devices, the last ones and the output, which
            counts as one; "all"; or "auto": as many as fit with the KV cache and the buffers of
            `session`, the experts of a mixture last; none without a GPU.
        devices: names from `phiggml.devices()` to offload to; None means all GPUs.
        tensor_split: the share of each of those devices; None divides by what may be taken.
        split_mode: "layer", "row", or "none" for the first device alone.
        tensor_overrides: pairs (regular expression over tensor names, device name); the first
            that matches decides. With [("ffn_.*_exps", "CPU")] experts stay on the CPU.
        memory: device name -> bytes that may be taken there, or a text such as "8GiB"; None means
            what is free but for 1 GiB, or an eighth of it where that is less. For "auto".
        session: the session to come, for "auto"; None means one with Session's defaults.
        use_mmap: map the file instead of reading it.
        use_mlock: keep the weights from being swapped out.
        progress: called with Progress(stage="load", done, total), in bytes.

    Raises:
        OSError: the file cannot be read.
        FormatError: it is no valid GGUF model, all its faults together; or llama.cpp refuses it.
        UnsupportedError: it is big-endian, or of GGUF version 1.
        InputError: a setting is wrong.
        DeviceError: a device asked for is absent, or has no room.

    Cost:
        Reads the file's header; with use_mmap weights on the CPU are read when first used, unless
        they are repacked for its vector units. The GIL is released; Ctrl-C ends the load.

    Source:
        llama_model_load_from_splits, on the very files that phiggml has open and has checked.

    Example:
        >>> import phiggml as pg
        >>> with pg.Model("phi3-nano.gguf") as model:
        ...     model.detokenize(model.tokenize("What is GGUF?")).strip()
        'What is GGUF?'
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        n_gpu_layers: int | Literal["auto", "all"] = "auto",
        devices: Sequence[str] | None = None,
        tensor_split: Sequence[float] | None = None,
        split_mode: Literal["none", "layer", "row"] = "layer",
        tensor_overrides: Sequence[tuple[str, str]] = (),
        memory: Mapping[str, int | str] | None = None,
        session: SessionSettings | None = None,
        use_mmap: bool = True,
        use_mlock: bool = False,
        progress: ProgressCallback | None = None,
    ) -> None:
        path = os.fsdecode(path)
        self._file = GGUFFile(path)
        self._core: _core.model.Model | None = None
        try:
            check_model(self._file, purpose="load")
            asked = Offload.checked(
                n_gpu_layers=n_gpu_layers,
                devices=devices,
                tensor_split=tensor_split,
                split_mode=split_mode,
                tensor_overrides=tensor_overrides,
                memory=memory,
            )
            chosen = settled(self._file, asked, session or SessionSettings())
            self._asked, self._n_gpu_layers = asked, chosen.n_gpu_layers or 0
            settings = core_model_settings(self._file, path, chosen)
            settings.use_mmap = bool(use_mmap) and _can_be_mapped(self._file)
            settings.use_mlock = bool(use_mlock)
            self._core = _load(
                settings, progress, sum(t.nbytes for t in self._file.tensors.values())
            )
        except BaseException:
            self._file.close()
            raise
        finally:
            forward_log()

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The file's metadata, decoded on access."""
        self._open()
        return self._file.metadata

    @property
    def n_vocab(self) -> int:
        """Tokens in the vocabulary, which is also the number of logits."""
        return self._open().n_vocab

    @property
    def n_ctx_train(self) -> int:
        """Tokens of context that the model was trained for."""
        return self._open().n_ctx_train

    @property
    def n_layer(self) -> int:
        """Layers of the model."""
        return self._open().n_layer

    @property
    def n_params(self) -> int:
        """Parameters of the model."""
        return self._open().n_params

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return self._open().n_bytes

    @property
    def description(self) -> str:
        """Architecture, size and type, as llama.cpp says them."""
        return self._open().description

    @property
    def placement(self) -> Placement:
        """Tensor name -> name of the device that holds it; and the bytes of weights there."""
        names = [device.name for device in self._asked.devices]
        found = _core.placement.of(self._open(), names)
        return placement_of(found, self._asked, self._n_gpu_layers)

    def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> npt.NDArray[np.int32]:
        """Turns text into token ids.

        Args:
            text: any text that UTF-8 can hold; NUL characters are text too.
            add_special: add the BOS and EOS tokens that the model asks for.
            parse_special: read control tokens such as <|end|> as such, not as text.

        Returns:
            int32[n].

        Raises:
            InputError: text is no string or holds lone surrogates.
            FormatError: the vocabulary cannot spell it.

        Cost:
            The GIL is released.
        """
        try:
            encoded = text.encode()
        except AttributeError:
            raise InputError(f"tokenize: text is {type(text).__name__}, not str.") from None
        except UnicodeEncodeError:
            raise InputError(
                "tokenize: text holds lone surrogates, which are no characters. "
                "Replace them: text.encode(errors='replace').decode()."
            ) from None
        return self._open().tokenize(encoded, add_special, parse_special)

    def detokenize(self, ids: Tokens, *, special: bool = False) -> str:
        """Turns token ids into text.

        Args:
            ids: int[n].
            special: spell out control tokens, which otherwise give nothing.

        Returns:
            The text; bytes that are no UTF-8 become U+FFFD.

        Raises:
            InputError: an id is no integer or not in the vocabulary.

        Cost:
            The GIL is released.
        """
        data = self._open().detokenize(token_array(ids, "detokenize"), special)
        return data.decode(errors="replace")

    def chat_prompt(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool | str = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Renders a chat with the file's own template.

        A template that looks for tools in the system message, as Phi-4-mini's does, finds them
        there (in one that says so briefly, if there is none), and the calls of earlier answers in
        their text.

        Args:
            messages: the turns, oldest first: {"role": "user", "content": "..."}.
            tools: JSON schemas of functions: {"type": "function", "function": {"name": ...}}, or
                the inner mapping alone.
            documents, add_generation_prompt, continue_final_message, variables: as for
                `render_chat`.

        Returns:
            The text of the chat, control tokens spelt out.

        Raises:
            UnsupportedError: the file has no chat template, or it has no place for tools.
            InputError, FormatError: as `render_chat`.
        """
        template = self.metadata.get("tokenizer.chat_template")
        if not isinstance(template, str):
            raise UnsupportedError(
                "chat: this model's file has no chat template. Use generate() with a prompt that "
                "you write yourself."
            )
        messages, tools = tools_in_place(template, messages, tools)
        return render_chat(
            template,
            messages,
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            special_tokens=self._special_tokens(),
            variables=variables,
        )

    def close(self) -> None:
        """Lets go of the weights, once the last Session on them is closed; again does nothing."""
        self._core = None
        self._file.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._core is None:
            return "<Model, closed>"
        return f"<Model {self._core.description}, {self._core.n_bytes / 2**20:.1f} MiB>"

    def _open(self) -> _core.model.Model:
        if self._core is None:
            raise SessionError("model: it is closed. Load it again.")
        return self._core

    def _special_tokens(self) -> dict[str, str]:
        names = {
            "bos": "bos_token",
            "eos": "eos_token",
            "unknown": "unk_token",
            "padding": "pad_token",
        }
        tokens = self.metadata.get("tokenizer.ggml.tokens", ())
        special = {}
        for key, name in names.items():
            token = self.metadata.get(f"tokenizer.ggml.{key}_token_id")
            if token is not None and 0 <= int(token) < len(tokens):
                special[name] = str(tokens[int(token)])
        return special


def marker_tokens(model: Model) -> frozenset[int]:
    """Control tokens that stand between an answer's parts; as text they would not be seen."""
    ids = [model.tokenize(marker, add_special=False, parse_special=True) for marker in MARKERS]
    is_control = model._open().is_control
    return frozenset(int(i[0]) for i in ids if len(i) == 1 and is_control(int(i[0])))


def token_array(ids: Tokens, operation: str) -> npt.NDArray[np.int32]:
    """ids as int32[n], after a check that no value changes on the way.

    Raises:
        InputError: they are no flat sequence of integers within int32.
    """
    array = np.asarray(ids)
    if array.size == 0:
        return np.empty(0, np.int32)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputError(
            f"{operation}: token ids are {array.dtype}{list(array.shape)}: they must be a flat "
            "sequence of integers."
        )
    if array.min() < 0 or array.max() > np.iinfo(np.int32).max:
        offender = int(array.min()) if array.min() < 0 else int(array.max())
        raise InputError(f"{operation}: token {offender} is in no vocabulary.")
    return np.ascontiguousarray(array, dtype=np.int32)


def _can_be_mapped(file: GGUFFile) -> bool:
    """Upstream asserts that mapped tensors lie at multiples of 32 bytes; others are read."""
    return all(tensor.offset % 32 == 0 for tensor in file.tensors.values())


def _load(
    settings: _core.model.ModelSettings, progress: ProgressCallback | None, n_bytes: int
) -> _core.model.Model:
    def report(done: int, total: int) -> None:
        if progress is not None and total:
            progress(Progress("load", n_bytes * done // total, n_bytes))

    return _core.model.load(settings, report if progress is not None else None)
