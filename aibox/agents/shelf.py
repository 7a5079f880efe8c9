"""Installed skills, a folder a tenant, each pinned to the digest that it had when somebody installed it.

A pinned skill that is not what was installed is IntegrityError, whoever changed it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import uuid
from pathlib import Path

from aibox.agents.skills import Skill, examine, load
from aibox.errors import ConfigError, IntegrityError, StoreError
from aibox.types import Scope

PINS = "pins.json"


class Shelf:
    """Skills under `folder`, by tenant. What one tenant installed is not there for another."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def install(self, source: str | Path, *, scope: Scope, replace: bool = False) -> Skill:
        """Validate a skill, copy it and pin its digest. Raises ConfigError, also when another of its name is there."""
        skill = load(source)
        place, pins = self._place(scope), self.pins(scope=scope)
        known = pins.get(skill.name)
        if known is not None and known != skill.digest and not replace:
            raise ConfigError(
                f"another skill {skill.name} is installed", hint="look at the difference, then install with --replace"
            )
        fresh, target = place / f".{uuid.uuid4().hex}", place / skill.name
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in (skill.manifest, *skill.resources):
                copy = fresh / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(skill.folder / name, copy)
            if target.exists():
                shutil.rmtree(target)
            fresh.rename(target)
            self._pin({**pins, skill.name: skill.digest}, place)
        except OSError as error:
            raise StoreError(f"the skill could not be installed in {place}: {error.strerror}") from None
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        return load(target)

    def skills(self, *, scope: Scope) -> tuple[Skill, ...]:
        """The tenant's skills, each held against its pin. Raises IntegrityError for one that was changed."""
        found = []
        for name, digest in sorted(self.pins(scope=scope).items()):
            faults, skill = examine(self._place(scope) / name)
            if skill is None or skill.digest != digest:
                raise IntegrityError(
                    f"the skill {name} of {scope.tenant} is not the one that was installed: "
                    f"{'; '.join(faults) or 'its digest is another'}",
                    hint="look at what changed, then install it again",
                )
            found.append(dataclasses.replace(skill, trusted=True))
        return tuple(found)

    def pins(self, *, scope: Scope) -> dict[str, str]:
        """Name to digest, of what is installed."""
        path = self._place(scope) / PINS
        try:
            pins: dict[str, str] = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise StoreError(f"the pins in {path} cannot be read: {error}") from None
        return pins

    def _place(self, scope: Scope) -> Path:
        # A tenant's name is of letters, digits, dots and hyphens, and begins with a letter or digit: a folder's name.
        return self.folder / scope.tenant

    def _pin(self, pins: dict[str, str], place: Path) -> None:
        fresh = place / f".{PINS}.{uuid.uuid4().hex}"
        with fresh.open("w", encoding="utf-8") as file:
            json.dump(pins, file, indent=1, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(place / PINS)

    def __repr__(self) -> str:
        return f"Shelf({str(self.folder)!r})"
