"""The shared cache: one Protocol (`base`), Redis or Valkey for real (`redis`), a memory twin (`memory`), and `cache_result`."""
