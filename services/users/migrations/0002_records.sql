-- Deleted users that can be restored, the audit log, idempotency keys, sessions that are shown and rotated with grace, key states,
-- one-time tokens and mail on its way. Only adds, with defaults: replicas of the version before go on working beside it.

-- Deleting moves the row here, so that a name is free at once, and no read, old or new, can show a deleted user by forgetting a condition.
CREATE TABLE deleted_users (
    id uuid PRIMARY KEY,
    username text NOT NULL,
    email text NOT NULL,
    full_name text,
    role text NOT NULL,
    version integer NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    email_verified_at timestamptz,
    password_hash text NOT NULL,
    deleted_at timestamptz NOT NULL
);

CREATE INDEX deleted_users_age ON deleted_users (deleted_at);

ALTER TABLE users ADD COLUMN email_verified_at timestamptz;

-- Who did what to whom: written by the statement that did it. No reference to users: the log outlives them.
CREATE TABLE audit (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL,
    action text NOT NULL,
    actor_id uuid,
    user_id uuid,
    request_id text,
    address text,
    before jsonb,
    after jsonb
);

CREATE INDEX audit_of_user ON audit (user_id, number);
CREATE INDEX audit_age ON audit (at);

-- `scope_hash` is over method, route, who asks and key; `status` NULL while the first request runs.
CREATE TABLE idempotency (
    scope_hash bytea PRIMARY KEY,
    body_hash bytea NOT NULL,
    started_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    status smallint,
    headers jsonb,
    body bytea
);

CREATE INDEX idempotency_age ON idempotency (expires_at);

ALTER TABLE sessions
    ADD COLUMN previous_hash bytea,
    ADD COLUMN rotated_at timestamptz,
    ADD COLUMN used_at timestamptz,
    ADD COLUMN address text,
    ADD COLUMN user_agent text;

CREATE INDEX sessions_age ON sessions (expires_at);

ALTER TABLE signing_keys
    ADD COLUMN state text NOT NULL DEFAULT 'active' CONSTRAINT signing_keys_state_known CHECK (state IN ('next', 'active', 'retired')),
    ADD COLUMN state_since timestamptz NOT NULL DEFAULT now();

CREATE TABLE one_time_tokens (
    hash bytea PRIMARY KEY,
    purpose text NOT NULL,
    user_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    email text NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL
);

CREATE INDEX one_time_tokens_of_user ON one_time_tokens (user_id, purpose);
CREATE INDEX one_time_tokens_age ON one_time_tokens (expires_at);

-- `sealed` holds the token that the mail carries, readable only with the key seal.
CREATE TABLE mail_outbox (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id uuid NOT NULL,
    recipient text NOT NULL,
    kind text NOT NULL,
    sealed bytea NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    tries integer NOT NULL DEFAULT 0,
    next_try_at timestamptz NOT NULL
);
