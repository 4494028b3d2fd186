-- What the list of users sorts and filters by. Text is compared in the order of its code points (collation C), which is the same
-- whatever the database was made with, and serves prefixes too.

CREATE INDEX users_by_age ON users (created_at, id);
CREATE INDEX users_by_username ON users (username_folded COLLATE "C");
CREATE INDEX users_by_email ON users (email COLLATE "C");

-- The whole name, and its last word; of users that have none, nothing is stored.
CREATE INDEX users_by_name ON users (lower(full_name COLLATE "C")) WHERE full_name IS NOT NULL;
CREATE INDEX users_by_last_name ON users (split_part(lower(full_name COLLATE "C"), ' ', -1)) WHERE full_name IS NOT NULL;

-- The log's other filters; most lines are by nobody, such as registrations.
CREATE INDEX audit_of_actor ON audit (actor_id, number) WHERE actor_id IS NOT NULL;
CREATE INDEX audit_of_action ON audit (action, number);
