"""The guest kernel of one VM."""
