"""What answers are worth: pure functions of items, in the published form and in a corrected one, side by side.

Here is what scorers of several families share; a family's own stand in its `scorer.py`. `scorer_names` finds them:
`SCORERS["chartqa"].score(item, "reference")` is one item's score, `.summary(items, mode)` what the published evaluation
prints of many, `.headline(items, mode)` the one number papers print, in percent. Which fields an item has stands beside
each scorer; `base` says what the two modes are.
"""

from megatron_v2pe.evaluate.scorers.base import Item, Judgement, Mode, ReferenceStopsError, Scorer, Summary

__all__ = ["Item", "Judgement", "Mode", "ReferenceStopsError", "Scorer", "Summary"]
