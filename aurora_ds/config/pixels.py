"""How images come to every model: RGB in 0 to 1, minus MEAN, over DEVIATION, by channel (CLIP's numbers, as BLIP has
them). A model that was trained on others brings them to its own."""

MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
