"""Two summaries compared."""

from typing import Any


def changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """The numbers that differ, by their path (`roles.user`): before, after, and the change in percent.

    A number that only one side has counts as 0 on the other; a change from 0 has no percentage.
    """
    old, new = dict(_numbers(before)), dict(_numbers(after))
    changed = {}
    for path in {**old, **new}:
        one, two = old.get(path, 0), new.get(path, 0)
        if one != two:
            percent = round(100 * (two - one) / one, 2) if one else None
            changed[path] = {"before": one, "after": two, "percent": percent}
    return {"changed": changed, "same": len({**old, **new}) - len(changed)}


def _numbers(value: dict[str, Any], path: str = "") -> list[tuple[str, int | float]]:
    found: list[tuple[str, int | float]] = []
    for name, item in value.items():
        if isinstance(item, dict):
            found += _numbers(item, f"{path}{name}.")
        elif isinstance(item, int | float) and not isinstance(item, bool):
            found.append((path + name, item))
    return found
