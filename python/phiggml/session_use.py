"""Who uses a session: one call at a time, and one stream until the next call."""

from __future__ import annotations

from phiggml import _core
from phiggml.errors import SessionError
from phiggml.model import Model

__all__ = ["UsedSession"]


class UsedSession:
    """The part of Session that its other parts share."""

    _core: _core.session.Session
    _model: Model
    _use: int
    _n_ahead: int

    def _begin(self) -> int:
        """The session is used for something: a stream that was not read to its end has ended.

        Returns:
            The number of this use.

        Raises:
            SessionError: the session is closed or used by another thread.
        """
        self._core.allow()
        self._use += 1
        self._hand_back()
        return self._use

    def _hand_back(self) -> None:
        """Forgets the guesses in sequence 0 that the answer has not come to."""
        n_ahead, self._n_ahead = self._n_ahead, 0
        if n_ahead > 0:
            self._core.truncate(len(self._core.tokens(0)) - n_ahead, 0)

    def _require_no_other_use(self, use: int) -> None:
        if self._use != use:
            raise SessionError(
                "stream: the session was used for something else meanwhile. Read a stream to its "
                "end first, or make a second Session."
            )
