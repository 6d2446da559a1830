"""How captions and answers are judged, in Python, equal to the programs that the field's numbers come from."""
