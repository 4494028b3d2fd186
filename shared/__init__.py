"""Code that two or more services use and that knows no service; import the module you need, nothing is re-exported."""
