"""What the loop must let go of: objects, file descriptors, references."""
