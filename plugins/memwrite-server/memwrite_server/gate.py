"""How many requests to models may be under way: a bound for all tenants together, and one for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from memwrite_server.errors import ApiError


class Gate:
    """Lets requests in up to two bounds, and sends the others away; for one thread.

    Args:
        most: requests at once.
        each: of one tenant.
    """

    def __init__(self, most: int, each: int) -> None:
        self._most, self._each = most, each
        self._under_way: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._under_way.total()

    @contextmanager
    def enter(self, tenant: str) -> Iterator[None]:
        """Be under way within a block.

        Raises:
            ApiError: there are too many, with the seconds after which to try again.
        """
        if self._under_way[tenant] >= self._each:
            raise ApiError(
                429,
                f"{self._each} of your requests are under way, which is as many as one tenant may have: try again",
                "too_many_requests",
                headers={"Retry-After": "1"},
            )
        if len(self) >= self._most:
            raise ApiError(
                503,
                f"the server is busy with {self._most} requests: try again",
                "busy",
                headers={"Retry-After": "1"},
            )
        self._under_way[tenant] += 1
        try:
            yield
        finally:
            self._under_way[tenant] -= 1
            if not self._under_way[tenant]:
                del self._under_way[tenant]
