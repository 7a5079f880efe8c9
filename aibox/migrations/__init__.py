"""The schema in PostgreSQL, by version, forwards and back. Its revisions are plain SQL, run by Alembic as the owner."""
