-- Users, their credentials and sessions, the signing keys, and the outbox of events on their way to the bus.

CREATE TABLE users (
    id uuid PRIMARY KEY,
    username text NOT NULL,
    username_folded text NOT NULL CONSTRAINT users_username_unique UNIQUE,
    email text NOT NULL CONSTRAINT users_email_unique UNIQUE,
    full_name text,
    role text NOT NULL DEFAULT 'user' CONSTRAINT users_role_known CHECK (role IN ('user', 'admin')),
    version integer NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);

CREATE INDEX users_admins ON users (id) WHERE role = 'admin';

-- Apart from users, so that no read of a user can show a hash.
CREATE TABLE credentials (
    user_id uuid PRIMARY KEY REFERENCES users ON DELETE CASCADE,
    password_hash text NOT NULL
);

CREATE TABLE sessions (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    family_hash bytea NOT NULL CONSTRAINT sessions_family_unique UNIQUE,
    refresh_hash bytea NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL
);

CREATE INDEX sessions_of_user ON sessions (user_id, id);

CREATE TABLE signing_keys (
    kid text PRIMARY KEY,
    public_key bytea NOT NULL,
    sealed_key bytea NOT NULL,
    created_at timestamptz NOT NULL
);

-- `number` is drawn after the user's row is locked, so it orders the events of one user; `id` is the message id on the bus.
CREATE TABLE outbox (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id uuid NOT NULL,
    subject text NOT NULL,
    payload bytea NOT NULL
);
