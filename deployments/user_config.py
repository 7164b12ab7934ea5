"""`user_config`: settings of one pool that `serve deploy` changes while the other pools run on.

deployments:
  - name: Target
    user_config: {max_rows: 2048, restarted_at: "2026-11-28 10:00"}

Ray Serve hands it to a pool's replicas one after the other (`reconfigure`), and each starts anew in its process: it
drains, frees its model and loads it again with the new settings.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from deployments.pools import ScaledPoolSettings
from deployments.settings import (
    DrafterPoolSettings,
    ModelPoolSettings,
    RouterPoolSettings,
    Settings,
    SettingsError,
    TargetPoolSettings,
    parse_settings,
)

# What a replica's health check says before `reconfigure`: with `user_config: null` Ray Serve never calls it.
NOT_STARTED = "not started: it starts when Ray Serve hands it its user_config, which must not be null"
# Changes nothing: another value of it starts a pool anew with the settings that it has.
RESTARTED_AT = "restarted_at"
# By deployment, the section of the settings whose names its user_config takes.
_SECTIONS: Mapping[str, type[ScaledPoolSettings]] = {
    "Target": TargetPoolSettings,
    "Drafter": DrafterPoolSettings,
    "Router": RouterPoolSettings,
}
# Where replicas run and how many, which is Ray Serve's to know; the models and how long to wait for a target, which
# other pools must know as well.
_FIXED = {"tensor_parallel", "failover_timeout_s", *ModelPoolSettings.model_fields}.union(
    *(section.scaling_fields for section in _SECTIONS.values())
)

_Pool = TypeVar("_Pool", bound=ScaledPoolSettings)


def with_user_config(settings: _Pool, user_config: Any) -> _Pool:
    """The pool's settings with those of `user_config` in place of its own.

    Raises `SettingsError` for names that the pool does not have or that only `args` may set, and for wrong values.
    """
    (deployment,) = [name for name, section in _SECTIONS.items() if isinstance(settings, section)]
    place = f"user_config of {deployment}"
    if not isinstance(user_config, Mapping):
        raise SettingsError(f"{place} must hold settings, got {user_config!r}", param="user_config")
    changes = {name: value for name, value in user_config.items() if name != RESTARTED_AT}
    for name in changes:
        if name in _FIXED:
            raise SettingsError(f"{place}: {name!r} does not concern this pool alone: set it in args", param=name)
    section = deployment.lower()
    try:
        parsed = parse_settings({section: settings.model_dump(exclude_unset=True) | changes})
    except SettingsError as error:
        raise SettingsError(f"{place}: {error}", param=error.param) from None
    changed: _Pool = getattr(parsed, section)
    return changed


class ConfigInUse:
    """The `user_config` that a replica runs with.

    Ray Serve hands a replica the same one again when it gets another rank, as it may when one of its pool is gone: then
    it goes on as it is.
    """

    def __init__(self) -> None:
        self._config: Any = None  # None while nothing runs
        self._turn = asyncio.Lock()

    async def change(self, settings: _Pool, user_config: Any, start_anew: Callable[[_Pool], Awaitable[None]]) -> None:
        """Starts anew with what `user_config` makes of `settings`, unless that runs already.

        Raises `SettingsError` for one that is wrong; what runs goes on then, too.
        """
        async with self._turn:
            if self._config is not None and user_config == self._config:
                return
            changed = with_user_config(settings, user_config)
            self._config = None
            await start_anew(changed)
            self._config = user_config


def check_user_config(settings: Settings, deployment: str, user_config: Any) -> None:
    """Raises `SettingsError` for what `with_user_config` would refuse, and where the deployment takes none."""
    if deployment not in _SECTIONS:
        takers = ", ".join(_SECTIONS)
        raise SettingsError(f"deployment {deployment!r} takes no user_config, {takers} do", param="user_config")
    with_user_config(getattr(settings, deployment.lower()), user_config)
