"""The audit log, and what agents keep.

Evidence is only inserted: triggers raise on everything else. A database that was prepared before there were versions
has these tables, and is taken over as it is.
"""

from __future__ import annotations

from aibox.migrations.secure import execute, policy, schema, secure, table

revision = "0001"
down_revision = None

AUDIT = {
    "meta": "name text PRIMARY KEY, value text NOT NULL",
    "logs": "log bytea PRIMARY KEY, tenant text NOT NULL UNIQUE, origin text NOT NULL, public_key text NOT NULL",
    "heads": "log bytea PRIMARY KEY, size bigint NOT NULL",
    "entries": "log bytea NOT NULL, seq bigint NOT NULL, header bytea NOT NULL, open bytea, sealed bytea, "
    "tag bytea NOT NULL, PRIMARY KEY (log, seq)",
    "nodes": "log bytea NOT NULL, level int NOT NULL, idx bigint NOT NULL, hash bytea NOT NULL, "
    "PRIMARY KEY (log, level, idx)",
    "checkpoints": "log bytea NOT NULL, size bigint NOT NULL, note text NOT NULL, PRIMARY KEY (log, size)",
    "turns": "log bytea NOT NULL, turn text NOT NULL, seq bigint NOT NULL, PRIMARY KEY (log, turn)",
    "acts": "log bytea NOT NULL, seq bigint NOT NULL, kind text NOT NULL, first bigint NOT NULL, last bigint NOT NULL, "
    "PRIMARY KEY (log, seq)",
    "subjects": "log bytea NOT NULL, who bytea NOT NULL, id bytea NOT NULL, wrapped bytea NOT NULL, "
    "PRIMARY KEY (log, who)",
}
RIGHTS = {"heads": ", UPDATE (size)", "subjects": ", DELETE", "entries": ", UPDATE (open, sealed)"}
FREE = ("heads", "subjects")
"""No evidence: a size that is compared and set, and keys that are there to be destroyed."""
ONE_LOG = "log = decode(current_setting('aibox.log'), 'hex')"
"""A log is one tenant's; whoever opens the store reads which there are."""

REFUSE = """
CREATE OR REPLACE FUNCTION aibox_audit.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'evidence is never changed'; END $$
"""
REFUSE_BUT_PRUNING = """
CREATE OR REPLACE FUNCTION aibox_audit.refuse_but_pruning() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.open IS NULL AND NEW.sealed IS NULL AND NEW.log = OLD.log AND NEW.seq = OLD.seq AND NEW.header = OLD.header
     AND NEW.tag = OLD.tag AND EXISTS (SELECT 1 FROM aibox_audit.acts a WHERE a.log = OLD.log
       AND a.kind = 'bodies.pruned' AND OLD.seq BETWEEN a.first AND a.last)
  THEN RETURN NEW; END IF;
  RAISE EXCEPTION 'evidence is never changed';
END $$
"""
KEEP_EVIDENCE = """
DO $$ BEGIN
  IF EXISTS (SELECT 1 FROM aibox_audit.logs) THEN
    RAISE EXCEPTION 'the log has entries, and evidence is never dropped: export it, then drop the schemas by hand';
  END IF;
END $$
"""

USER = 'tenant text NOT NULL, "user" text NOT NULL, agent text NOT NULL'
AGENTS = {
    "sessions": f"{USER}, id text NOT NULL, title bytea NOT NULL, label text NOT NULL, exposure text NOT NULL, "
    "summary bytea, first_seq bigint NOT NULL DEFAULT 0, seq bigint NOT NULL DEFAULT 0, created_us bigint NOT NULL, "
    'updated_us bigint NOT NULL, PRIMARY KEY (tenant, "user", agent, id)',
    "messages": f"{USER}, session text NOT NULL, seq bigint NOT NULL, body bytea NOT NULL, "
    'PRIMARY KEY (tenant, "user", agent, session, seq)',
    "runs": 'tenant text NOT NULL, id text NOT NULL, "user" text NOT NULL, agent text NOT NULL, session text NOT NULL, '
    "version text NOT NULL, turn text NOT NULL, status text NOT NULL, state bytea, created_us bigint NOT NULL, "
    "lease_us bigint NOT NULL, PRIMARY KEY (tenant, id)",
    "approvals": "tenant text NOT NULL, id text NOT NULL, run text NOT NULL, call text NOT NULL, tool text NOT NULL, "
    "shown bytea NOT NULL, digest text NOT NULL, people bigint NOT NULL, status text NOT NULL, "
    "expires_us bigint NOT NULL, PRIMARY KEY (tenant, id)",
    "votes": "tenant text NOT NULL, approval text NOT NULL, person text NOT NULL, reason bytea NOT NULL, "
    "at_us bigint NOT NULL, PRIMARY KEY (tenant, approval, person)",
    "calls": "tenant text NOT NULL, key text NOT NULL, tool text NOT NULL, result bytea, ok bigint, "
    "PRIMARY KEY (tenant, key)",
    "tools_seen": "tenant text NOT NULL, server text NOT NULL, name text NOT NULL, digest text NOT NULL, "
    "PRIMARY KEY (tenant, server, name)",
}


def upgrade() -> None:
    schema("aibox_audit")
    execute(REFUSE)
    execute(REFUSE_BUT_PRUNING)
    for name, columns in AUDIT.items():
        full, rights = f"aibox_audit.{name}", "SELECT, INSERT" + RIGHTS.get(name, "")
        if name in ("meta", "logs"):
            execute(f"CREATE TABLE IF NOT EXISTS {full} ({columns})")
            secure(full, rights=rights)
            policy(full, "anybody_reads", "FOR SELECT USING (true)")
            policy(full, "one_adds", f"FOR INSERT WITH CHECK ({ONE_LOG if name == 'logs' else 'true'})")
        else:
            execute(f"CREATE TABLE IF NOT EXISTS {full} ({columns})")
            secure(full, rights=rights)
            policy(full, "one_log", f"USING ({ONE_LOG}) WITH CHECK ({ONE_LOG})")
        if name not in FREE:
            guard(full, "refuse_but_pruning" if name == "entries" else "refuse")
    execute("INSERT INTO aibox_audit.meta VALUES ('format', 'aibox/audit/v1') ON CONFLICT DO NOTHING")
    schema("aibox_agents")
    for name, columns in AGENTS.items():
        table(f"aibox_agents.{name}", columns)


def guard(full: str, update: str) -> None:
    for verb, act in (("UPDATE", update), ("DELETE", "refuse")):
        execute(
            f"CREATE OR REPLACE TRIGGER no_{verb.lower()} BEFORE {verb} ON {full} "
            f"FOR EACH ROW EXECUTE FUNCTION aibox_audit.{act}()"
        )
    execute(
        f"CREATE OR REPLACE TRIGGER no_truncate BEFORE TRUNCATE ON {full} "
        "FOR EACH STATEMENT EXECUTE FUNCTION aibox_audit.refuse()"
    )


def downgrade() -> None:
    execute(KEEP_EVIDENCE)
    execute("DROP SCHEMA aibox_agents CASCADE")
    execute("DROP SCHEMA aibox_audit CASCADE")
