"""What sessions do for programs that wait in an event loop."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from phiggml.answer import LogitsProcessor
from phiggml.chat import Message
from phiggml.completion import Chunk, Completion
from phiggml.grammar import Grammar
from phiggml.model import Tokens
from phiggml.prompt_lookup import PromptLookup
from phiggml.sampling import Sampling
from phiggml.session_writing import DEFAULT_SAMPLING, WritingSession
from phiggml.speculation import Draft

if TYPE_CHECKING:
    import asyncio  # else by who runs an event loop: it takes time, and cannot be imported at exit

__all__ = ["AsyncSession"]

_Result = TypeVar("_Result")


class AsyncSession(WritingSession):
    """The part of Session that answers while an event loop goes on."""

    async def agenerate(
        self,
        prompt: str | Tokens,
        *,
        max_tokens: int,
        sampling: Sampling = DEFAULT_SAMPLING,
        stop: str | Sequence[str] = (),
        grammar: Grammar | str | None = None,
        json_schema: Mapping[str, Any] | str | bool | None = None,
        logprobs: int | None = None,
        logits_processor: LogitsProcessor | None = None,
        draft: Draft | PromptLookup | None = None,
    ) -> Completion:
        """As `generate`, awaited; the event loop goes on meanwhile.

        A task that is cancelled cancels the answer, and waits for its call to end.

        Args:
            prompt, max_tokens, sampling, stop, grammar, json_schema, logprobs, logits_processor,
                draft: as for `generate`; logits_processor is called on another thread.

        Returns:
            Completion.

        Raises:
            InputError, UnsupportedError, SessionError: as `generate`.

        Cost:
            As `generate`, on a thread of the event loop's default executor.

        Example:
            >>> import asyncio
            >>> import phiggml as pg
            >>> async def answer():
            ...     with pg.Session("phi3-nano.gguf") as session:
            ...         return await session.agenerate("The child", max_tokens=3)
            >>> asyncio.run(answer()).finish_reason
            'length'
        """
        chunks = self.stream(
            prompt,
            max_tokens=max_tokens,
            sampling=sampling,
            stop=stop,
            grammar=grammar,
            json_schema=json_schema,
            logprobs=logprobs,
            logits_processor=logits_processor,
            draft=draft,
        )
        return await self._elsewhere(Completion.read, chunks)

    def astream(
        self,
        prompt: str | Tokens,
        *,
        max_tokens: int,
        sampling: Sampling = DEFAULT_SAMPLING,
        stop: str | Sequence[str] = (),
        grammar: Grammar | str | None = None,
        json_schema: Mapping[str, Any] | str | bool | None = None,
        logprobs: int | None = None,
        logits_processor: LogitsProcessor | None = None,
        draft: Draft | PromptLookup | None = None,
    ) -> AsyncGenerator[Chunk, None]:
        """As `stream`, for `async for`; the event loop goes on meanwhile.

        A task that is cancelled cancels the answer, and waits for its call to end.

        Args:
            prompt, max_tokens, sampling, stop, grammar, json_schema, logprobs, logits_processor,
                draft: as for `generate`; logits_processor is called on another thread.

        Returns:
            An asynchronous generator of Chunk; `aclose` ends the answer before its end.

        Raises:
            InputError, UnsupportedError, SessionError: as `stream`.

        Cost:
            As `stream`, on threads of the event loop's default executor.

        Example:
            >>> import asyncio
            >>> import phiggml as pg
            >>> async def count():
            ...     with pg.Session("phi3-nano.gguf") as session:
            ...         return len([c async for c in session.astream("The child", max_tokens=3)])
            >>> asyncio.run(count()) <= 3
            True
        """
        chunks = self.stream(
            prompt,
            max_tokens=max_tokens,
            sampling=sampling,
            stop=stop,
            grammar=grammar,
            json_schema=json_schema,
            logprobs=logprobs,
            logits_processor=logits_processor,
            draft=draft,
        )
        return self._awaited(chunks)

    async def achat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        max_tokens: int = 512,
        sampling: Sampling = DEFAULT_SAMPLING,
        stop: str | Sequence[str] = (),
        grammar: Grammar | str | None = None,
        json_schema: Mapping[str, Any] | str | bool | None = None,
        logprobs: int | None = None,
        logits_processor: LogitsProcessor | None = None,
        draft: Draft | PromptLookup | None = None,
    ) -> Completion:
        """As `chat`, awaited; the event loop goes on meanwhile.

        Args:
            messages, tools, variables, max_tokens, sampling, stop, grammar, json_schema, logprobs,
                logits_processor, draft: as for `chat`; logits_processor is called on another
                thread.

        Returns:
            Completion.

        Raises:
            UnsupportedError, InputError, FormatError, SessionError: as `chat`.

        Cost:
            As `agenerate`.
        """
        chunks = self.stream_chat(
            messages,
            tools=tools,
            variables=variables,
            max_tokens=max_tokens,
            sampling=sampling,
            stop=stop,
            grammar=grammar,
            json_schema=json_schema,
            logprobs=logprobs,
            logits_processor=logits_processor,
            draft=draft,
        )
        return await self._elsewhere(Completion.read, chunks)

    def astream_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        max_tokens: int = 512,
        sampling: Sampling = DEFAULT_SAMPLING,
        stop: str | Sequence[str] = (),
        grammar: Grammar | str | None = None,
        json_schema: Mapping[str, Any] | str | bool | None = None,
        logprobs: int | None = None,
        logits_processor: LogitsProcessor | None = None,
        draft: Draft | PromptLookup | None = None,
    ) -> AsyncGenerator[Chunk, None]:
        """As `stream_chat`, for `async for`; the event loop goes on meanwhile.

        Args:
            messages, tools, variables, max_tokens, sampling, stop, grammar, json_schema, logprobs,
                logits_processor, draft: as for `chat`; logits_processor is called on another
                thread.

        Returns:
            An asynchronous generator of Chunk; `aclose` ends the answer before its end.

        Raises:
            UnsupportedError, InputError, FormatError, SessionError: as `stream_chat`.

        Cost:
            As `astream`.
        """
        chunks = self.stream_chat(
            messages,
            tools=tools,
            variables=variables,
            max_tokens=max_tokens,
            sampling=sampling,
            stop=stop,
            grammar=grammar,
            json_schema=json_schema,
            logprobs=logprobs,
            logits_processor=logits_processor,
            draft=draft,
        )
        return self._awaited(chunks)

    async def _awaited(self, chunks: Iterator[Chunk]) -> AsyncGenerator[Chunk, None]:
        while (chunk := await self._elsewhere(next, chunks, None)) is not None:
            yield chunk

    async def _elsewhere(self, work: Callable[..., _Result], *arguments: Any) -> _Result:
        """Has another thread do a part of an answer; where the task is cancelled, it ends both."""
        import asyncio

        step = asyncio.get_running_loop().run_in_executor(None, work, *arguments)
        try:
            return await asyncio.shield(step)
        except asyncio.CancelledError:
            self.cancel()
            await _ended(step)
            raise


async def _ended(step: asyncio.Future[Any]) -> None:
    """Waits for a step whose result nobody wants, however often the task is cancelled again."""
    import asyncio

    while not step.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([step])
    if not step.cancelled():
        step.exception()
