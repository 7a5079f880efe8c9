"""Tenants and users that were seen, and who of them is let in; what an API key is for."""

from __future__ import annotations

from aibox.migrations.secure import execute, policy, table

revision = "0006"
down_revision = "0005"

PEOPLE = (
    'tenant text NOT NULL, "user" text NOT NULL, state text NOT NULL, note text NOT NULL, roles text NOT NULL, '
    'since bigint NOT NULL, seen bigint, PRIMARY KEY (tenant, "user")'
)
OF_NOBODY = "USING (\"user\" = '' AND current_setting('aibox.tenant') = '')"
SCOPES = "id text PRIMARY KEY, tenant text NOT NULL, scopes text NOT NULL, models text NOT NULL"


def upgrade() -> None:
    table("aibox_server.people", PEOPLE)
    # Which tenants there are, to the operator's own look: it is in no tenant's name, and sees no user.
    policy("aibox_server.people", "the_tenants", f"FOR SELECT {OF_NOBODY}")
    # Beside the keys and not in them: servers of the version before go on while they are replaced.
    table("aibox_server.key_scopes", SCOPES)
    policy("aibox_server.key_scopes", "one_key", "FOR SELECT USING (id = current_setting('aibox.key', true))")


def downgrade() -> None:
    # A narrow key must not become a wide one, so it ends. Row-level security holds the owner too, but for this.
    for name in ("keys", "key_scopes"):
        execute(f"ALTER TABLE aibox_server.{name} NO FORCE ROW LEVEL SECURITY")
    execute("UPDATE aibox_server.keys SET revoked = 1 WHERE id IN (SELECT id FROM aibox_server.key_scopes)")
    execute("ALTER TABLE aibox_server.keys FORCE ROW LEVEL SECURITY")
    execute("DROP TABLE aibox_server.key_scopes")
    execute("DROP TABLE aibox_server.people")
