"""Brings a database to a version of the schema, as the owner of its tables, and gives the writing role its rights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from aibox.errors import ConfigError, MissingExtraError, StoreError
from aibox.postgres import VERSIONS, connect, driver, host, version

if TYPE_CHECKING:
    from alembic.config import Config

SCRIPTS = "aibox:migrations"
_SCHEMA, _, _TABLE = VERSIONS.partition(".")


def upgrade(url: str, *, role: str, revision: str = "head") -> None:
    """Make what is missing up to `revision`, all or nothing. Done again it changes nothing.

    `url` is the owner's; `role` is who writes. Raises StoreError; ConfigError for a role that owns the tables or passes
    row-level security by, and for a revision that this version does not know.
    """
    with _database(url, role=role) as (config, db):
        _refuse_unfit(db, role)
        _run(url, lambda command: command.upgrade(config, revision))
        # A role that comes later to a schema that is there gets its rights too.
        db.exec_driver_sql(f"GRANT USAGE ON SCHEMA {_SCHEMA} TO {quoted(role)}")
        db.exec_driver_sql(f"GRANT SELECT ON {VERSIONS} TO {quoted(role)}")


def downgrade(url: str, *, role: str, revision: str) -> None:
    """Take back what came after `revision`, with all that was kept in it. A log with entries is never dropped."""
    with _database(url, role=role) as (config, _):
        _run(url, lambda command: command.downgrade(config, revision))


def current(url: str) -> str | None:
    """The version that the database has; None where it has none. Also as the role that writes."""
    with connect(url) as db:
        try:
            return version(db)
        except driver().Error as error:
            raise StoreError(f"{host(url)}: {error}") from error


def revisions() -> list[tuple[str, str]]:
    """Every version, the oldest first, and what came with it."""
    script = _alembic().script.ScriptDirectory.from_config(_config())
    return [(one.revision, one.doc) for one in reversed([*script.walk_revisions()])]


def quoted(name: str) -> str:
    return f'"{name.replace(chr(34), chr(34) * 2)}"'


@contextmanager
def _database(url: str, *, role: str) -> Iterator[tuple[Config, Any]]:
    _alembic()
    import sqlalchemy

    # The connection is made as everywhere else, so a URL means the same here as for those who use the tables.
    def opened() -> Any:
        db = connect(url, client_side=False)
        db.autocommit = False
        return db

    engine = sqlalchemy.create_engine("postgresql+psycopg://", creator=opened, poolclass=sqlalchemy.NullPool)
    try:
        with engine.begin() as db:
            # Two who upgrade at once take turns; a lock of the transaction goes with it.
            db.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtextextended('aibox/schema', 0))")
            db.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {_SCHEMA}")
            config = _config()
            config.attributes.update(connection=db, role=role, version_table=_TABLE, version_table_schema=_SCHEMA)
            yield config, db
    except sqlalchemy.exc.DBAPIError as error:
        raise StoreError(f"the tables at {host(url)} could not be made: {error.orig}") from error


def _run(url: str, act: Callable[[Any], None]) -> None:
    alembic = _alembic()
    try:
        act(alembic.command)
    except alembic.util.CommandError as error:
        known = ", ".join(revision for revision, _ in revisions())
        raise ConfigError(f"{host(url)}: {error}", hint=f"this version knows {known}") from None


def _config() -> Config:
    config: Config = _alembic().config.Config()
    config.set_main_option("script_location", SCRIPTS)
    return config


def _alembic() -> Any:
    try:
        import alembic.command
        import alembic.config
        import alembic.script
        import alembic.util
    except ImportError:
        raise MissingExtraError("aibox db", extra="postgres") from None
    return alembic


def _refuse_unfit(db: Any, role: str) -> None:
    may = "rolsuper OR rolbypassrls OR pg_has_role(rolname, current_user, 'MEMBER')"
    asked = f"SELECT {may} FROM pg_roles WHERE rolname = %s"  # noqa: S608 - a constant
    found = db.exec_driver_sql(asked, (role,)).fetchone()
    if found is None or found[0]:
        raise ConfigError(
            f"the role {role} must be there, not own the tables, and not pass row-level security by",
            hint=f"CREATE ROLE {role} LOGIN NOSUPERUSER NOBYPASSRLS",
        )
