"""The shared cache: one Protocol (`base`), Redis or Valkey for real (`redis`), a memory twin (`memory`), `cache_result` for functions,
and `TieredCache` (`tiered`): a bounded local tier in front of them, which hears of changes on other replicas.
"""
