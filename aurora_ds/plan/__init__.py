"""What a run will need before it is started: memory per GPU and bytes between ranks for every ZeRO stage.

`task.py` builds the task of a recipe out of shapes, `trace.py` follows one of its training steps, `memory.py` and
`traffic.py` add what DeepSpeed holds and sends, `variants.py` lists the settings, `run.py` compares and prints.
"""
