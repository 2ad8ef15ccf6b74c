"""The suites that ship with pinstorm; pinstorm.suite finds them here by bare name."""
