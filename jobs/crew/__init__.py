"""Workers as Ray actors, and the driver that gives them their tasks."""
