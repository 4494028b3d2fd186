"""What tests of every service share: contract suites, fakes and an in-process client."""
