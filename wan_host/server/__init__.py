"""The HTTP side of a worker: ``listener`` serves what ``app`` puts together."""
