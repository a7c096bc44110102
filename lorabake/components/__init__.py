"""Networks that several model families share: name tables without a family of their own."""
