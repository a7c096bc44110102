"""What comes after a bake, and keeps it: digests of its files, and the lock that pins its inputs."""
