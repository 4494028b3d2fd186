-- How names are spread, which partial indexes alone do not tell the planner: a search that finds few goes by its indexes, one that finds
-- many by the order of the list.
CREATE STATISTICS users_names ON lower(full_name COLLATE "C"), split_part(lower(full_name COLLATE "C"), ' ', -1) FROM users;
