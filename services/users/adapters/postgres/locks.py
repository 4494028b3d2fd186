"""The advisory locks of this service, in one place so that no two mean different things."""

MIGRATION_LOCK = 0x7268_7573_6572_0001
RELAY_LOCK = 0x7268_7573_6572_0002
KEY_LOCK = 0x7268_7573_6572_0003
