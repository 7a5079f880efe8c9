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


def upgrade() -> None:
    table("aibox_server.policy_heads", HEADS)
    # Which tenants have one, and of which version, to every server's own look: it is in no tenant's name.
    policy("aibox_server.policy_heads", "the_tenants", "FOR SELECT USING (current_setting('aibox.tenant') = '')")
    table("aibox_server.policy_versions", VERSIONS)


def downgrade() -> None:
    execute("DROP TABLE aibox_server.policy_versions")
    execute("DROP TABLE aibox_server.policy_heads")
