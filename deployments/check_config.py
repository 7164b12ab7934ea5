"""What can be said of a configuration before anything starts: `dflash check-config FILE`, and the builder's check."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from deployments.settings import Settings, SettingsError, parse_settings
from deployments.user_config import check_user_config
from dflash_core.errors import DFlashError
from dflash_core.models.checkpoints import TargetConfig, check_pair, resolve_checkpoint
from dflash_core.models.drafter_config import DrafterConfig

IMPORT_PATH = "deployments:app"


@dataclass(frozen=True, slots=True)
class CheckedApplication:
    """An application of a config file that passed, and what to know about it."""

    name: str
    settings: Settings
    notes: tuple[str, ...]


def check_config(path: Path) -> list[CheckedApplication]:
    """Checks a file for `serve run FILE` or `serve deploy FILE`: Ray Serve's schema, our settings, the pair.

    Raises `SettingsError` with one line that says where and what.
    """
    from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    try:
        config = ServeDeploySchema.model_validate(raw)
    except ValidationError as error:
        raise SettingsError(f"{path}: {_first_line(error)}") from None
    _refuse_unknown(path, raw, ServeDeploySchema)
    ours = [application for application in config.applications if application.import_path == IMPORT_PATH]
    if not ours:
        raise SettingsError(f"{path}: no application has import_path {IMPORT_PATH!r}")
    for application in raw["applications"]:
        _refuse_unknown(path, application, ServeApplicationSchema)
    checked = []
    for application in ours:
        try:
            settings = parse_settings(application.args)
            check_models(settings)
            for deployment in application.deployments:
                if "user_config" in deployment.model_fields_set:
                    check_user_config(settings, deployment.name, deployment.user_config)
        except SettingsError as error:
            raise SettingsError(f"{path}: application {application.name!r}: {error}", param=error.param) from None
        checked.append(CheckedApplication(application.name, settings, tuple(_notes(settings, config.grpc_options))))
    return checked


def _refuse_unknown(path: Path, raw: dict[str, Any], schema: type[BaseModel]) -> None:
    """Ray Serve passes over keys that it does not know."""
    for key in raw:
        if key not in schema.model_fields:
            (nearest,) = difflib.get_close_matches(str(key), schema.model_fields, n=1, cutoff=0.0)
            raise SettingsError(f"{path}: unknown key {key!r}; did you mean {nearest!r}?", param=str(key))


def check_models(settings: Settings, must_be_here: bool = False) -> None:
    """Compares drafter and target where both configs are on this machine; other machines may hold those that are not.

    With `must_be_here` a folder that does not exist is an error, too. Raises `SettingsError`.
    """
    target = _local_folder("target.model", settings.target.model, must_be_here)
    drafter = _local_folder("drafter.model", settings.drafter.model, must_be_here) if settings.uses_drafter else None
    try:
        target_config = None if target is None else TargetConfig.load(target)
        drafter_config = None if drafter is None else DrafterConfig.load(drafter)
        if target_config is not None and drafter_config is not None:
            check_pair(target_config, drafter_config)
    except DFlashError as error:
        names = f"target={settings.target.model}" + (f" drafter={settings.drafter.model}" if drafter else "")
        raise SettingsError(f"{names}: {error.message}") from None


def _local_folder(key: str, name: str, must_be_here: bool) -> Path | None:
    """The checkpoint's folder, or None for one that is not on this machine. Never downloads."""
    if name.startswith("embedded:") or Path(name).expanduser().is_dir():
        try:
            return resolve_checkpoint(name)
        except DFlashError as error:
            raise SettingsError(f"{key}: {error.message}", param=key) from None
    if name.startswith(("/", ".", "~")):
        if must_be_here:
            raise SettingsError(f"{key}: no checkpoint at {name}: the folder does not exist", param=key)
        return None
    from huggingface_hub import try_to_load_from_cache

    try:
        config = try_to_load_from_cache(name, "config.json")
    except ValueError as error:  # no such name can exist
        raise SettingsError(f"{key}: {str(error).splitlines()[0]}", param=key) from None
    return Path(config).parent if isinstance(config, str) else None


def _notes(settings: Settings, grpc_options: Any) -> list[str]:
    """What is not wrong but may surprise."""
    from deployments.grpc_api import SERVICER_FUNCTIONS

    notes = []
    missing = [name for name in SERVICER_FUNCTIONS if name not in grpc_options.grpc_servicer_functions]
    if settings.grpc_port and missing:
        notes.append(f"no gRPC: grpc_options.grpc_servicer_functions lacks {', '.join(missing)}")
    for name in ("http_host", "http_port", "grpc_port"):
        if name in settings.model_fields_set and getattr(settings, name):
            notes.append(f"args.{name} has no effect in a file: Ray Serve reads http_options and grpc_options")
    return notes


def _first_line(error: ValidationError) -> str:
    detail = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in detail["loc"])
    return f"{place}: {detail['msg']}, got {detail['input']!r}" if place else detail["msg"]
