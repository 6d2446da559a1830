"""What runs a task: process groups, the DeepSpeed engine, checkpoints, schedules, guards, monitoring."""
