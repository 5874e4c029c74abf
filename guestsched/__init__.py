"""The guest kernel of one VM: its tasks, run queues and APF wait table (``core``), and the shells around them."""
