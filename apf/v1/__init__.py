"""Generated from protos/apf/v1 (``poe protos``); a test keeps it fresh."""
