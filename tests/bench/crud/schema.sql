-- The one table of every peer; each has a database of its own.
CREATE TABLE people (
    id uuid PRIMARY KEY,
    username text NOT NULL UNIQUE,
    email text NOT NULL UNIQUE,
    full_name text,
    role text NOT NULL,
    version integer NOT NULL,
    password_hash text NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);
