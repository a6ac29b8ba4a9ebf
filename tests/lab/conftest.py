from __future__ import annotations

import pytest

from chaos.lab.wire import missing

_REASON = missing()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _REASON and item.get_closest_marker("namespaces"):
            item.add_marker(pytest.mark.skip(reason=f"no lab here: {_REASON}"))
