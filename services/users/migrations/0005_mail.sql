-- A user has one living token of a purpose: a new one takes the place of the old one in one step, whoever asks at the same time.
DROP INDEX one_time_tokens_of_user;
CREATE UNIQUE INDEX one_time_tokens_of_user ON one_time_tokens (user_id, purpose);

CREATE INDEX mail_outbox_due ON mail_outbox (next_try_at);
