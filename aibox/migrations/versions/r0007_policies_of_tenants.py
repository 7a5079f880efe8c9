"""Policies that administrators wrote for tenants, by version."""

from __future__ import annotations

from aibox.migrations.secure import execute, policy, table

revision = "0007"
down_revision = "0006"

HEADS = "tenant text NOT NULL, level text NOT NULL, version bigint NOT NULL, PRIMARY KEY (tenant, level)"
VERSIONS = (
    "tenant text NOT NULL, level text NOT NULL, version bigint NOT NULL, digest text NOT NULL, text text NOT NULL, "
    "author text NOT NULL, written bigint NOT NULL, PRIMARY KEY (tenant, level, version)"
)
KEEP_WHAT_HOLDS = """
DO $$ BEGIN
  IF EXISTS (SELECT 1 FROM aibox_server.policy_heads h JOIN aibox_server.policy_versions v
    ON v.tenant = h.tenant AND v.level = h.level AND v.version = h.version WHERE v.digest <> '')
  THEN
    RAISE EXCEPTION 'policies of tenants are in force, and without them more is allowed: withdraw each first';
  END IF;
END $$
"""


def upgrade() -> None:
    table("aibox_server.policy_heads", HEADS)
    # Which tenants have one, and of which version, to every server's own look: it is in no tenant's name.
    policy("aibox_server.policy_heads", "the_tenants", "FOR SELECT USING (current_setting('aibox.tenant') = '')")
    table("aibox_server.policy_versions", VERSIONS)


def downgrade() -> None:
    # Row-level security holds the owner too, but for this.
    for name in ("policy_heads", "policy_versions"):
        execute(f"ALTER TABLE aibox_server.{name} NO FORCE ROW LEVEL SECURITY")
    execute(KEEP_WHAT_HOLDS)
    execute("DROP TABLE aibox_server.policy_versions")
    execute("DROP TABLE aibox_server.policy_heads")
