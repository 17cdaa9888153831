"""A learner whose network DeepSpeed shards over ranks (ZeRO, Rajbhandari et al. 2020): the one room that knows DeepSpeed.

settings   DeepSpeed's configuration, from ours
engine     DeepSpeed itself: found, made quiet, its engine built and destroyed
shards     which elements of which parameter a rank holds, and how wholes are made of pieces
layerwise  a forward-mode pass for which no rank holds the whole network
learner    the learner's protocol on top of these
"""
